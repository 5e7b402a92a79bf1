"""Products of matrices that a CPU may compute side by side, where a pass of tangents has them.

Tangents meet nothing but products and sums, which XLA makes one operation of there, from the first
layer to the last: it starts when all of the forward pass is known, and so waits for what only its
last products need.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array, PyTree

from laplace_kit.rewriting import rewritten


def side_by_side(push_forward: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return the same linear function, each of its matrix products an operation of its own.

    Parameters
    ----------
    push_forward
        As `rewritten` takes it. On other devices than a CPU it stays as it is.

    Returns
    -------
    push_forward
        With the same values up to rounding.
    """
    if jax.default_backend() != "cpu":
        return push_forward
    return rewritten(push_forward, {"dot_general": _apart})


def _apart(equation: JaxprEqn, *operands: Array) -> Array:
    """Multiply, and round to the precision there is: to a compiler that is an operation more."""
    product = equation.primitive.bind(*operands, **equation.params)
    if not jnp.issubdtype(product.dtype, jnp.floating):
        return product
    kind = jnp.finfo(product.dtype)
    return jax.lax.reduce_precision(product, kind.nexp, kind.nmant)
