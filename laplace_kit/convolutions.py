"""Convolutions in the one layout that XLA is fast for on a CPU, wherever a program has them.

There XLA brings the derivatives of a convolution into that layout itself, but leaves those in the
body of a loop as they are, and these take ten times as long. So the transpositions are written out.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.extend.core import JaxprEqn
from jaxtyping import Array, PyTree

from laplace_kit.rewriting import rewritten


def canonical(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return the same function, its convolutions with channels last and kernels as (H, W, I, O).

    Parameters
    ----------
    fn
        As `rewritten` takes it. Results with a sharding of their own are left alone. On other
        devices than a CPU all stays as it is: compilers choose layouts there.

    Returns
    -------
    fn
        With the same values up to rounding.
    """
    if jax.default_backend() != "cpu":
        return fn
    return rewritten(fn, {"conv_general_dilated": _convolve})


def _convolve(equation: JaxprEqn, lhs: Array, rhs: Array) -> Array:
    """Transpose the operands, convolve, and transpose the result back."""
    if equation.params.get("out_sharding") is not None:
        return equation.primitive.bind(lhs, rhs, **equation.params)
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
