"""The negative log probability of each target under a predictive, by likelihood."""

import math
from functools import singledispatch

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from laplace_kit import tree
from laplace_kit.eval.logarithms import finite_log
from laplace_kit.eval.outputs import Predictive
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    MultivariateGaussian,
    Poisson,
)


@singledispatch
def predictive_losses(
    likelihood: Likelihood, predictive: Predictive, y: Num[Array, "N ..."]
) -> Float[Array, "N *entries"]:
    r"""Return $-\log p(y_i \mid x, D)$ for every entry of the targets; open to registration.

    Raises
    ------
    TypeError
        If the likelihood defines no predictive distribution of the targets.
    """
    raise TypeError(
        f"Found a {type(likelihood).__name__} likelihood, which defines no predictive distribution "
        "of the targets, expected a Gaussian one, Poisson, Categorical or Bernoulli; tune by "
        "evidence."
    )


@predictive_losses.register
def _(likelihood: Categorical, predictive, y):
    return class_losses(likelihood, predictive.probs, predictive.logits, y)


@predictive_losses.register
def _(likelihood: Bernoulli, predictive, y):
    if predictive.logits is not None:
        return jax.vmap(likelihood.entry_losses)(predictive.logits, y)
    y = y.astype(predictive.probs.dtype)  # -y of an unsigned label is no number below zero
    log_p, log_q = finite_log(predictive.probs), finite_log(1 - predictive.probs)
    return -y * log_p - (1 - y) * log_q


@predictive_losses.register(Gaussian)
@predictive_losses.register(HeteroscedasticGaussian)
def _(likelihood, predictive, y):
    return -jax.scipy.stats.norm.logpdf(y, predictive.mean, jnp.sqrt(predictive.var))


@predictive_losses.register
def _(likelihood: MultivariateGaussian, predictive, y):
    """Take the outputs of an example together; without `f_cov` they are taken as uncorrelated."""
    residual = (y - predictive.mean).reshape(len(y), -1)
    white, factor = whitened(likelihood, predictive, residual)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)
    num_outputs = white.shape[1]
    return 0.5 * (jnp.sum(white**2, axis=1) + log_det + num_outputs * math.log(2 * math.pi))


def whitened(
    likelihood: MultivariateGaussian, predictive: Predictive, residual: Float[Array, "N C"]
) -> tuple[Float[Array, "N C"], Float[Array, "N C C"]]:
    """Return residuals whitened by their predictive covariances, and the Cholesky factors."""
    cov = predictive.f_cov
    cov = jax.vmap(jnp.diag)(predictive.f_var.reshape(residual.shape)) if cov is None else cov
    cov = cov + jnp.asarray(likelihood.noise_covariance, cov.dtype)
    with jax.default_matmul_precision("highest"):
        factor = jnp.linalg.cholesky(cov)
        white = jax.scipy.linalg.solve_triangular(factor, residual[..., None], lower=True)[..., 0]
    return white, factor


@predictive_losses.register
def _(likelihood: Poisson, predictive, y):
    """Integrate the rate out by 32-point Gauss-Hermite quadrature around the mode of each output.

    For large counts the integrand is far narrower than the outputs' distribution: nodes laid out
    for the latter miss it.
    """
    f_mean, f_std = predictive.f_mean, jnp.sqrt(predictive.f_var)
    nodes, weights = np.polynomial.hermite_e.hermegauss(32)
    log_weights = jnp.asarray(np.log(weights / weights.sum()) + nodes**2 / 2, f_mean.dtype)
    counts = y.astype(f_mean.dtype)
    mode, width = jax.lax.stop_gradient(_mode_of_log_rate(f_mean, f_std, counts))
    z = mode[..., None] + width[..., None] * jnp.asarray(nodes, f_mean.dtype)
    f, counts = f_mean[..., None] + f_std[..., None] * z, counts[..., None]
    log_p = counts * f - jnp.exp(f) - jax.lax.lgamma(counts + 1)
    return -jax.nn.logsumexp(log_p - z**2 / 2 + log_weights, axis=-1) - jnp.log(width)


def _mode_of_log_rate(
    mean: Float[Array, "*shape"], std: Float[Array, "*shape"], counts: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Return the z of greatest `p(count | mean + std z) N(z | 0, 1)`, and its width there."""

    def rate(z):
        return jnp.exp(jnp.minimum(mean + std * z, 80))  # finite in float32

    def newton(_, z):
        r = rate(z)
        return z - (z + std * (r - counts)) / (1 + std**2 * r)

    # Not below the root of a convex function Newton's steps go down to it and never past.
    of_count = (jnp.log(jnp.maximum(counts, 0)) - mean) / jnp.where(std > 0, std, 1)
    start = jnp.maximum(jnp.minimum(of_count, std * (counts - rate(0.0))), 0)
    z = jax.lax.fori_loop(0, 32, newton, start)
    return z, 1 / jnp.sqrt(1 + std**2 * rate(z))


@jax.jit
def class_losses(
    likelihood: Categorical,
    probs: Float[Array, "N ... C"],
    logits: Float[Array, "N ... C"] | None,
    y: Num[Array, "N ..."],
) -> Float[Array, "N ..."]:
    r"""Return $-\sum_c y_c \log p_c$ for each label: exactly, where logits are known.

    Parameters
    ----------
    likelihood
        Which labels are missing, and have no loss. Labels are neither smoothed nor weighted.
    probs
        The probabilities. Without logits, zero counts as the smallest normal number.
    logits
        Whose softmax they are, if known.
    y
        Integer labels, or distributions over the classes.
    """
    if logits is not None:
        plain = tree.replace(likelihood, label_smoothing=0.0, class_weights=None)
        return jax.vmap(plain.entry_losses)(logits, y)
    if y.shape != probs.shape:
        y = jax.nn.one_hot(y.astype(jnp.int32), probs.shape[-1], dtype=probs.dtype)
    return -jnp.sum(y * finite_log(probs), axis=-1)
