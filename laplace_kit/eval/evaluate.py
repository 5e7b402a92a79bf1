"""Metrics of a predictive on labelled data, by likelihood; entries without a target drop out."""

import math
from functools import partial, singledispatch

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, Num, PyTree

from laplace_kit import tree
from laplace_kit.eval import metrics
from laplace_kit.eval.predictive import Predictive
from laplace_kit.eval.report import classification_metrics, regression_metrics
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    Factorized,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    Masked,
    MultivariateGaussian,
    Poisson,
    check_targets,
    unmasked,
)


@singledispatch
def evaluate(likelihood: Likelihood, predictive: Predictive, y: PyTree) -> dict[str, float]:
    """Return the metrics that suit a likelihood, as plain numbers.

    Parameters
    ----------
    likelihood
        Decides which metrics: classification (`nll`, `accuracy`, `ece`, `brier`, ...), regression
        (`nll`, `rmse`, `crps`, `chi_squared`, `coverage_90`), counts (`nll`, `rmse`,
        `chi_squared`); for any other likelihood its own `loss` at the mean outputs.
    predictive
        For N inputs.
    y
        Their targets, as the likelihood takes them.

    Returns
    -------
    metrics
        Means by name: of classification over labels, of regression over entries, `nll` of
        regression and counts over examples; see `negative_log_likelihood`.

    Raises
    ------
    ValueError
        If targets and outputs do not go together, or nothing was observed.
    """
    losses = jax.vmap(likelihood.negative_log_prob)(predictive.f_mean, y)
    return {"loss": float(losses.mean())}


@evaluate.register
def _(likelihood: Masked, predictive, y):
    of_its_kind = evaluate.dispatch(type(likelihood.likelihood))
    return of_its_kind(likelihood, predictive, y)


@evaluate.register(Categorical)
@evaluate.register(Bernoulli)
def _(likelihood, predictive, y):
    found = classification_metrics(*as_classes(likelihood, predictive, y))
    return found | {"nll": float(negative_log_likelihood(likelihood, predictive, y))}


@evaluate.register(Gaussian)
@evaluate.register(MultivariateGaussian)
@evaluate.register(HeteroscedasticGaussian)
def _(likelihood, predictive, y):
    mean, var, targets = _numbers(likelihood, predictive, y)
    found = regression_metrics(mean, jnp.sqrt(var), targets)
    return found | {"nll": float(negative_log_likelihood(likelihood, predictive, y))}


@evaluate.register(Poisson)
def _(likelihood, predictive, y):
    mean, var, counts = _numbers(likelihood, predictive, y)
    return {
        "nll": float(negative_log_likelihood(likelihood, predictive, y)),
        "rmse": float(metrics.rmse(mean, counts)),
        "chi_squared": float(metrics.chi_squared(mean, var, counts)),
    }


# --- the negative log-likelihood ------------------------------------------------------------------


@jax.jit
def negative_log_likelihood(
    likelihood: Likelihood, predictive: Predictive, y: PyTree
) -> Float[Array, ""]:
    r"""Return the mean of $-\log p(y \mid x, D)$, in nats.

    Of classification the mean is over labels, of regression and counts over examples, whose
    outputs are summed. What is missing, entries that are masked or ignored and examples of nothing
    else, is not counted.

    Parameters
    ----------
    likelihood, predictive, y
        As for `evaluate`. Soft labels give the cross-entropy; labels are never smoothed.

    Raises
    ------
    TypeError
        If the likelihood defines no predictive distribution of the targets.
    ValueError
        If the shapes do not go together. Values out of range make the answer NaN.
    """
    check_targets(likelihood, predictive.f_mean, y)
    kind, targets = unmasked(likelihood, y)
    losses = predictive_losses(kind, predictive, jnp.asarray(targets))
    observed = _observed(likelihood, predictive, y)
    total = jnp.sum(jnp.where(observed, losses, 0))
    if not isinstance(kind, Categorical | Bernoulli):
        observed = observed.reshape(len(observed), -1).any(axis=1)
    valid = jax.vmap(likelihood.is_valid)(predictive.f_mean, y).all()
    return jnp.where(valid, total / jnp.sum(observed), jnp.nan)


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
    """Take the loss of the predictive's own logits; of probabilities alone, their logarithms."""
    if predictive.logits is not None:
        unsmoothed = tree.replace(likelihood, label_smoothing=0.0)
        return jax.vmap(unsmoothed.entry_losses)(predictive.logits, y)
    probs = predictive.probs
    if y.shape != probs.shape:
        y = jax.nn.one_hot(y, probs.shape[-1], dtype=probs.dtype)
    return -jnp.sum(y * _log(probs), axis=-1)


