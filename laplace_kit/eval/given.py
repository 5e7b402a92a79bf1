"""Predictions as rows on the host: of a `Predictive`, or plain arrays from any other library."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Num, PyTree

from laplace_kit.arrays import on_host
from laplace_kit.eval.evaluation import as_classes, observed_rows, weights_of_rows
from laplace_kit.eval.metrics.inputs import Numbers
from laplace_kit.eval.observed import checked_targets
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.report.distributions import rows_of
from laplace_kit.eval.report.inputs import classified, floating, numbers
from laplace_kit.eval.report.predictions import RegressionPredictions
from laplace_kit.eval.statistics.weighting import checked
from laplace_kit.host import fetch
from laplace_kit.likelihood import Likelihood
from laplace_kit.likelihood.masked import targets_without_mask
from laplace_kit.targets.base import LabelTargets, NoTargets, NumberTargets, no_distribution

# A predictive; class probabilities (N, C), or p(y = 1) (N,); means and standard deviations.
Predictions = Predictive | Numbers | tuple[Numbers, Numbers]


class ClassRows(NamedTuple):
    """Probabilities `(M, C)`, labels `(M,)` or `(M, C)`, and the weight of each row."""

    probs: Float[np.ndarray, "M C"]
    y: Num[np.ndarray, "M ..."]
    weights: Float[np.ndarray, " M"]


class EventRows(NamedTuple):
    """The probability of one event, whether it occurred, and the weight of each row."""

    p: Float[np.ndarray, " M"]
    outcomes: Float[np.ndarray, " M"]
    weights: Float[np.ndarray, " M"]


class NumberRows(NamedTuple):
    """Means, standard deviations and targets `(M, C)`, and the weight of each row."""

    mean: Float[np.ndarray, "M C"]
    std: Float[np.ndarray, "M C"]
    y: Float[np.ndarray, "M C"]
    weights: Float[np.ndarray, " M"]


def is_of_numbers(predictions: Any) -> bool:
    """Return whether these predict numbers: a pair of moments, or a predictive that has them."""
    if isinstance(predictions, Predictive):
        return isinstance(predictions.targets, NumberTargets)
    return isinstance(predictions, tuple)


def class_rows(predictions: Predictions, y: PyTree, weights: ArrayLike | None = None) -> ClassRows:
    """Return probabilities and labels, a row for each label that is there.

    Parameters
    ----------
    predictions
        A `Predictive` of classes, probabilities `(N, C)`, or the probability of class 1, `(N,)`.
    y
        Labels: for a predictive as `recalibrate` takes them, otherwise integers `(N,)`, one-hot or
        soft labels `(N, C)`, or for one probability numbers from 0 to 1.
    weights
        The weight of each example, `(N,)`; `None` for one each.

    Raises
    ------
    TypeError
        If these are predictions of numbers.
    ValueError
        If probabilities, labels or weights are not valid.
    """
    if isinstance(predictions, Predictive):
        if not isinstance(predictions.targets, LabelTargets):
            raise no_distribution(_name(predictions), "probabilities of classes")
        likelihood, labels = checked_targets(predictions, y)
        probs, labels = fetch(as_classes(likelihood, predictions, labels))
        rows = weights_of_rows(likelihood, predictions, y, weights)
        valid = classified(probs, labels)
        return ClassRows(*valid, checked(rows, len(probs)))
    probs, labels = as_probabilities(predictions), on_host(y, "targets")
    if np.ndim(predictions) == 1 and labels.dtype.kind == "f" and labels.ndim == 1:
        labels = np.stack([1 - labels, labels], axis=1)
    if labels.dtype.kind == "b":
        labels = labels.astype(int)
    return ClassRows(*classified(probs, labels), checked(weights, len(probs)))


def event_rows(
    predictions: Predictions, y: PyTree, weights: ArrayLike | None = None
) -> tuple[EventRows, ClassRows]:
    """Return the event that a calibration measure is about, and the rows of `class_rows`.

    For one probability `(N,)` it is class 1; otherwise that the most probable class is the label.
    """
    rows = class_rows(predictions, y, weights)
    everyone = np.arange(len(rows.probs))
    if not isinstance(predictions, Predictive) and np.ndim(predictions) == 1:
        p = rows.probs[:, 1]
        outcomes = rows.y if rows.y.ndim == 1 else rows.y[:, 1]
    else:
        p, predicted = rows.probs.max(axis=1), rows.probs.argmax(axis=1)
        outcomes = rows.y == predicted if rows.y.ndim == 1 else rows.y[everyone, predicted]
    event = EventRows(np.clip(p.astype(float), 0, 1), outcomes.astype(float), rows.weights)
    return event, rows


def number_rows(
    predictions: Predictions, y: PyTree, weights: ArrayLike | None = None
) -> NumberRows:
    """Return moments and targets, a row for each example or, with a mask, each observed entry.

    Parameters
    ----------
    predictions
        A `Predictive` of numbers, or a pair of means and standard deviations.
    y
        The targets; for a predictive also with a mask, `(y, mask)`.
    weights
        The weight of each example, `(N,)`; `None` for one each.

    Raises
    ------
    TypeError
        If these are predictions of classes.
    ValueError
        If shapes differ, a standard deviation is not positive, or weights are not valid.
    """
    if isinstance(predictions, Predictive):
        if not isinstance(predictions.targets, NumberTargets):
            raise no_distribution(_name(predictions), "numbers")
        likelihood, values = checked_targets(predictions, y)
        given = (predictions.mean, predictions.var, targets_without_mask(likelihood, values))
        mean, var, targets = (
            fetch(observed_rows(likelihood, predictions, values, part)) for part in given
        )
        if isinstance(y, tuple):
            weights = weights_of_rows(likelihood, predictions, values, weights)
        rows = numbers(mean, np.sqrt(var), targets)
    else:
        rows = numbers(*as_moments(predictions), on_host(y, "targets"))
    return NumberRows(*rows, checked(weights, len(rows[0])))


def numbers_given(
    predictions: Predictions, y: PyTree, weights: ArrayLike | None = None
) -> tuple[RegressionPredictions, NumberRows]:
    """Return the distributions of numbers, normal ones of a pair of moments, and `number_rows`."""
    rows = number_rows(predictions, y, weights)
    if isinstance(predictions, Predictive):
        likelihood, values = checked_targets(predictions, y)
        return numbers_of(likelihood, predictions, values), rows
    return RegressionPredictions(rows.mean, rows.std), rows


def numbers_of(likelihood: Likelihood, predictive: Predictive, y: PyTree) -> RegressionPredictions:
    """Return moments and distributions as rows: one for each example or, with a mask, each entry.

    Raises
    ------
    TypeError, ValueError
        If the likelihood defines no distribution of numbers, or one without a variance.
    """
    if isinstance(predictive.targets, NoTargets):
        raise TypeError(
            f"Found a {type(likelihood).__name__} likelihood, which defines no predictive "
            "distribution of the targets, expected Gaussian, Poisson, Categorical or Bernoulli, or "
            "one with a method targets(outputs), for a report; use la.evaluate for its loss."
        )
    mean, noise_var, epistemic_var = (
        fetch(observed_rows(likelihood, predictive, y, values))
        for values in (predictive.mean, predictive.noise_var, predictive.epistemic_var)
    )
    var = noise_var + epistemic_var
    if not np.isfinite(var).all():
        raise ValueError(
            f"Found infinite variances under a {type(likelihood).__name__} likelihood, expected "
            "finite ones, as a report measures residuals by them; use la.evaluate, or a likelihood "
            "whose noise has a variance."
        )
    known = bool((epistemic_var > 0).any())
    targets, distributions = predictive.targets, None
    if targets.is_joint or not targets.is_normal:
        observed = targets_without_mask(likelihood, y)
        rows = partial(observed_rows, likelihood, predictive, y)
        distributions = rows_of(targets, observed, rows)
    epistemic_std = np.sqrt(epistemic_var) if known else None
    return RegressionPredictions(mean, np.sqrt(var), epistemic_std, distributions)


def as_probabilities(predictions: Numbers) -> Float[np.ndarray, "N C"]:
    """Return plain probabilities as `(N, C)`, also those of class 1, `(N,)`."""
    if isinstance(predictions, tuple):
        raise TypeError(
            "Found a pair of arrays, expected a predictive or probabilities of classes, (N, C) or "
            "(N,) for p(y = 1); pairs are means and standard deviations of numbers."
        )
    probs = floating(on_host(predictions, "probabilities"))
    return np.stack([1 - probs, probs], axis=1) if probs.ndim == 1 else probs


def as_moments(predictions: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return a pair of arrays on the host in float64."""
    if not isinstance(predictions, tuple) or len(predictions) != 2:
        raise TypeError(
            f"Found predictions of type {type(predictions).__name__}, expected a predictive of "
            "numbers or a pair (mean, std) of arrays; for classes pass labels as y."
        )
    first, second = (part.astype(float) for part in on_host(predictions, "moments"))
    return first, second


def _name(predictive: Predictive) -> str | None:
    likelihood = predictive.likelihood
    return None if likelihood is None else type(likelihood).__name__
