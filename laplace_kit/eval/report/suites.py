"""All metrics of a report in one compiled program, for several predictors at once."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from laplace_kit.eval import metrics
from laplace_kit.eval.metrics.inputs import in_own_precision
from laplace_kit.eval.report.registry import METRICS

Pairs = tuple[tuple[int, int], ...]  # indices of predictors: the first minus the second
Values = dict[str, Array]


@in_own_precision
def classification_metrics(
    probs: Float[ArrayLike, "N C"], y: ArrayLike, *, weights: ArrayLike | None = None
) -> dict[str, float]:
    """Return accuracy, mean confidence, NLL, ECE, MCE, ACE and Brier score of a classifier.

    Parameters
    ----------
    probs
        Probabilities, `(N, C)`.
    y
        Labels, `(N,)`, or one-hot or soft labels, `(N, C)`.
    weights
        What each example counts, `(N,)`; `None` for one each.

    Returns
    -------
    dict
        `accuracy`, `confidence` (the mean of the largest probability), `nll` (nats), `ece`, `mce`,
        `ace` and `brier`.

    Raises
    ------
    ValueError
        If the shapes are inconsistent, or the probabilities or labels are not valid.
    """
    return {
        "accuracy": float(metrics.accuracy(probs, y, weights=weights)),
        "confidence": float(np.average(np.asarray(probs, float).max(axis=1), weights=weights)),
        "nll": float(metrics.negative_log_likelihood(probs, y, weights=weights)),
        "ece": float(metrics.expected_calibration_error(probs, y, weights=weights)),
        "mce": float(metrics.maximum_calibration_error(probs, y, weights=weights)),
        "ace": float(metrics.adaptive_calibration_error(probs, y, weights=weights)),
        "brier": float(metrics.brier_score(probs, y, weights=weights)),
    }


@in_own_precision
def regression_metrics(
    mean: Float[ArrayLike, "N C"],
    std: Float[ArrayLike, "N C"],
    y: ArrayLike,
    *,
    weights: ArrayLike | None = None,
) -> dict[str, float]:
    """Return RMSE, NLL, CRPS, coverage of the central 90% intervals and chi-squared.

    Parameters
    ----------
    mean, std, y
        Predictive mean, predictive standard deviation (noise included) and targets, `(N, C)` each.
    weights
        What each example counts, `(N,)`; `None` for one each.

    Returns
    -------
    dict
        `rmse` and `crps` (units of `y`), `nll` (nats, summed over outputs), `coverage_90` (a
        fraction) and `chi_squared` (1 if the variances are right on average).

    Raises
    ------
    ValueError
        If the shapes differ or a standard deviation is not positive.
    """
    var = jnp.square(jnp.asarray(std))
    return {
        "rmse": float(metrics.rmse(mean, y, weights=weights)),
        "nll": float(metrics.gaussian_nll(mean, var, y, weights=weights)),
        "crps": float(metrics.crps_gaussian(mean, std, y, weights=weights)),
        "coverage_90": float(metrics.interval_coverage(mean, std, y, 0.9, weights=weights)),
        "chi_squared": float(metrics.chi_squared(mean, var, y, weights=weights)),
    }


# --- statistics for the bootstrap -----------------------------------------------------------------


class ClassificationSuite(NamedTuple):
    """Metrics of K classifiers, `(K,)` each, and the differences of pairs.

    Called with `probs` `(N, K, C)`, the negative log-likelihoods `losses` `(N, K)` of the labels,
    and the labels.
    """

    pairs: Pairs

    def __call__(self, probs, losses, y, *, weights):
        arrays = (probs, losses, y, weights)
        return _with_differences(_classification, (1, 1, None, None), self.pairs, *arrays)


class RegressionSuite(NamedTuple):
    """Metrics of K regressors, `mean` and `std` `(N, K, C)`, in the same form."""

    pairs: Pairs

    def __call__(self, mean, std, y, *, weights):
        return _with_differences(_regression, (1, 1, None, None), self.pairs, mean, std, y, weights)


class DetectionSuite(NamedTuple):
    """Detection metrics of K scores of two samples, `(N, K)` and `(M, K)`, in the same form."""

    pairs: Pairs

    def __call__(self, inside, outside, *, in_weights, out_weights):
        arrays = (inside, outside, in_weights, out_weights)
        return _with_differences(_detection, (1, 1, None, None), self.pairs, *arrays)


@partial(jax.jit, static_argnames=("suite", "axes", "pairs"))
def _with_differences(
    suite: Callable[..., Values],
    axes: tuple[int | None, ...],
    pairs: Pairs,
    *arrays: ArrayLike | None,
) -> tuple[Values, Values]:
    """Return the metrics of all columns, and the differences of pairs for monotone metrics."""
    values = jax.vmap(suite, axes)(*arrays)
    if not pairs:
        return values, {}
    new, old = (np.array(places) for places in zip(*pairs, strict=True))
    return values, {k: v[new] - v[old] for k, v in values.items() if METRICS[k].is_monotone}


def _classification(
    probs: Float[Array, "N C"],
    losses: Float[Array, " N"],
    y: ArrayLike,
    weights: ArrayLike | None,
) -> Values:
    return {
        "accuracy": metrics.accuracy(probs, y, weights=weights),
        "confidence": jnp.average(jnp.max(probs, axis=1), weights=weights),
        "nll": jnp.average(losses, weights=weights),
        "brier": metrics.brier_score(probs, y, weights=weights),
        "ece": metrics.expected_calibration_error(probs, y, weights=weights),
        "ace": metrics.adaptive_calibration_error(probs, y, weights=weights),
        "mce": metrics.maximum_calibration_error(probs, y, weights=weights),
        "classwise_ece": metrics.classwise_calibration_error(probs, y, weights=weights),
        "debiased_ce": metrics.debiased_calibration_error(probs, y, weights=weights),
        "aurc": metrics.aurc(probs, y, weights=weights),
    }


def _regression(
    mean: Float[Array, "N C"], std: Float[Array, "N C"], y: ArrayLike, weights: ArrayLike | None
) -> Values:
    transforms, var = metrics.pit_gaussian(mean, std, y), jnp.square(std)
    return {
        "rmse": metrics.rmse(mean, y, weights=weights),
        "nll": metrics.gaussian_nll(mean, var, y, weights=weights),
        "crps": metrics.crps_gaussian(mean, std, y, weights=weights),
        "coverage_90": metrics.interval_coverage(mean, std, y, 0.9, weights=weights),
        "width_90": metrics.interval_width(std, 0.9, weights=weights),
        "chi_squared": metrics.chi_squared(mean, var, y, weights=weights),
        "quantile_error": metrics.quantile_calibration_error(transforms, weights=weights),
    }


def _detection(
    inside: Float[Array, " N"],
    outside: Float[Array, " M"],
    in_weights: ArrayLike | None,
    out_weights: ArrayLike | None,
) -> Values:
    return {
        name: metric(inside, outside, in_weights=in_weights, out_weights=out_weights)
        for name, metric in (
            ("auroc", metrics.auroc),
            ("aupr", metrics.aupr),
            ("fpr95", metrics.fpr95),
        )
    }
