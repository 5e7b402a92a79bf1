r"""What one number, fitted to other examples, would change: a temperature, or a factor of the std.

The examples are divided into folds. Each is evaluated with the number that is best on the others,
so that the change of the NLL is not that of a fit to the same examples.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int, Num

from laplace_kit.eval.report import measures
from laplace_kit.eval.report.inputs import floating
from laplace_kit.eval.report.predictions import ClassPredictions, RegressionPredictions
from laplace_kit.eval.statistics.resampling import interval, weightings
from laplace_kit.eval.statistics.weighting import checked

NUM_FOLDS = 5
_FEWEST = 20  # examples
_FOLDS = 101  # a stream of random numbers of its own
_LOWEST, _HIGHEST = 1e-2, 1e2  # of the inverse temperature
_PRECISION = 1e-4


class Refit(NamedTuple):
    """A factor fitted to all examples, and the change of each one's loss by its own fold's."""

    factor: float
    change: Float[np.ndarray, " N"]


def recalibrated_classes(
    predictions: Mapping[str, ClassPredictions],
    y: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return, by predictor, the best temperature and the change of the NLL that it would make.

    Parameters
    ----------
    predictions, y, weights
        As in a report, valid.
    seed
        Draws the folds and the resamples.

    Returns
    -------
    dict
        By predictor: `factor`, the temperature; and `difference`, the change of the mean NLL with
        its interval, `[difference, low, high]`. Predictors with an infinite NLL are left out, and
        those without a best temperature from 0.01 to 100, such as where all are right; so is
        everybody if there are fewer than 20 examples. Cost: about twelve exponentials of all
        probabilities for each predictor.
    """
    counted, refits = checked(weights, len(np.asarray(y))), {}
    folds = _folds(counted, seed)
    for name, of in predictions.items() if folds is not None else ():
        margins = _margins(of, np.asarray(y))
        if margins is not None and _has_best(margins, counted):
            refits[name] = _tempered(margins, folds, counted)
    return _with_intervals(refits, counted, seed)


