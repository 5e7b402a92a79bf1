"""Fonts for the text of pictures: matplotlib's own, and others of the system for what it lacks."""

import functools
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import matplotlib.figure


def drawable(text: str) -> bool:
    """Return whether the fonts of this system have every character of a text."""
    return fallbacks(text) is not None


def fallbacks(text: str) -> tuple[str, ...] | None:
    """Return the families that have what matplotlib's default font lacks of a text.

    Parameters
    ----------
    text
        Any; spaces and line ends are no matter.

    Returns
    -------
    families
        None needed: an empty tuple. `None` if no font has one of the characters.
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
    """Let every text of a figure fall back on other fonts, where its own lacks characters."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if families := fallbacks(text.get_text()):
            text.set_fontfamily([*text.get_fontfamily(), *families])


def _missing(text: Iterable[str], path: str) -> str:
    characters = _characters(path)
    return "".join(letter for letter in text if not (letter.isspace() or ord(letter) in characters))


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """Return the code points that a font has, none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a font without a table of Unicode is no fault here
            return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
