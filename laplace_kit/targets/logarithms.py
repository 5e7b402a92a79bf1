"""Logarithms of probabilities that may be zero."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def finite_log(probs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return logarithms, of zero as of the smallest normal number."""
    return jnp.log(jnp.maximum(probs, jnp.finfo(probs.dtype).tiny))


def entropy(probs: Float[Array, "*batch C"]) -> Float[Array, "*batch"]:
    """Return the entropies of distributions, in nats."""
    # Rounding may leave a probability just below zero, of which the entropy is minus infinity.
    return jnp.sum(jax.scipy.special.entr(jnp.where(probs < 0, 0, probs)), axis=-1)
