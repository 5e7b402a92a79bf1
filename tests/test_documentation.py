"""The documentation is true: its examples run as printed and its map of the files is complete."""

import importlib.util
import inspect
import re
import runpy
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "laplace_kit"
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(page: Path) -> list[tuple[int, str, str | None]]:
    """Return the fenced python blocks of a page, each with the number of its first line.

    A block of text right after one is what it prints.
    """
    text = page.read_text(encoding="utf-8")
    pattern = r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?"
    blocks = re.finditer(pattern, text, flags=re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, block.start(1)) + 1, *block.groups()) for block in blocks]


# Libraries that are no dependencies, and what else an adapter needs with them.
OPTIONAL = {
    "torch": ("torch", "torchax"),
    "transformers": ("transformers",),
    "peft": ("peft",),
    "keras": ("keras",),
    "haiku": ("haiku",),
}


def missing(block: str) -> list[str]:
    """Return the optional libraries that a block imports and that are not installed."""
    imported = re.findall(r"^(?:import|from) (\w+)", block, flags=re.MULTILINE)
    needed = [name for library in imported for name in OPTIONAL.get(library, ())]
    return [name for name in needed if importlib.util.find_spec(name) is None]


WITH_CODE = [page for page in PAGES if python_blocks(page)]


def as_case(page: Path):
    """Return a test's parameter; what a new user reads first is run every time."""
    first = {"README.md", "docs/index.md", "docs/quickstart.md"}
    name = str(page.relative_to(ROOT))
    return pytest.param(page, id=name, marks=() if name in first else pytest.mark.slow)


@pytest.mark.parametrize("page", [as_case(page) for page in WITH_CODE])
def test_examples_run_as_printed(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    blocks = [found for found in python_blocks(page) if not missing(found[1])]
    if not blocks:
        pytest.skip("needs libraries that are not installed: see the extras")
    for line, block, shown in blocks:
        # Blank lines in front make a traceback point to the line of the page.
        exec(compile("\n" * (line - 1) + block, page, "exec"), namespace)
        printed = capsys.readouterr().out
        assert shown is None or printed == shown


def test_a_structure_of_your_own_takes_forty_lines():
    """With imports, but neither blank lines nor what fits and saves it."""
    blocks = [block for _, block, _ in python_blocks(ROOT / "docs" / "write_your_own.md")]
    (block,) = [block for block in blocks if "(StructureSpec)" in block]
    assert block.count("lk.storable(") == 3
    assert len([line for line in block.splitlines() if line.strip()]) <= 40


def test_readme_and_quickstart_have_examples():
    assert {"README.md", "quickstart.md"} <= {page.name for page in WITH_CODE}


def test_landing_page_shows_the_example_of_the_readme():
    shown = re.search(
        r"^```py\n(.*?)^```$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.S | re.M
    )
    assert shown[1] in [block for _, block, _ in python_blocks(ROOT / "README.md")]


def test_page_of_layer_capture_holds_the_tables_that_the_code_makes():
    page = (ROOT / "docs" / "layer_capture.md").read_text(encoding="utf-8")
    renewed = runpy.run_path(str(ROOT / "docs" / "tables.py"))["renewed"]
    assert page == renewed(page), "run `python docs/tables.py`"


def test_page_of_curvature_shows_the_pictures_that_its_script_draws():
    page = (ROOT / "docs" / "curvature.md").read_text(encoding="utf-8")
    drawn = runpy.run_path(str(ROOT / "docs" / "curvature_pictures.py"))["PICTURES"]
    shown = re.findall(r"\(images/(curvature_\w+\.png)\)", page)
    assert shown == [f"curvature_{draw.__name__}.png" for draw in drawn]
    assert set(shown) == {path.name for path in (ROOT / "docs" / "images").glob("curvature_*")}


def test_architecture_names_every_file_once():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([\w/]+\.py)` \|", page, flags=re.MULTILINE)
    assert sorted(named) == sorted(map(str, FILES))


def undocumented(file: Path) -> list[str]:
    """Return the public methods of a file's classes that neither they nor their bases explain."""
    name = ".".join(("laplace_kit", *file.with_suffix("").parts)).removesuffix(".__init__")
    found = inspect.getmembers(importlib.import_module(name), inspect.isclass)
    classes = [c for n, c in found if c.__module__ == name and not n.startswith("_")]
    declared = [
        (cls, method)
        for cls in classes
        for method, member in vars(cls).items()
        if not method.startswith("_") and isinstance(member, FunctionType | property)
    ]
    return [
        f"{name}.{cls.__qualname__}.{method}"
        for cls, method in declared
        if not any(getattr(vars(base).get(method), "__doc__", None) for base in cls.__mro__)
    ]


def test_every_public_method_is_documented_where_it_is_declared():
    silent = [method for file in FILES for method in undocumented(file)]
    assert not silent
