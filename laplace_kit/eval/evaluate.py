"""Metrics of a predictive on labelled data, by likelihood; entries without a target drop out."""

from functools import partial, singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num, PyTree

from laplace_kit.eval import metrics
from laplace_kit.eval.losses import predictive_losses as predictive_losses
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
def evaluate(
    likelihood: Likelihood,
    predictive: Predictive,
    y: PyTree,
    weights: Float[ArrayLike, " N"] | None = None,
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
    weights
        What each example counts in the means; `None` for one each.

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
    return {"loss": float(jnp.average(losses, weights=weights))}


@evaluate.register
def _(likelihood: Masked, predictive, y, weights=None):
    of_its_kind = evaluate.dispatch(type(likelihood.likelihood))
    return of_its_kind(likelihood, predictive, y, weights)


@evaluate.register(Categorical)
@evaluate.register(Bernoulli)
def _(likelihood, predictive, y, weights=None):
    rows = weights_of_rows(likelihood, predictive, y, weights)
    found = classification_metrics(*as_classes(likelihood, predictive, y), weights=rows)
    return found | {"nll": float(negative_log_likelihood(likelihood, predictive, y, weights))}


@evaluate.register(Gaussian)
@evaluate.register(MultivariateGaussian)
@evaluate.register(HeteroscedasticGaussian)
def _(likelihood, predictive, y, weights=None):
    mean, var, targets, rows = _numbers(likelihood, predictive, y, weights)
    found = regression_metrics(mean, jnp.sqrt(var), targets, weights=rows)
    return found | {"nll": float(negative_log_likelihood(likelihood, predictive, y, weights))}


@evaluate.register(Poisson)
def _(likelihood, predictive, y, weights=None):
    mean, var, counts, rows = _numbers(likelihood, predictive, y, weights)
    return {
        "nll": float(negative_log_likelihood(likelihood, predictive, y, weights)),
        "rmse": float(metrics.rmse(mean, counts, weights=rows)),
        "chi_squared": float(metrics.chi_squared(mean, var, counts, weights=rows)),
    }


# --- the negative log-likelihood ------------------------------------------------------------------


@jax.jit
def negative_log_likelihood(
    likelihood: Likelihood,
    predictive: Predictive,
    y: PyTree,
    weights: Float[ArrayLike, " N"] | None = None,
) -> Float[Array, ""]:
    r"""Return the mean of $-\log p(y \mid x, D)$, in nats.

    Of classification the mean is over labels, of regression and counts over examples, whose
    outputs are summed. What is missing, entries that are masked or ignored and examples of nothing
    else, is not counted.

    Parameters
    ----------
    likelihood, predictive, y, weights
        As for `evaluate`. Soft labels give the cross-entropy; labels are never smoothed or weighted
        by class.

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
    observed = _observed(likelihood, predictive, y).reshape(len(losses), -1)
    totals = jnp.sum(jnp.where(observed, losses.reshape(len(losses), -1), 0), axis=1)
    if not isinstance(kind, Categorical | Bernoulli):
        observed = observed.any(axis=1, keepdims=True)
    weights = jnp.ones(len(losses), losses.dtype) if weights is None else weights
    valid = jax.vmap(likelihood.is_valid)(predictive.f_mean, y).all()
    mean = jnp.sum(weights * totals) / jnp.sum(weights * jnp.sum(observed, axis=1))
    return jnp.where(valid, mean, jnp.nan)


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


def weights_of_rows(
    likelihood: Likelihood, predictive: Predictive, y: PyTree, weights: ArrayLike | None
) -> Float[np.ndarray, " M"] | None:
    """Return the weight of each row of `as_classes`, that of its example; `None` without any."""
    if weights is None:
        return None
    seen = np.asarray(_observed(likelihood, predictive, y))
    each = np.asarray(weights).reshape(-1, *(1,) * (seen.ndim - 1))
    return np.broadcast_to(each, seen.shape)[seen]


def class_log_probs(
    likelihood: Likelihood, predictive: Predictive, y: PyTree
) -> Float[np.ndarray, "M C"] | None:
    """Return the exact logarithms of the probabilities of `as_classes`; `None` if not known."""
    if predictive.logits is None:
        return None
    kind, _ = unmasked(likelihood, y)
    logs = _log_probs(predictive.logits, isinstance(kind, Bernoulli))
    return np.asarray(logs)[np.asarray(_observed(likelihood, predictive, y))]


@partial(jax.jit, static_argnames="is_binary")
def _log_probs(logits: Float[Array, "..."], is_binary: bool) -> Float[Array, "... C"]:
    if is_binary:
        logits = jnp.stack([jnp.zeros_like(logits), logits], axis=-1)
    return jax.nn.log_softmax(logits)


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


def _numbers(likelihood, predictive, y, weights) -> tuple[Array, Array, Array, Any]:
    """Return mean, variance and targets as rows, and the weights of these."""
    of_rows = partial(observed_rows, likelihood, predictive, y)
    _, targets = unmasked(likelihood, y)
    if isinstance(likelihood, Masked):
        weights = weights_of_rows(likelihood, predictive, y, weights)
    return of_rows(predictive.mean), of_rows(predictive.var), of_rows(targets), weights


def _observed(likelihood: Likelihood, predictive: Predictive, y: PyTree) -> Bool[Array, "N ..."]:
    """Tell which entries have a target; for a likelihood without entries, which examples."""
    if isinstance(likelihood, Factorized):
        return jax.vmap(likelihood.observed)(predictive.f_mean, y)
    return jnp.ones(len(predictive.f_mean), bool)
