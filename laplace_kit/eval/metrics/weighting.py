r"""Weights of examples: what they mean, and averages with them.

Weights that are whole numbers *count*: a weight of three is the example three times over, a weight
of zero its absence. Any others are *proportions*, whose scale means nothing. For an average the two
are the same; where the number of examples matters, proportions are scaled to sum to $(\sum_n w_n)^2
/ \sum_n w_n^2$, the number of equally weighted examples whose mean is as precise (Kish, 1965).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from laplace_kit.eval.metrics import checks, sums


def checked(
    weights: ArrayLike | None, num: int, dtype: jnp.dtype, name: str = "weights"
) -> Num[Array, " N"]:
    """Return weights as an array of this dtype, or the integers 1 where there are none.

    Parameters
    ----------
    weights
        Non-negative, `(N,)`, not all zero; None for one each.
    num
        Number of examples.
    dtype
        That of the metric's arrays.
    name
        The argument's name, for messages.

    Raises
    ------
    ValueError
        If weights have another shape, are negative, infinite or NaN, or sum to zero. Where values
        are not known, such weights all become NaN.
    """
    if weights is None:
        return jax.device_put(np.ones(num, np.int32))  # which needs no program
    weights = jnp.asarray(weights, dtype)
    if weights.shape != (num,):
        raise ValueError(
            f"Found {name} of shape {weights.shape} for {num} examples, expected one number for "
            f"each, ({num},)."
        )
    weights, valid, positive = _validated(weights)
    found = f"{name} with an entry that is negative or not finite"
    checks.require(valid, found, "numbers of at least zero; for examples to leave out, zero")
    checks.require(positive, f"{name} that sum to zero", "some examples that are not left out")
    return weights


@jax.jit
def _validated(weights: Num[Array, " N"]) -> tuple[Array, Array, Array]:
    """Return the weights, NaN if not valid, and whether all are and whether any is positive."""
    valid, positive = jnp.all((weights >= 0) & jnp.isfinite(weights)), jnp.any(weights > 0)
    return jnp.where(valid & positive, weights, jnp.nan), valid, positive


@jax.jit
def as_counts(weights: Num[Array, " N"]) -> Num[Array, " N"]:
    """Return counts as they are, and proportions in numbers of examples that tell as much."""
    if jnp.issubdtype(weights.dtype, jnp.integer):
        return weights
    are_counts = jnp.all(weights == jnp.round(weights))
    total, squares = sums.over_examples(weights), sums.over_examples(weights**2)
    return weights * jnp.where(are_counts, 1, total / squares)


@jax.jit
def mean(values: Float[Array, "N *rest"], weights: Num[Array, " N"]) -> Float[Array, " *rest"]:
    """Average over examples."""
    columns = weights.reshape(-1, *[1] * (values.ndim - 1))
    return sums.over_examples(columns * values) / sums.over_examples(weights)


@jax.jit
def mean_of_all(values: Float[Array, "N *rest"], weights: Num[Array, " N"]) -> Float[Array, ""]:
    """Average over examples and outputs."""
    return jnp.mean(mean(values, weights))
