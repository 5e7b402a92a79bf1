"""The type checker of the tests: beartype, and jaxtyping only for what speaks of shapes.

The import hook of `jaxtyping` decorates each function of the package with `jaxtyping.jaxtyped`,
which keeps a record of shapes for the length of a call and binds the arguments three times: some 50
microseconds, where beartype alone takes one or two. Tracing calls thousands of functions.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
_typed_with_shapes = jaxtyping.jaxtyped
_checks: dict[tuple, Callable] = {}

# In the representation of an annotation. `PyTree` by itself is any object.
_SHAPES = re.compile(r"jaxtyping\.(?!PyTree(?!\[))")


def typed(fn: Callable | None = None, *, typechecker: Callable) -> Callable:
    """Return a function with its arguments and results checked, as by `jaxtyping.jaxtyped`."""
    if fn is None:
        return functools.partial(typed, typechecker=typechecker)
    # A class, or what another function defines anew: `checked` below knows its checks already.
    if not inspect.isfunction(fn) or ("<locals>" in fn.__qualname__ and fn.__annotations__):
        return _typed_with_shapes(fn, typechecker=typechecker)
    hints = fn.__annotations__.values()
    if any(isinstance(hint, str) or _SHAPES.search(repr(hint)) for hint in hints):
        return _typed_with_shapes(fn, typechecker=typechecker)
    if all(hint is Any for hint in hints):
        return fn
    check = _check(fn)

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        if jaxtyping.config.jaxtyping_disable:
            return fn(*args, **kwargs)
        return check(*args, **kwargs)

    return wrapped


def checked(fn: Callable) -> Callable:
    """Return `fn` with its arguments checked.

    `jaxtyping` passes an empty function that has the signature of the one to be checked: the check
    of another such function with the same annotations is the same check. A function inside of
    another is defined anew by every call, and beartype takes a millisecond for it.
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
