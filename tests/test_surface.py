"""What is public: what packages export, which pages name and the API pages show."""

import ast
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import pydoc
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import laplace_kit as lk

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "laplace_kit"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PUBLIC = (
    "laplace_kit",
    "laplace_kit.approx",
    "laplace_kit.curv",
    "laplace_kit.curv.plots",
    "laplace_kit.data",
    "laplace_kit.eval",
    "laplace_kit.eval.metrics",
    "laplace_kit.eval.plots",
    "laplace_kit.eval.report",
    "laplace_kit.likelihood",
    "laplace_kit.model",
    "laplace_kit.targets",
    "laplace_kit.tune",
)
PACKAGES = [
    "laplace_kit",
    *(m.name for m in pkgutil.walk_packages([str(PACKAGE)], "laplace_kit.") if m.ispkg),
]


@functools.cache
def exports(name: str) -> frozenset[str]:
    """Return what a package's `__init__` imports under its own name, or a module's `__all__`."""
    module = importlib.import_module(name)
    if hasattr(module, "__all__"):
        return frozenset(module.__all__)
    source = Path(module.__file__).read_text(encoding="utf-8")
    imports = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom))
    aliases = (alias for node in imports for alias in node.names)
    return frozenset(alias.name for alias in aliases if alias.asname == alias.name)


def exported(name: str) -> dict[str, object]:
    """Return what a package or module exports, apart from modules, by its dotted name."""
    module = importlib.import_module(name)
    found = {f"{name}.{each}": getattr(module, each) for each in exports(name)}
    return {each: value for each, value in found.items() if not isinstance(value, ModuleType)}


def why_not_public(name: str) -> str | None:
    """Return what is wrong with a dotted name that a user is told to use, `None` if nothing."""
    first, *parts = name.split(".")
    here, at = lk, "laplace_kit"
    assert first in ("lk", "laplace_kit")
    for part in parts:
        if not hasattr(here, part):
            return f"{name}: {at} has no {part}"
        if isinstance(here, ModuleType) and part not in exports(at):
            return f"{name}: {at} does not export {part}"
        here, at = getattr(here, part), f"{at}.{part}"
    return None


def named(text: str) -> set[str]:
    """Return the dotted names of this package in a text, also those that its code imports."""
    dotted = set(re.findall(r"(?<![\w/.-])(?:lk|laplace_kit)(?:\.[A-Za-z_]\w*)+", text))
    imports = re.findall(r"^from (laplace_kit[\w.]*) import (\w+(?:, \w+)*)$", text, re.MULTILINE)
    return dotted | {f"{home}.{name}" for home, names in imports for name in names.split(", ")}


def messages(source: str) -> set[str]:
    """Return the strings of a source that are no docstrings."""
    nodes = list(ast.walk(ast.parse(source)))
    docs = {node.value for node in nodes if isinstance(node, ast.Expr)}
    constants = {node for node in nodes if isinstance(node, ast.Constant)} - docs
    return {node.value for node in constants if isinstance(node.value, str)}


