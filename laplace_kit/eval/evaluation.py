"""Metrics of a predictive on labelled data; entries without a target are left out."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num, PyTree
from scipy import special

from laplace_kit.eval import metrics
from laplace_kit.eval.predictive import Predictive
from laplace_kit.eval.report import classification_metrics, regression_metrics
from laplace_kit.host import fetch, fetch_array
from laplace_kit.likelihood import Factorized, Likelihood
from laplace_kit.likelihood.base import check_targets
from laplace_kit.likelihood.masked import has_mask, targets_without_mask
from laplace_kit.targets.base import LabelTargets, NoTargets, NumberTargets
from laplace_kit.targets.binary import BinaryTargets
from laplace_kit.targets.crps import crps


def evaluate(
    likelihood: Likelihood,
    predictive: Predictive,
    y: PyTree,
    weights: Float[ArrayLike, " N"] | None = None,
) -> dict[str, float]:
    """Return the metrics that suit the distribution of the targets, as plain numbers.

    Parameters
    ----------
    likelihood
        The likelihood, which determines the shape of targets and which are missing.
    predictive
        For N inputs. The metrics depend on its targets: classes (`nll`, `accuracy`, `ece`, `brier`,
        ...), normal numbers (`nll`, `rmse`, `crps`, `chi_squared`, `coverage_90`), other numbers
        (`nll`, `rmse`, `chi_squared`, `coverage_90`), counts (`nll`, `rmse`, `chi_squared`);
        without a distribution the likelihood's own `loss` at the mean outputs. `chi_squared` is
        left out if a variance is infinite.
    y
        Their targets, as the likelihood takes them.
    weights
        The weight of each example in the means; `None` for one each.

    Returns
    -------
    metrics
        Means by name: over labels for classification, over entries for regression, and over
        examples for the `nll` of regression and counts; see `negative_log_likelihood`.

    Raises
    ------
    ValueError
        If targets do not match the outputs, or no target was observed.
    """
    targets = predictive.targets
    if isinstance(targets, NoTargets):
        losses = jax.vmap(likelihood.negative_log_prob)(predictive.f_mean, y)
        return {"loss": float(jnp.average(losses, weights=weights))}
    nll = {"nll": float(negative_log_likelihood(likelihood, predictive, y, weights))}
    if isinstance(targets, LabelTargets):
        rows = weights_of_rows(likelihood, predictive, y, weights)
        found = classification_metrics(*as_classes(likelihood, predictive, y), weights=rows)
        return found | nll
    mean, var, values, rows = _numbers(likelihood, predictive, y, weights)
    if targets.is_normal:
        return regression_metrics(mean, jnp.sqrt(var), values, weights=rows) | nll
    found = {"rmse": float(metrics.rmse(mean, values, weights=rows))}
    if np.isfinite(fetch(var)).all():  # heavy tails may have no variance
        found["chi_squared"] = float(metrics.chi_squared(mean, var, values, weights=rows))
    if targets.is_discrete:
        return nll | found
    low, high = (observed_rows(likelihood, predictive, y, end) for end in predictive.interval(0.9))
    inside = (fetch(low) <= fetch(values)) & (fetch(values) <= fetch(high))
    return nll | found | {"coverage_90": float(np.average(inside.mean(axis=1), weights=rows))}


# --- the negative log-likelihood ------------------------------------------------------------------


@jax.jit
def negative_log_likelihood(
    likelihood: Likelihood,
    predictive: Predictive,
    y: PyTree,
    weights: Float[ArrayLike, " N"] | None = None,
) -> Float[Array, ""]:
    r"""Return the mean of $-\log p(y \mid x, D)$, in nats.

    For classification the mean is over labels; for regression and counts it is over examples, whose
    outputs are summed. Masked and ignored entries are not counted, nor are examples that have no
    other entries.

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
        If the shapes do not match. Values out of range make the result NaN.
    """
    totals, observed = _observed_losses(likelihood, predictive, y)
    if not isinstance(predictive.targets, LabelTargets):
        observed = observed.any(axis=1, keepdims=True)
    weights = jnp.ones(len(totals), totals.dtype) if weights is None else weights
    valid = jax.vmap(likelihood.is_valid)(predictive.f_mean, y).all()
    mean = jnp.sum(weights * totals) / jnp.sum(weights * jnp.sum(observed, axis=1))
    return jnp.where(valid, mean, jnp.nan)


def example_log_probs(
    likelihood: Likelihood, predictive: Predictive, y: PyTree
) -> Float[Array, " N"]:
    r"""Return $\log p(y_n \mid x_n, D)$ of every example in nats, summed over observed entries.

    Parameters
    ----------
    likelihood, predictive, y
        As for `negative_log_likelihood`.
    """
    return -_observed_losses(likelihood, predictive, y)[0]


def _observed_losses(likelihood, predictive, y) -> tuple[Float[Array, " N"], Bool[Array, "N M"]]:
    """Return the sum of each example's losses, and which of them are observed."""
    check_targets(likelihood, predictive.f_mean, y)
    losses = -predictive.targets.log_prob(jnp.asarray(targets_without_mask(likelihood, y)))
    observed = observed_entries(likelihood, predictive, y, losses.shape).reshape(len(losses), -1)
    totals = jnp.sum(jnp.where(observed, losses.reshape(len(losses), -1), 0), axis=1)
    return totals, observed


