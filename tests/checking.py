"""The type checker of the tests: beartype, asked once for each signature.

A function inside of another is defined anew by every call, and beartype takes a millisecond for it.
"""

from collections.abc import Callable
from typing import Any

from beartype import beartype

_checks: dict[tuple, Callable] = {}


def checked(fn: Callable) -> Callable:
    """Return `fn` with its arguments checked.

    `jaxtyping` passes an empty function that has the signature of the one to be checked: the check
    of another such function with the same annotations is the same check.
    """
    hints = fn.__annotations__
    if all(hint is Any for hint in hints.values()):
        return fn
    if fn.__defaults__ or fn.__kwdefaults__:
        return beartype(fn)
    key = (fn.__module__, fn.__qualname__, fn.__code__, *hints.items())
    try:
        if key not in _checks:
            _checks[key] = beartype(fn)
    except TypeError:  # an annotation that has no hash
        return beartype(fn)
    return _checks[key]
