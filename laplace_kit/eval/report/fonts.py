"""Fonts for text in pictures: matplotlib's default, with system fonts for missing characters."""

import functools
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import matplotlib.figure


def drawable(text: str) -> bool:
    """Return whether the installed fonts have every character of a text."""
    return fallbacks(text) is not None


def fallbacks(text: str) -> tuple[str, ...] | None:
    """Return font families with the characters of a text that matplotlib's default font lacks.

    The tuple is empty if no character is missing, and `None` if no font has one of them. White
    space is ignored.
    """
    from matplotlib import font_manager

    missing = _missing(text, font_manager.findfont(font_manager.FontProperties()))
    families = []
    for entry in font_manager.fontManager.ttflist if missing else ():
        left = _missing(missing, entry.fname)
        if left != missing and entry.name not in families:
            families.append(entry.name)
            missing = left
        if not missing:
            break
    return None if missing else tuple(families)


def apply(figure: "matplotlib.figure.Figure") -> None:
    """Set fallback fonts for every text of a figure whose font lacks characters."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if families := fallbacks(text.get_text()):
            text.set_fontfamily([*text.get_fontfamily(), *families])


def _missing(text: Iterable[str], path: str) -> str:
    characters = _characters(path)
    return "".join(letter for letter in text if not (letter.isspace() or ord(letter) in characters))


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """Return the code points of a font; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fonts without a Unicode table are skipped
            return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
