"""Error messages for invalid arguments; they state what was found and expected, and the remedy."""

import difflib
import inspect
import warnings
from collections.abc import Iterable, Mapping

from laplace_kit.host import is_first

_NO_HINTS: Mapping[str, str] = {}


def check_option(
    name: str, found: object, options: Iterable[str], hints: Mapping[str, str] = _NO_HINTS
) -> str:
    """Return `found` if it is one of `options`; otherwise raise, naming the nearest option.

    Parameters
    ----------
    name
        The argument's name, for the message.
    found
        The caller's argument.
    options
        The known names.
    hints
        A sentence for each of other common names of the options, in lower case with underscores.

    Raises
    ------
    ValueError
        If `found` is not among `options`.
    """
    known = tuple(options)
    if isinstance(found, str) and found in known:
        return found
    word = found.lower().replace("-", "_").replace(" ", "_") if isinstance(found, str) else ""
    near = difflib.get_close_matches(word, known, n=1)
    hint = hints.get(word) or (f"Did you mean {near[0]!r}?" if near else "")
    listed = ", ".join(repr(option) for option in known)
    raise ValueError(f"Found {name}={found!r}, expected one of {listed}. {hint}".rstrip())


def check_count(name: str, found: object, of: str, *, least: int = 1) -> None:
    """Raise a `ValueError` unless `found` is a whole number, and at least `least`.

    Parameters
    ----------
    name, found
        The argument's name and value.
    of
        What is counted, in the plural.
    least
        The smallest allowed number.
    """
    if not hasattr(type(found), "__index__") or found < least:
        raise ValueError(
            f"Found {name}={found}, expected a whole number of {of}, at least {least}."
        )


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called this package, however deep inside of it the cause arises.

    All processes of a program find the same: process 0 warns.
    """
    if not is_first():
        return
    package = __name__.partition(".")[0]
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