def mean_crps(
    likelihood: Likelihood,
    predictive: Predictive,
    y: PyTree,
    weights: Float[ArrayLike, " N"] | None = None,
) -> float:
    """Return the mean continuous ranked probability score of numbers or counts, over entries.

    Parameters
    ----------
    likelihood, predictive, y, weights
        As for `evaluate`. Normal targets have a closed form; others cost two quantiles, and the
        distribution function at 112 points, up to 224 for counts.

    Raises
    ------
    TypeError
        If the targets have no distribution function.
    """
    targets = predictive.targets
    if not isinstance(targets, NumberTargets):
        targets.cdf(predictive.f_mean)  # raises
    mean, var, values, rows = _numbers(likelihood, predictive, y, weights)
    if targets.is_normal:
        return float(metrics.crps_gaussian(mean, jnp.sqrt(var), values, weights=rows))
    ends = (end.astype(targets.mean.dtype) for end in predictive.interval(0.9))
    each = crps(targets, jnp.asarray(targets_without_mask(likelihood, y)), *ends)
    scores = fetch(observed_rows(likelihood, predictive, y, each))
    return float(np.average(scores.mean(axis=1), weights=rows))


# --- one row for each target ----------------------------------------------------------------------


def as_classes(
    likelihood: Likelihood, predictive: Predictive, y: PyTree
) -> tuple[Float[Array, "M C"], Num[Array, "M ..."] | Bool[Array, " M"]]:
    """Return class probabilities `(M, C)` and labels: one row for each observed label.

    Output axes other than the classes become rows. A binary label becomes one of two classes, and a
    probability of the label 1 the probabilities of both.
    """
    targets = predictive.targets
    rows = targets.class_probabilities
    seen = fetch(observed_entries(likelihood, predictive, y, rows.shape[:-1]))
    labels = targets_without_mask(likelihood, y)
    # On the host and without `jnp.asarray`, which would need a program for each number of labels.
    rows, labels = (jax.device_put(fetch_array(a)[seen]) for a in (rows, labels))
    is_soft = jnp.issubdtype(labels.dtype, jnp.inexact)
    if isinstance(targets, BinaryTargets) and is_soft:  # probabilities of the label 1
        return rows, jnp.stack([1 - labels, labels], axis=1)
    return rows, labels


def weights_of_rows(
    likelihood: Likelihood, predictive: Predictive, y: PyTree, weights: ArrayLike | None
) -> Num[np.ndarray, " M"] | None:
    """Return the weight of each row of `as_classes`, that of its example; `None` for no weights."""
    if weights is None:
        return None
    targets = predictive.targets
    is_labels = isinstance(targets, LabelTargets)
    entries = targets.class_probabilities.shape[:-1] if is_labels else targets.mean.shape
    seen = fetch(observed_entries(likelihood, predictive, y, entries))
    each = fetch_array(weights).reshape(-1, *(1,) * (seen.ndim - 1))
    return np.broadcast_to(each, seen.shape)[seen]


def class_log_probs(
    likelihood: Likelihood, predictive: Predictive, y: PyTree
) -> Float[np.ndarray, "M C"] | None:
    """Return the exact logarithms of the probabilities of `as_classes`; `None` if not finite."""
    if predictive.logits is None:
        return None
    # On the host, as in `as_classes`.
    logs = special.log_softmax(fetch(predictive.targets.class_logits), axis=-1)
    logs = logs[fetch(observed_entries(likelihood, predictive, y, logs.shape[:-1]))]
    return logs if np.isfinite(logs).all() else None  # a link may give the probability zero


def as_rows(values: Num[ArrayLike, "N ..."]) -> Num[Array, "N C"]:
    """Flatten the outputs' axes to one."""
    return jnp.asarray(values).reshape(len(values), -1)


def observed_rows(
    likelihood: Likelihood, predictive: Predictive, y: PyTree, values: Num[ArrayLike, "N ..."]
) -> Num[Array, "M C"]:
    """Return values of the targets' shape as `as_rows`; with a mask, a row per observed entry.

    Parameters
    ----------
    likelihood, predictive, y
        As for `evaluate`.
    values
        An array of the targets' shape.
    """
    if not has_mask(likelihood):
        return as_rows(values)
    seen = fetch(observed_entries(likelihood, predictive, y, values.shape))
    return jnp.asarray(fetch_array(values)[seen][:, None])


def _numbers(likelihood, predictive, y, weights) -> tuple[Array, Array, Array, Any]:
    """Return mean, variance and targets as rows, and the weights of the rows."""
    rows = partial(observed_rows, likelihood, predictive, y)
    targets = targets_without_mask(likelihood, y)
    if has_mask(likelihood):
        weights = weights_of_rows(likelihood, predictive, y, weights)
    return rows(predictive.mean), rows(predictive.var), rows(targets), weights


def observed_entries(
    likelihood: Likelihood, predictive: Predictive, y: PyTree, entries: tuple[int, ...]
) -> Bool[Array, "N ..."]:
    """Return which entries have a target; all of them, for a likelihood without entries."""
    if isinstance(likelihood, Factorized):
        return jax.vmap(likelihood.observed)(predictive.f_mean, y)
    return jnp.ones(entries, bool)