def recalibrated_numbers(
    predictions: Mapping[str, RegressionPredictions],
    y: Num[np.ndarray, "N ..."],
    *,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return, by predictor, the best factor of the standard deviations and the change of the NLL.

    As `recalibrated_classes`; only for normal distributions.
    """
    counted, refits = checked(weights, len(y)), {}
    folds = _folds(counted, seed)
    for name, of in predictions.items() if folds is not None else ():
        if of.distributions is None:
            mean, std = (np.asarray(part, float) for part in (of.mean, of.std))
            squares = np.square((np.asarray(y, float) - mean) / std).reshape(len(y), -1)
            if squares.any() and np.isfinite(squares.sum()):
                refits[name] = _scaled(squares, folds, counted)
    return _with_intervals(refits, counted, seed)


def _with_intervals(
    refits: Mapping[str, Refit], weights: Float[np.ndarray, " N"], seed: int
) -> dict[str, dict[str, Any]]:
    if not refits:
        return {}
    changes = np.stack([of.change for of in refits.values()], axis=1)
    values = weights @ changes / weights.sum()
    parts = [
        drawn @ changes / drawn.sum(axis=1, keepdims=True)
        for (drawn,) in weightings([weights], measures.NUM_RESAMPLES, seed)
    ]
    replicates = np.concatenate(parts)
    return {
        name: {
            "factor": of.factor,
            "difference": [
                float(values[k]),
                *interval(values[k], replicates[:, k], measures.LEVEL),
            ],
        }
        for k, (name, of) in enumerate(refits.items())
    }


def _folds(weights: Float[np.ndarray, " N"], seed: int) -> Int[np.ndarray, " N"] | None:
    """Return the fold of each example, `None` if there are too few examples."""
    if np.count_nonzero(weights) < _FEWEST:
        return None
    stream = np.random.SeedSequence(seed, spawn_key=(_FOLDS,))
    return np.random.default_rng(stream).permutation(len(weights)) % NUM_FOLDS


def _cross_fitted(
    fit: Callable[[Float[np.ndarray, " N"], float], float],
    loss: Callable[[np.ndarray, float], Float[np.ndarray, " M"]],
    folds: Int[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"],
) -> Refit:
    """Return the factor of all examples, and the losses of each fold by that of the others."""
    whole, change = fit(weights, 1.0), np.empty(len(weights))
    for fold in range(NUM_FOLDS):
        held_out = folds == fold
        others = np.where(held_out, 0.0, weights)
        own = fit(others, whole) if others.any() else whole
        change[held_out] = loss(held_out, own) - loss(held_out, 1.0)
    return Refit(whole, change)


# --- numbers --------------------------------------------------------------------------------------


def _scaled(
    squares: Float[np.ndarray, "N C"],
    folds: Int[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"],
) -> Refit:
    """Return the factor of standard deviations, in closed form."""
    smallest = np.finfo(float).tiny

    def fit(weighting: Float[np.ndarray, " N"], start: float) -> float:
        mean = float(weighting @ squares.mean(axis=1) / weighting.sum())
        return float(np.sqrt(max(mean, smallest)))

    def loss(chosen: np.ndarray, factor: float) -> Float[np.ndarray, " M"]:
        return (np.log(factor) + squares[chosen] / (2 * factor**2)).sum(axis=1)

    return _cross_fitted(fit, loss, folds, weights)


# --- classes --------------------------------------------------------------------------------------


def _margins(of: ClassPredictions, y: np.ndarray) -> Float[np.ndarray, "N C"] | None:
    """Return log probabilities minus that of the label; `None` if a label's is infinite."""
    if of.log_probs is None:
        probs = floating(of.probs)
        logs = np.log(np.maximum(probs, np.finfo(probs.dtype).tiny))
        is_zero = probs <= 0
        happened = is_zero[np.arange(len(y)), y.astype(int)] if y.ndim == 1 else is_zero & (y > 0)
        if happened.any():
            return None
    else:
        logs = floating(of.log_probs)
    if y.ndim == 1:
        return logs - logs[np.arange(len(y)), y.astype(int)][:, None]
    return logs - np.einsum("nc,nc->n", y, logs)[:, None]


def _tempered(
    margins: Float[np.ndarray, "N C"],
    folds: Int[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"],
) -> Refit:
    r"""Return the temperature: $\log \sum_c e^{b m_c}$ is convex in its inverse b."""

    def fit(weighting: Float[np.ndarray, " N"], start: float) -> float:
        used = np.flatnonzero(weighting)
        own = weighting[used] / weighting.sum()
        rows = margins if len(used) == len(margins) else margins[used]
        inverse, low, high = 1.0 / start, _LOWEST, _HIGHEST
        for _ in range(60):
            slope, curvature = _slope(rows, own, inverse)
            low, high = (inverse, high) if slope <= 0 else (low, inverse)
            step = inverse - slope / curvature if curvature > 0 else np.inf
            step = step if low < step < high else float(np.sqrt(low * high))
            if abs(step - inverse) <= _PRECISION * inverse:
                break
            inverse = step
        return 1.0 / inverse

    def loss(chosen: np.ndarray, temperature: float) -> Float[np.ndarray, " M"]:
        scaled = margins[chosen] / temperature
        largest = scaled.max(axis=1)
        return largest + np.log(np.exp(scaled - largest[:, None]).sum(axis=1, dtype=float))

    return _cross_fitted(fit, loss, folds, weights)


def _has_best(margins: Float[np.ndarray, "N C"], weights: Float[np.ndarray, " N"]) -> bool:
    """Return whether a temperature is best inside of its range; none is where all are right."""
    shares = weights / weights.sum()
    return _slope(margins, shares, _LOWEST)[0] < 0 < _slope(margins, shares, _HIGHEST)[0]


def _slope(
    margins: Float[np.ndarray, "N C"], weights: Float[np.ndarray, " N"], inverse: float
) -> tuple[float, float]:
    """Return the first and second derivatives of the mean loss in the inverse temperature."""
    scaled = margins * margins.dtype.type(inverse)
    scaled -= scaled.max(axis=1, keepdims=True)
    probs = np.exp(scaled, out=scaled)
    probs /= probs.sum(axis=1, keepdims=True)
    first = np.einsum("nc,nc->n", probs, margins)
    second = np.einsum("nc,nc,nc->n", probs, margins, margins)
    return float(weights @ first), float(weights @ (second - first**2))
