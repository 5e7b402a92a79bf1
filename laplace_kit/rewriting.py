"""Operations of a program replaced one by one, inside of its loops, branches and calls too."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array, ArrayLike, PyTree

Rules = Mapping[str, Callable[..., Array]]


def rewritten(fn: Callable[..., PyTree], rules: Rules) -> Callable[..., PyTree]:
    """Return a function whose operations of some names are others.

    Parameters
    ----------
    fn
        Of pytrees of arrays, to be called inside of `jit`. Derivative rules of functions in it stay
        in force.
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
            params = {name: _rewritten(rules, value) for name, value in equation.params.items()}
            params = equation.primitive.get_bind_params(params)
            results = equation.primitive.bind(*operands, **params)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))


def _rewritten(rules: Rules, param: Any) -> Any:
    """Return a parameter of an operation: where it is a program, one that is rewritten."""
    if not _holds_any(rules, param):
        return param
    if isinstance(param, tuple):
        return tuple(_rewritten(rules, part) for part in param)
    return jax.make_jaxpr(partial(_evaluate, rules, param))(*param.in_avals)


def _has_any(rules: Rules, jaxpr: Jaxpr) -> bool:
    return any(
        equation.primitive.name in rules
        or any(_holds_any(rules, value) for value in equation.params.values())
        for equation in jaxpr.eqns
    )


def _holds_any(rules: Rules, param: Any) -> bool:
    if isinstance(param, tuple):
        return any(_holds_any(rules, part) for part in param)
    return isinstance(param, ClosedJaxpr) and _has_any(rules, param.jaxpr)
