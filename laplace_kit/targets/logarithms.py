"""Logarithms of probabilities that may be zero, and of ratios of gamma functions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.jit
def finite_log(probs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return logarithms, with zero replaced by the smallest normal number."""
    return jnp.log(jnp.maximum(probs, jnp.finfo(probs.dtype).tiny))


@jax.jit
def entropy(probs: Float[Array, "*batch C"]) -> Float[Array, "*batch"]:
    """Return the entropies of distributions, in nats."""
    # Rounding may leave a probability just below zero, whose entropy would be minus infinity.
    return jnp.sum(jax.scipy.special.entr(jnp.where(probs < 0, 0, probs)), axis=-1)


def log_gamma_ratio(x: Float[Array, "..."], d: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""Return $\log \Gamma(x + d) - \log \Gamma(x)$ for $d \ge 0$, accurate for large arguments.

    By Stirling's series from 20 on, with cancelling terms subtracted analytically.
    """
    large = jnp.maximum(x, 20.0)
    total = large + d

    def series(z):
        return (1 / 12 - (1 / 360 - (1 / 1260 - 1 / (1680 * z**2)) / z**2) / z**2) / z

    stirling = (large - 0.5) * jnp.log1p(d / large) + d * (jnp.log(total) - 1)
    stirling += series(total) - series(large)
    small = jnp.minimum(x, 20.0)
    return jnp.where(x > 20, stirling, jax.lax.lgamma(small + d) - jax.lax.lgamma(small))
