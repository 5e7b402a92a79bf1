"""The type checker of the tests: beartype, with jaxtyping's records of shapes where they matter.

The import hook of `jaxtyping` decorates each function of the package with `jaxtyping.jaxtyped`,
which binds the arguments and checks them twice, for messages that say which is wrong: some 50
microseconds, where beartype takes a few. Tracing calls thousands of functions.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
_jaxtyped = jaxtyping.jaxtyped
_one_call = jaxtyping.jaxtyped("context")  # within it, names of axes stand for the same sizes
_checks: dict[tuple, Callable] = {}

# In the representation of an annotation. `PyTree` by itself is any object.
_SHAPES = re.compile(r"jaxtyping\.(?!PyTree(?!\[))")


def typed(fn: Callable | None = None, *, typechecker: Callable) -> Callable:
    """Return a function with its arguments and results checked, as by `jaxtyping.jaxtyped`."""
    if fn is None:
        return functools.partial(typed, typechecker=typechecker)
    if not inspect.isfunction(fn):
        return _jaxtyped(fn, typechecker=typechecker)
    hints = fn.__annotations__.values()
    if all(hint is Any for hint in hints):
        return fn
    texts = [hint if isinstance(hint, str) else repr(hint) for hint in hints]
    has_shapes = any(map(_SHAPES.search, texts))
    if (
        "<locals>" in fn.__qualname__  # defined anew by every call; `checked` has its checks
        or any(isinstance(hint, str) for hint in hints)
        or (has_shapes and (inspect.isgeneratorfunction(fn) or "{" in "".join(texts)))
    ):
        return _jaxtyped(fn, typechecker=typechecker)
    check = _check(fn)
    if not has_shapes:

        @functools.wraps(fn)
        def wrapped(*args, **kwargs):
            if jaxtyping.config.jaxtyping_disable:
                return fn(*args, **kwargs)
            return check(*args, **kwargs)

    else:

        @functools.wraps(fn)
        def wrapped(*args, **kwargs):
            if jaxtyping.config.jaxtyping_disable:
                return fn(*args, **kwargs)
            with _one_call:
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
