"""Links in closed form: logits whose softmax approximates the class probabilities.

Each takes the mean `(N, C)` and the variances `(N, C)` or covariances `(N, C, C)` of Gaussian
logits, in float32 or better; `link.py` has the formulas and their sources.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The logistic function is nearest to the normal CDF of a variance 8 / pi (MacKay, 1992).
PROBIT_SCALE = math.pi / 8


def _variances(cov: Float[Array, "N C"] | Float[Array, "N C C"]) -> Float[Array, "N C"]:
    """Return the variances, at least zero: rounding may make them negative."""
    return jnp.maximum(cov if cov.ndim == 2 else jnp.diagonal(cov, axis1=1, axis2=2), 0)


@jax.jit
def probit_logits(
    mean: Float[Array, "N C"], cov: Float[Array, "N C"] | Float[Array, "N C C"]
) -> Float[Array, "N C"]:
    """Return each mean divided by the square root of one plus its scaled variance."""
    return mean / jnp.sqrt(1 + PROBIT_SCALE * _variances(cov))


@jax.jit
@jax.vmap
def bridge_logits(
    mean: Float[Array, " C"], cov: Float[Array, " C"] | Float[Array, "C C"]
) -> Float[Array, " C"]:
    """Return the logarithms of the parameters of the Laplace bridge's Dirichlet."""
    num_classes = mean.shape[0]
    tiny = jnp.finfo(mean.dtype).tiny
    rounding = num_classes * jnp.finfo(mean.dtype).eps

    var, row_sums = (cov, cov) if cov.ndim == 1 else (jnp.diagonal(cov), cov.sum(axis=1))
    # The result does not depend on the scale of S: divided out, it cannot over- or underflow.
    scale = jnp.max(var)
    certain = scale < tiny
    divisor = jnp.where(certain, 1, scale)
    var, row_sums = var / divisor, row_sums / divisor
    total = row_sums.sum()

    sum_is_certain = total <= rounding
    gain = jnp.where(
        sum_is_certain, 1 / num_classes, row_sums / jnp.where(sum_is_certain, 1, total)
    )
    mean = mean - gain * mean.sum()
    # Where the difference is mere rounding, replace it by a bound of its size: it is a divisor.
    var = jnp.maximum(var - gain * row_sums, jnp.maximum(rounding * var, tiny))

    log_constant = math.log1p(-2 / num_classes) if num_classes > 2 else -math.inf
    log_exponential = mean + jax.nn.logsumexp(-mean) - 2 * math.log(num_classes)
    log_alpha = jnp.logaddexp(log_constant, log_exponential) - jnp.log(var)
    return jnp.where(certain, mean, log_alpha)


@jax.jit
@jax.vmap
def mean_field_2_logits(
    mean: Float[Array, " C"], cov: Float[Array, " C"] | Float[Array, "C C"]
) -> Float[Array, " C"]:
    """Return the scalar probit of each pair of logits, with their covariance."""
    full = jnp.diag(cov) if cov.ndim == 1 else cov
    var = jnp.diagonal(full)
    gap = mean[None, :] - mean[:, None]
    gap_var = jnp.maximum(var[None, :] + var[:, None] - 2 * full, 0)  # rounding may be below 0
    scaled = gap / jnp.sqrt(1 + PROBIT_SCALE * gap_var)
    return -jax.nn.logsumexp(scaled, axis=1)


def mean_field_1_logits(
    mean: Float[Array, "N C"], cov: Float[Array, "N C"] | Float[Array, "N C C"]
) -> Float[Array, "N C"]:
    """Return the same from variances only."""
    return mean_field_2_logits(mean, _variances(cov))


LOGITS = {
    "probit": probit_logits,
    "bridge": bridge_logits,
    "mean_field_1": mean_field_1_logits,
    "mean_field_2": mean_field_2_logits,
}