def directives(page: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Return what an API page renders: each object, and those of its members that are selected."""
    pattern = r"^::: (\S+)\n((?:    .*\n|\n(?=    ))*)"
    found = re.findall(pattern, page.read_text(encoding="utf-8") + "\n", flags=re.MULTILINE)
    return [(name, tuple(re.findall(r"^ +- (\w+)$", block, re.MULTILINE))) for name, block in found]


def hidden(page: Path) -> dict[str, tuple[str, ...]]:
    """Return the names of members that an API page does not show, by the object of the directive.

    They are methods by which modules work together, of classes that users see.
    """
    pattern = r"^::: (\S+)\n    options:\n      filters: .*\"!\^\(([\w|]+)\)\$\"\]$"
    found = re.findall(pattern, page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: tuple(members.split("|")) for name, members in found}


def rendered(page: Path) -> list[str]:
    """Return the dotted names of all objects that an API page shows."""
    return [
        each
        for name, members in directives(page)
        for each in ([f"{name}.{member}" for member in members] or [name])
    ]


def resolve(name: str) -> object:
    """Return the object of a dotted name that is exported."""
    return functools.reduce(getattr, name.split(".")[1:], lk)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_on_pages_are_public(page):
    wrong = map(why_not_public, sorted(named(page.read_text(encoding="utf-8"))))
    assert not list(filter(None, wrong))


def test_names_in_messages_and_docstrings_of_what_is_public_are_public():
    objects = {id(value): value for name in PUBLIC for value in exported(name).values()}
    docs = [getattr(value, "__doc__", None) for value in objects.values()]
    classes = [value for value in objects.values() if isinstance(value, type)]
    docs += [getattr(member, "__doc__", None) for cls in classes for member in vars(cls).values()]
    docs += [importlib.import_module(name).__doc__ for name in PUBLIC]
    texts = {doc for doc in docs if isinstance(doc, str)}
    for path in PACKAGE.rglob("*.py"):
        texts |= messages(path.read_text(encoding="utf-8"))
    names = set().union(*map(named, texts))
    assert len(names) > 20
    assert not list(filter(None, map(why_not_public, sorted(names))))


def test_names_in_other_docstrings_exist():
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    names = set().union(*(re.findall(r"`(laplace_kit\.[\w.]+)`", source) for source in sources))
    assert len(names) > 10
    assert not [name for name in names if pydoc.locate(name) is None]


def test_every_export_stands_on_one_api_page_and_nothing_else_does():
    everything = {name: value for package in PUBLIC for name, value in exported(package).items()}
    shown = [name for page in (ROOT / "docs" / "api").glob("*.md") for name in rendered(page)]
    assert not list(filter(None, map(why_not_public, shown)))
    times = Counter(id(resolve(name)) for name in shown)
    assert not [name for name, value in everything.items() if times[id(value)] != 1]
    assert not [name for name in shown if isinstance(resolve(name), ModuleType)]


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "api").glob("*.md")), ids=lambda p: p.stem)
def test_members_that_an_api_page_hides_exist_and_no_page_names_them(page):
    for name, members in hidden(page).items():
        home = resolve(name)
        classes = [getattr(home, each) for each in exports(name)]
        known = set().union(*(dir(each) for each in classes if isinstance(each, type)))
        known |= {
            f.name for c in classes if dataclasses.is_dataclass(c) for f in dataclasses.fields(c)
        }
        assert set(members) <= known
        for other in PAGES:
            text = other.read_text(encoding="utf-8")
            assert not [member for member in members if re.search(rf"\w\.{member}\(", text)]


def signatures() -> dict[str, inspect.Signature]:
    """Return the signatures of public functions and of the public methods of public classes."""
    objects = {name: value for package in PUBLIC for name, value in exported(package).items()}
    for name, cls in list(objects.items()):
        if isinstance(cls, type):
            objects |= {f"{name}.{each}": member for each, member in vars(cls).items()}
    functions = {name: inspect.unwrap(value) for name, value in objects.items() if callable(value)}
    functions = {name: fn for name, fn in functions.items() if inspect.isfunction(fn)}
    return {n: inspect.signature(f) for n, f in functions.items() if not re.search(r"\._", n)}


def test_signatures_follow_the_table_of_names_in_contributing():
    found = signatures()
    assert len(found) > 200
    for name, signature in found.items():
        for argument, parameter in signature.parameters.items():
            if argument == "key":
                assert parameter.default in (None, parameter.empty), f"{name} has a default key"
            if argument == "method":
                assert parameter.kind is parameter.KEYWORD_ONLY, f"{name}: method by position"
            counts = re.search(r"^n_|^length$|_length$|_size$", argument)
            assert not counts or argument in ("batch_size", "train_batch_size"), (
                f"{name}: {argument}"
            )


def test_some_members_are_hidden():
    pages = {page.stem: hidden(page) for page in (ROOT / "docs" / "api").glob("*.md")}
    assert "planned" in pages["curv"]["laplace_kit.curv"]


def test_the_list_of_public_modules_is_complete():
    offered = {
        f"{name}.{each}"
        for name in PUBLIC
        for each in exports(name)
        if isinstance(getattr(importlib.import_module(name), each), ModuleType)
    }
    assert {*offered, "laplace_kit"} == set(PUBLIC)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_export_hides_a_module(package):
    home = importlib.import_module(package)
    modules = {module.name for module in pkgutil.iter_modules(home.__path__)}
    values = {name: getattr(home, name) for name in exports(package) & modules}
    assert not [name for name, value in values.items() if not isinstance(value, ModuleType)]