@predictive_losses.register
def _(likelihood: Bernoulli, predictive, y):
    if predictive.logits is not None:
        return jax.vmap(likelihood.entry_losses)(predictive.logits, y)
    return -y * _log(predictive.probs) - (1 - y) * _log(1 - predictive.probs)


@predictive_losses.register(Gaussian)
@predictive_losses.register(HeteroscedasticGaussian)
def _(likelihood, predictive, y):
    return -jax.scipy.stats.norm.logpdf(y, predictive.mean, jnp.sqrt(predictive.var))


@predictive_losses.register
def _(likelihood: MultivariateGaussian, predictive, y):
    """Take the outputs of an example together; without `f_cov` they are taken as uncorrelated."""
    residual, cov = as_rows(y - predictive.mean), predictive.f_cov
    cov = jax.vmap(jnp.diag)(as_rows(predictive.f_var)) if cov is None else cov
    cov = cov + jnp.asarray(likelihood.noise_covariance, cov.dtype)
    with jax.default_matmul_precision("highest"):
        factor = jnp.linalg.cholesky(cov)
        white = solve_triangular(factor, residual[..., None], lower=True)[..., 0]
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)
    num_outputs = residual.shape[1]
    return 0.5 * (jnp.sum(white**2, axis=1) + log_det + num_outputs * math.log(2 * math.pi))


@predictive_losses.register
def _(likelihood: Poisson, predictive, y):
    """Integrate the rate out by 32-point Gauss-Hermite quadrature around the mode of each output.

    Of large counts the integrand is far narrower than the outputs' distribution: nodes laid out for
    the latter miss it.
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


def _log(probs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the logarithm of at least the smallest normal number, as the metrics do."""
    return jnp.log(jnp.maximum(probs, jnp.finfo(probs.dtype).tiny))


# --- one row for each target ----------------------------------------------------------------------


def as_classes(
    likelihood: Likelihood, predictive: Predictive, y: PyTree
) -> tuple[Float[Array, "M C"], Num[Array, "M ..."] | Bool[Array, " M"]]:
    """Return class probabilities `(M, C)` and labels: one row for each thing that has a label.

    Output axes besides the classes become rows, and what is missing is left out. A binary label
    becomes one of two classes, a probability of one the probabilities of both.
    """
    seen = np.asarray(_observed(likelihood, predictive, y))
    kind, labels = unmasked(likelihood, y)
    # On the host, and no `jnp.asarray`: either would need a program for each number of labels.
    probs, labels = (jax.device_put(np.asarray(a)[seen]) for a in (predictive.probs, labels))
    if not isinstance(kind, Bernoulli):
        return probs, labels
    is_soft = jnp.issubdtype(labels.dtype, jnp.inexact)
    return two_classes(probs), two_classes(labels) if is_soft else labels


def two_classes(probs: Float[Array, "*shape"]) -> Float[Array, "M 2"]:
    """Return the probabilities of 0 and of 1 for every binary output."""
    flat = probs.reshape(-1)
    return jnp.stack([1 - flat, flat], axis=1)


def as_rows(values: Num[Array, "N ..."]) -> Num[Array, "N C"]:
    """Flatten the outputs' axes to one."""
    return jnp.asarray(values).reshape(len(values), -1)


def observed_rows(
    likelihood: Likelihood, predictive: Predictive, y: PyTree, values: Num[Array, "N ..."]
) -> Num[Array, "M C"]:
    """Return values for each entry of the targets as `as_rows`; under a mask a row for each seen.

    Parameters
    ----------
    likelihood, predictive, y
        As for `evaluate`.
    values
        Of the targets' shape.
    """
    if not isinstance(likelihood, Masked):
        return as_rows(values)
    seen = np.asarray(_observed(likelihood, predictive, y))
    return jnp.asarray(np.asarray(values)[seen][:, None])


def _numbers(likelihood, predictive, y) -> tuple[Array, Array, Array]:
    """Return mean, variance and targets as rows."""
    of_rows = partial(observed_rows, likelihood, predictive, y)
    _, targets = unmasked(likelihood, y)
    return of_rows(predictive.mean), of_rows(predictive.var), of_rows(targets)


def _observed(likelihood: Likelihood, predictive: Predictive, y: PyTree) -> Bool[Array, "N ..."]:
    """Tell which entries have a target; for a likelihood without entries, which examples."""
    if isinstance(likelihood, Factorized):
        return jax.vmap(likelihood.observed)(predictive.f_mean, y)
    return jnp.ones(len(predictive.f_mean), bool)
