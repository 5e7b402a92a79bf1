"""The notebooks are text that a review can read; `make notebooks` executes them."""

import ast
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))


def cells(path: Path) -> list[tuple[str, str]]:
    """Return the kind and the text of each cell."""
    parts = re.split(r"^# %%(.*)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return list(zip(map(str.strip, parts[::2]), parts[1::2], strict=True))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_explains_draws_and_asserts(path):
    header, _, _ = path.read_text(encoding="utf-8").partition("# %%")
    assert "formats: ipynb,py:percent" in header
    kinds = [kind for kind, _ in cells(path)]
    assert set(kinds) == {"", "[markdown]"}
    assert kinds[0] == "[markdown]"
    assert cells(path)[0][1].startswith("# # ")
    code = ast.parse("".join(text for kind, text in cells(path) if kind == ""))
    assert any(isinstance(node, ast.Assert) for node in ast.walk(code))
    drawn = [text for kind, text in cells(path) if kind == "" and "plt.subplots(" in text]
    assert drawn
