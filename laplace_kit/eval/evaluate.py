"""Metrics of a predictive on labelled data, by likelihood."""

from functools import singledispatch

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from laplace_kit.eval import metrics
from laplace_kit.eval.predictive import Predictive
from laplace_kit.eval.report import classification_metrics, regression_metrics
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    Poisson,
)


@singledispatch
def evaluate(
    likelihood: Likelihood, predictive: Predictive, y: Num[Array, "N ..."]
) -> dict[str, float]:
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
        Means over examples, by name.
    """
    losses = jax.vmap(likelihood.negative_log_prob)(predictive.f_mean, y)
    return {"loss": float(losses.mean())}


@evaluate.register(Categorical)
@evaluate.register(Bernoulli)
def _(likelihood, predictive, y):
    return classification_metrics(*as_classes(likelihood, predictive, y))


@evaluate.register(Gaussian)
@evaluate.register(HeteroscedasticGaussian)
def _(likelihood, predictive, y):
    mean, std = as_rows(predictive.mean), as_rows(jnp.sqrt(predictive.var))
    return regression_metrics(mean, std, as_rows(y))


@evaluate.register
def _(likelihood: Poisson, predictive, y):
    mean, var, counts = (as_rows(a) for a in (predictive.mean, predictive.var, y))
    return {
        "nll": float(negative_log_likelihood(likelihood, predictive, jnp.asarray(y))),
        "rmse": float(metrics.rmse(mean, counts)),
        "chi_squared": float(metrics.chi_squared(mean, var, counts)),
    }


@singledispatch
def negative_log_likelihood(
    likelihood: Likelihood, predictive: Predictive, y: Num[Array, "N ..."]
) -> Float[Array, ""]:
    r"""Return the mean of $-\log p(y \mid x, D)$ over examples.

    Raises
    ------
    TypeError
        If the likelihood defines no predictive distribution of the targets.
    """
    raise TypeError(
        f"Found a {type(likelihood).__name__} likelihood, which defines no predictive distribution "
        "of the targets, expected Gaussian, Poisson, Categorical or Bernoulli; tune by evidence."
    )


@negative_log_likelihood.register(Categorical)
@negative_log_likelihood.register(Bernoulli)
def _(likelihood, predictive, y):
    return metrics.negative_log_likelihood(*as_classes(likelihood, predictive, y))


@negative_log_likelihood.register(Gaussian)
@negative_log_likelihood.register(HeteroscedasticGaussian)
def _(likelihood, predictive, y):
    return metrics.gaussian_nll(as_rows(predictive.mean), as_rows(predictive.var), as_rows(y))


@negative_log_likelihood.register
def _(likelihood: Poisson, predictive, y):
    """Integrate the rate out by 32-point Gauss-Hermite quadrature for each output."""
    f_mean, f_var = predictive.f_mean, predictive.f_var
    nodes, weights = np.polynomial.hermite_e.hermegauss(32)
    weights = jnp.asarray(np.log(weights / weights.sum()), f_mean.dtype)
    f = f_mean[..., None] + jnp.sqrt(f_var)[..., None] * jnp.asarray(nodes, f_mean.dtype)
    counts = y[..., None].astype(f.dtype)
    log_p = counts * f - jnp.exp(f) - jax.lax.lgamma(counts + 1)
    log_marginal = jax.nn.logsumexp(log_p + weights, axis=-1)
    return -jnp.mean(jnp.sum(log_marginal.reshape(len(y), -1), axis=1))


def as_classes(
    likelihood: Likelihood, predictive: Predictive, y: Num[Array, "N ..."]
) -> tuple[Float[Array, "M C"], Num[Array, "M ..."]]:
    """Return class probabilities `(M, C)` and labels: one row for each thing that has a label.

    Output axes besides the classes become rows; a binary label becomes one of two classes.
    """
    probs, y = predictive.probs, jnp.asarray(y)
    if isinstance(likelihood, Bernoulli):
        return two_classes(probs), jnp.round(y).astype(jnp.int32).reshape(-1)
    num_classes = probs.shape[-1]
    soft = y.shape == probs.shape
    return probs.reshape(-1, num_classes), y.reshape(-1, num_classes) if soft else y.reshape(-1)


def two_classes(probs: Float[Array, "*shape"]) -> Float[Array, "M 2"]:
    """Return the probabilities of 0 and of 1 for every binary output."""
    flat = probs.reshape(-1)
    return jnp.stack([1 - flat, flat], axis=1)


def as_rows(values: Num[Array, "N ..."]) -> Num[Array, "N C"]:
    """Flatten the outputs' axes to one."""
    return jnp.asarray(values).reshape(len(values), -1)
