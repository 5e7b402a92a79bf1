"""Convolutions in the one layout that XLA is fast for on a CPU, wherever a program has them.

There XLA brings the derivatives of a convolution into that layout itself, but leaves those in the
body of a loop as they are, and these take ten times as long. So the transpositions are written out.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jaxtyping import Array, ArrayLike, PyTree

_NAME = "conv_general_dilated"


def canonical(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return the same function, its convolutions with channels last and kernels as (H, W, I, O).

    Parameters
    ----------
    fn
        Of pytrees of arrays, to be called inside of `jit`. Convolutions inside of its own loops,
        branches and calls are rewritten too, derivative rules of functions stay in force, and
        results with a sharding of their own are left alone. On other devices than a CPU all stays
        as it is: compilers choose layouts there.

    Returns
    -------
    fn
        With the same values up to rounding, traced twice.
    """
    if jax.default_backend() != "cpu":
        return fn

    def rewritten(*args: PyTree) -> PyTree:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        run = partial(_evaluate, closed) if _has_any(closed.jaxpr) else jaxpr_as_fun(closed)
        outputs = run(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return rewritten


def _evaluate(closed: ClosedJaxpr, *args: ArrayLike) -> list[ArrayLike]:
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = list(map(read, equation.invars))
        if equation.primitive.name == _NAME and equation.params.get("out_sharding") is None:
            results = [_convolve(equation, *operands)]
        else:
            params = {name: _rewritten(value) for name, value in equation.params.items()}
            params = equation.primitive.get_bind_params(params)
            results = equation.primitive.bind(*operands, **params)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))


def _rewritten(param: Any) -> Any:
    """Return a parameter of an operation: where it is a program, one of canonical convolutions."""
    if not _holds_any(param):
        return param
    if isinstance(param, tuple):
        return tuple(map(_rewritten, param))
    return jax.make_jaxpr(partial(_evaluate, param))(*param.in_avals)


def _has_any(jaxpr: Jaxpr) -> bool:
    return any(
        equation.primitive.name == _NAME or any(map(_holds_any, equation.params.values()))
        for equation in jaxpr.eqns
    )


def _holds_any(param: Any) -> bool:
    if isinstance(param, tuple):
        return any(map(_holds_any, param))
    return isinstance(param, ClosedJaxpr) and _has_any(param.jaxpr)


def _convolve(equation: JaxprEqn, lhs: Array, rhs: Array) -> Array:
    """Transpose the operands, convolve, and transpose the result back."""
    lhs_spec, rhs_spec, out_spec = equation.params["dimension_numbers"]
    images, results = _channels_last(lhs_spec), _channels_last(out_spec)
    kernels = (*rhs_spec[2:], rhs_spec[1], rhs_spec[0])
    places = tuple(range(1, lhs.ndim - 1))
    plain = (0, lhs.ndim - 1, *places)
    numbers = jax.lax.ConvDimensionNumbers(
        plain, (lhs.ndim - 1, lhs.ndim - 2, *(place - 1 for place in places)), plain
    )
    params = {**equation.params, "dimension_numbers": numbers}
    found = equation.primitive.bind(
        jax.lax.transpose(lhs, images), jax.lax.transpose(rhs, kernels), **params
    )
    return jax.lax.transpose(found, np.argsort(results))


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    """Return the axes in the order batch, places, channels, from batch, channels, places."""
    return (spec[0], *spec[2:], spec[1])
