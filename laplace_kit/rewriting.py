"""Operations of a program replaced one by one, inside of its loops, branches and calls too."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array, ArrayLike, PyTree

Rules = Mapping[str, Callable[..., Array]]

# Operations whose programs mean something in their place alone, by names of axes or references.
_KEPT_WHOLE = ("shard_map", "pallas_call")


def rewritten(fn: Callable[..., PyTree], rules: Rules) -> Callable[..., PyTree]:
    """Return a function whose operations of some names are others.

    Parameters
    ----------
    fn
        Of pytrees of arrays, to be called inside of `jit`. Derivative rules of functions in it stay
        in force, and what is mapped over shards stays as it is.
    rules
        By a primitive's name, a function `(equation, *operands) -> result` in its place.

    Returns
    -------
    fn
        Traced twice.
    """

    def run(*args: PyTree) -> PyTree:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        is_concerned = _has_any(rules, closed.jaxpr)
        program = partial(_evaluate, rules, closed) if is_concerned else jaxpr_as_fun(closed)
        outputs = program(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return run


def has_operation(fn: Callable[..., PyTree], *args: PyTree, name: str) -> bool:
    """Return whether a function has an operation of some name, within its loops and calls too.

    Parameters
    ----------
    fn, *args
        The function and its arguments, or their shapes: it is traced, and nothing is computed.
    name
        The primitive's name.
    """
    return _has_operation(jax.make_jaxpr(fn)(*args).jaxpr, name)


def _has_operation(jaxpr: Jaxpr, name: str) -> bool:
    if any(equation.primitive.name == name for equation in jaxpr.eqns):
        return True
    values = (value for equation in jaxpr.eqns for value in equation.params.values())
    parts = (part for value in values for part in jax.tree.leaves(value))
    inner = (getattr(part, "jaxpr", part) for part in parts)
    return any(_has_operation(part, name) for part in inner if isinstance(part, Jaxpr))


def _evaluate(rules: Rules, closed: ClosedJaxpr, *args: ArrayLike) -> list[ArrayLike]:
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = list(map(read, equation.invars))
        rule = rules.get(equation.primitive.name)
        if rule is not None:
            results = [rule(equation, *operands)]
        else:
            params = equation.params
            if equation.primitive.name not in _KEPT_WHOLE:
                params = {name: _rewritten(rules, value) for name, value in params.items()}
            params = equation.primitive.get_bind_params(params)
            results = equation.primitive.bind(*operands, **params)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))


def _rewritten(rules: Rules, param: Any) -> Any:
    """Return a parameter of an operation, the programs in its containers rewritten."""

    def of_part(part: Any) -> Any:
        if not (_is_program(part) and _has_any(rules, part.jaxpr)):
            return part
        return jax.make_jaxpr(partial(_evaluate, rules, part))(*part.in_avals)

    return jax.tree.map(of_part, param) if _holds_any(rules, param) else param


def _has_any(rules: Rules, jaxpr: Jaxpr) -> bool:
    return any(
        equation.primitive.name in rules
        or any(_holds_any(rules, value) for value in equation.params.values())
        for equation in jaxpr.eqns
        if equation.primitive.name not in _KEPT_WHOLE
    )


def _holds_any(rules: Rules, param: Any) -> bool:
    return any(_has_any(rules, part.jaxpr) for part in jax.tree.leaves(param) if _is_program(part))


def _is_program(part: Any) -> bool:
    return isinstance(part, ClosedJaxpr)
