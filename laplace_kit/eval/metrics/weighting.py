r"""Weights of examples, and weighted averages.

Integer-valued weights are *counts*: a weight of three repeats the example three times, a weight of
zero leaves it out. All other weights are *proportions*, whose scale does not matter. Averages are
the same for both. Where the number of examples matters, proportions are scaled to sum to the
effective number of examples, $(\sum_n w_n)^2 / \sum_n w_n^2$ (Kish, 1965).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from laplace_kit.eval.metrics import checks, sums


def checked(
    weights: ArrayLike | None, num: int, dtype: jnp.dtype, name: str = "weights"
) -> Num[Array, " N"]:
    """Return validated weights `(num,)` in a dtype, or integer ones if `weights` is None.

    A `ValueError` is raised for weights of another shape, or that are negative, infinite, NaN or
    all zero. Under `jax.jit`, such values make all weights NaN.
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
    checks.require(valid, found, "finite numbers of at least zero; zero leaves an example out")
    checks.require(positive, f"{name} that sum to zero", "a positive weight for some example")
    return weights


@jax.jit
def _validated(weights: Num[Array, " N"]) -> tuple[Array, Array, Array]:
    """Return the weights, all NaN if invalid; whether all are valid; whether any is positive."""
    valid, positive = jnp.all((weights >= 0) & jnp.isfinite(weights)), jnp.any(weights > 0)
    return jnp.where(valid & positive, weights, jnp.nan), valid, positive


@jax.jit
def as_counts(weights: Num[Array, " N"]) -> Num[Array, " N"]:
    """Return counts unchanged, and proportions scaled to the effective number of examples."""
    if jnp.issubdtype(weights.dtype, jnp.integer):
        return weights
    are_counts = jnp.all(weights == jnp.round(weights))
    total, squares = sums.over_examples(weights), sums.over_examples(weights**2)
    return weights * jnp.where(are_counts, 1, total / squares)


@jax.jit
def mean(values: Float[Array, "N *rest"], weights: Num[Array, " N"]) -> Float[Array, " *rest"]:
    """Return the weighted mean over examples."""
    columns = weights.reshape(-1, *[1] * (values.ndim - 1))
    return sums.over_examples(columns * values) / sums.over_examples(weights)


@jax.jit
def mean_of_all(values: Float[Array, "N *rest"], weights: Num[Array, " N"]) -> Float[Array, ""]:
    """Return the weighted mean over examples and outputs."""
    return jnp.mean(mean(values, weights))
