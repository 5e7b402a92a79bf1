"""Words for wrong input: every message names what was found, what was expected and the remedy."""

import difflib
from collections.abc import Iterable


def check_option(name: str, found: object, options: Iterable[str]) -> str:
    """Return `found` if it is one of `options`, else say which option is nearest.

    Parameters
    ----------
    name
        The argument's name, for the message.
    found
        What the caller passed.
    options
        The names that are known.

    Raises
    ------
    ValueError
        If `found` is not among `options`.
    """
    known = tuple(options)
    if isinstance(found, str) and found in known:
        return found
    near = difflib.get_close_matches(found, known, n=1) if isinstance(found, str) else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(repr(option) for option in known)
    raise ValueError(f"Found {name}={found!r}, expected one of {listed}.{hint}")


def check_count(name: str, found: object, of: str, *, least: int = 1) -> None:
    """Refuse what is no whole number, or too small a one.

    Parameters
    ----------
    name, found
        The argument's name, and what the caller passed.
    of
        What is counted, in the plural.
    least
        The smallest number that makes sense.

    Raises
    ------
    ValueError
        If this is no such number.
    """
    if not hasattr(type(found), "__index__") or found < least:
        raise ValueError(
            f"Found {name}={found}, expected a whole number of {of}, at least {least}."
        )
