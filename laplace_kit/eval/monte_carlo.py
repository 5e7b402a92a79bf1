"""Class probabilities averaged over draws of Gaussian outputs, in the log domain.

A class that is improbable in every draw keeps a finite log probability, where an average of
probabilities would round to zero.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from laplace_kit.targets.expectation import covariance_root as covariance_root
from laplace_kit.targets.expectation import spread_by

# The number of random numbers held at a time: 4 MiB in float32.
_BLOCK_ENTRIES = 2**20


@partial(jax.jit, static_argnames="num_samples")
def average_softmax(
    mean: Float[Array, "N C"],
    cov: Float[Array, "N C"] | Float[Array, "N C C"],
    key: PRNGKeyArray,
    num_samples: int,
) -> Float[Array, "N C"]:
    r"""Return $\log \frac1K \sum_k \mathrm{softmax}(f_k)$ over draws $f_k \sim \mathcal{N}(m, S)$.

    Parameters
    ----------
    mean, cov
        Mean of the logits, and their variances or covariances.
    key, num_samples
        For the draws, K.

    Raises
    ------
    ValueError
        If `num_samples` is not positive.
    """
    spread = spread_by(cov)
    return _log_average(lambda z: jax.nn.log_softmax(mean + spread(z)), mean, key, num_samples)


@partial(jax.jit, static_argnames="num_samples")
def average_sigmoid(
    mean: Float[Array, "*shape"], std: Float[Array, "*shape"], key: PRNGKeyArray, num_samples: int
) -> Float[Array, "*shape"]:
    r"""Return the log odds of $\frac1K \sum_k \sigma(f_k)$ for $f_k \sim \mathcal{N}(m, s^2)$.

    Parameters
    ----------
    mean, std
        The moments of the logits.
    key, num_samples
        As for `average_softmax`, with the same error.
    """

    def log_probs(z):
        f = mean + std * z
        return jnp.stack([jax.nn.log_sigmoid(-f), jax.nn.log_sigmoid(f)])

    log_zero, log_one = _log_average(log_probs, mean, key, num_samples)
    return log_one - log_zero


def _log_average(
    log_probs: Callable, mean: Float[Array, "*shape"], key: PRNGKeyArray, num_samples: int
) -> Float[Array, "..."]:
    """Return the log of the average of `exp(log_probs(z))` over standard normal `z` like `mean`.

    Draws are made in blocks. Every draw has its own key, so that the result does not depend on the
    size of the blocks.
    """
    if num_samples < 1:
        raise ValueError(f"Found num_samples={num_samples}, expected at least 1; 1000 is usual.")
    block = max(1, min(num_samples, _BLOCK_ENTRIES // max(1, mean.size)))
    num_blocks = -(-num_samples // block)

    def draw(index):
        noise = jax.random.normal(jax.random.fold_in(key, index), mean.shape, mean.dtype)
        share = log_probs(noise) - math.log(num_samples)
        return jnp.where(index < num_samples, share, -jnp.inf)  # the last block may be too long

    def add_block(total, indices):
        return jnp.logaddexp(total, jax.nn.logsumexp(jax.vmap(draw)(indices), axis=0)), None

    indices = jnp.arange(num_blocks * block).reshape(num_blocks, block)
    like = jax.eval_shape(log_probs, mean)
    return jax.lax.scan(add_block, jnp.full(like.shape, -jnp.inf, like.dtype), indices)[0]
