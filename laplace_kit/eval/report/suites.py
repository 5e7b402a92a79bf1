"""All metrics of one predictor on one set of examples, as plain numbers."""

import numpy as np
from jaxtyping import ArrayLike, Float

from laplace_kit.eval.report import inputs
from laplace_kit.eval.report.registry import Sums, evaluated
from laplace_kit.eval.statistics import numbers, weighting
from laplace_kit.eval.statistics.classification import class_scores, class_sums

_OF_CLASSES = ("accuracy", "confidence", "nll", "ece", "mce", "ace", "brier")
_OF_NUMBERS = ("rmse", "nll", "crps", "coverage_90", "chi_squared")


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
        `accuracy`, `confidence` (the mean of the largest probability), `nll` (nats; infinite if a
        label has the probability zero), `ece`, `mce`, `ace` and `brier`. Cost: sums in NumPy,
        without a compiled program.

    Raises
    ------
    ValueError
        If the shapes are inconsistent, or the probabilities, labels or weights are not valid.
    """
    probs, y = inputs.classified(probs, y)
    rows = weighting.checked(weights, len(probs))[None]
    return _numbers(class_sums(class_scores(probs, y), rows), _OF_CLASSES)


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
        Mean and standard deviation (noise included) of normal predictive distributions, and
        targets, `(N, C)` each.
    weights
        What each example counts, `(N,)`; `None` for one each.

    Returns
    -------
    dict
        `rmse` and `crps` (units of `y`), `nll` (nats, summed over outputs), `coverage_90` (a
        fraction) and `chi_squared` (1 if the variances are right on average). Cost: sums in NumPy,
        without a compiled program.

    Raises
    ------
    ValueError
        If the shapes differ, a standard deviation is not positive or the weights are not valid.
    """
    mean, std, y = inputs.numbers(mean, std, y)
    rows = weighting.checked(weights, len(mean))[None]
    scores = numbers.normal_scores(mean, std, y)
    columns = numbers.number_columns(mean, std, y, scores, scores.cdf)
    return _numbers(numbers.number_sums(columns, rows), _OF_NUMBERS)


def _numbers(sums: Sums, names: tuple[str, ...]) -> dict[str, float]:
    with np.errstate(over="ignore", invalid="ignore"):
        found = evaluated(sums)
    return {name: float(found[name][0]) for name in names}
