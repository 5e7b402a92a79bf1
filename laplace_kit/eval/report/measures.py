"""The metrics of a report, for every predictor and set, with confidence intervals.

`metrics.json` holds one object, with schema 2:

| key | value |
| --- | --- |
| `schema` | 2 |
| `task` | `"classification"` or `"regression"` |
| `num_examples` | size of the test set |
| `predictors` | names of the predictors; the first is the reference of all differences |
| *predictor* | metrics on the test set by name |
| `shifted` | by set, by predictor: metrics by name |
| `ood` | by set, by predictor: `auroc`, `aupr`, `fpr95` by the largest probability, and by other scores with the suffix `_entropy` or `_epistemic` |
| `claims` | by predictor: `claimed`, the mean confidence on the test set (for regression, the level of the intervals); `kept`, the accuracy (the coverage); and `p_value`, the probability of as large a gap for a calibrated predictor |
| `bootstrap` | `level` and `num_resamples`; then `test`, `shifted` and `ood`, for each set with `intervals`, by predictor and metric `[low, high]`, and `differences`, by predictor except the first and metric `[difference, low, high]`: that predictor minus the first, on the same resamples |

A metric that is not finite is `null`, and has no interval. Differences are given only for metrics
of which a larger, or a smaller, value is always better. Schema 1 had neither `predictors`, `claims`
nor `bootstrap`.
"""  # noqa: E501

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Num

from laplace_kit.eval import metrics
from laplace_kit.eval.metrics import Interval
from laplace_kit.eval.metrics.checks import labelled, regression
from laplace_kit.eval.metrics.inputs import in_own_precision
from laplace_kit.eval.report.checks import about, finite
from laplace_kit.eval.report.pictures import TEST
from laplace_kit.eval.report.predictions import ClassPredictions, RegressionPredictions
from laplace_kit.eval.report.registry import METRICS
from laplace_kit.eval.report.scores import SCORES, scores
from laplace_kit.eval.report.suites import (
    ClassificationSuite,
    DetectionSuite,
    Pairs,
    RegressionSuite,
)
from laplace_kit.targets.classes import label_log_probs

SCHEMA = 2
LEVEL, NUM_RESAMPLES = 0.95, 1000
_CLAIMED_BY_INTERVALS = 0.9


class Measured(NamedTuple):
    """The metrics on one set by predictor and metric, with bootstrap intervals and differences."""

    values: dict[str, dict[str, float | None]]
    bootstrap: dict[str, dict[str, dict[str, list[float]]]]


@in_own_precision
def measure_classification(
    predictions: Mapping[str, ClassPredictions],
    y: ArrayLike,
    shifted_labels: Mapping[str, ArrayLike],
) -> dict[str, Any]:
    """Return the content of `metrics.json` for classifiers."""
    everyone = predictions.items()
    ood_sets = dict.fromkeys(where for of in predictions.values() for where in of.ood)
    shifted = {
        where: _measure_probs(
            where,
            {name: of.shifted[where] for name, of in everyone if where in of.shifted},
            {name: of.shifted_log_probs.get(where) for name, of in everyone},
            labels,
        )
        for where, labels in shifted_labels.items()
    }
    probs = {name: of.probs for name, of in everyone}
    log_probs = {name: of.log_probs for name, of in everyone}
    ood = {
        where: _measure_detection(where, {name: of for name, of in everyone if where in of.ood})
        for where in ood_sets
    }
    return _numbers(
        "classification",
        len(np.asarray(y)),
        _measure_probs(TEST, probs, log_probs, y),
        {name: _accuracy_claim(of.probs, y) for name, of in everyone},
        {"shifted": shifted, "ood": ood},
    )


@in_own_precision
def measure_regression(
    predictions: Mapping[str, RegressionPredictions], y: Num[np.ndarray, "N ..."]
) -> dict[str, Any]:
    """Return the content of `metrics.json` for regressors."""
    for name, of in predictions.items():
        with about(name, TEST):
            # Values are checked here, as they cannot be inside a compiled program.
            regression(finite("mean", of.mean), finite("std", of.std), y, "std")
    arrays = [
        np.stack([np.asarray(getattr(of, part)) for of in predictions.values()], axis=1)
        for part in ("mean", "std")
    ]
    test = _measure_columns([(name, "") for name in predictions], RegressionSuite, *arrays, y)
    claims = {name: _coverage_claim(of, len(y)) for name, of in test.values.items()}
    return _numbers("regression", len(y), test, claims, {})


# --- all predictors on one set --------------------------------------------------------------------


def _measure_probs(
    where: str,
    probs: Mapping[str, ArrayLike],
    log_probs: Mapping[str, ArrayLike | None],
    y: ArrayLike,
) -> Measured:
    for name, of in probs.items():
        with about(name, where):
            labelled(of, y)
    losses = (_losses(of, log_probs[name], y) for name, of in probs.items())
    columns = (probs.values(), losses)
    stacked = (np.stack([np.asarray(of) for of in each], axis=1) for each in columns)
    return _measure_columns(
        [(name, "") for name in probs], ClassificationSuite, *stacked, np.asarray(y)
    )


def _losses(probs: ArrayLike, log_probs: ArrayLike | None, y: ArrayLike) -> Float[np.ndarray, " N"]:
    """Return the negative log-likelihood of each label, in the precision of the predictions."""
    dtype = jnp.promote_types(np.asarray(probs).dtype, np.float32)
    floating = (None if of is None else np.asarray(of, dtype) for of in (probs, log_probs))
    with jax.enable_x64(dtype == np.float64):
        return -np.asarray(label_log_probs(*floating, np.asarray(y)))


def _measure_detection(where: str, predictions: Mapping[str, ClassPredictions]) -> Measured:
    columns = {}
    for name, of in predictions.items():
        with about(name, where):
            inside = scores(of.probs, of.epistemic)
            outside = scores(of.ood[where], of.ood_epistemic.get(where))
        both = [kind for kind in outside if kind in inside]
        columns |= {(name, SCORES[kind].suffix): (inside[kind], outside[kind]) for kind in both}
    arrays = (np.stack(each, axis=1) for each in zip(*columns.values(), strict=True))
    return _measure_columns([*columns], DetectionSuite, *arrays)


def _measure_columns(
    columns: Sequence[tuple[str, str]], statistic: Callable[[Pairs], Callable], *arrays: np.ndarray
) -> Measured:
    """Return the metrics of columns `(predictor, suffix)` and their differences to the first."""
    reference = columns[0][0]
    pairs = tuple(
        (place, columns.index((reference, suffix)))
        for place, (name, suffix) in enumerate(columns)
        if name != reference and (reference, suffix) in columns
    )
    bootstrap = metrics.bootstrap_two_sample if statistic is DetectionSuite else metrics.bootstrap
    found = bootstrap(
        statistic(pairs),
        *arrays,
        # A fixed key, so that a report has the same bytes on every run.
        key=jax.random.key(0),
        num_resamples=NUM_RESAMPLES,
        level=LEVEL,
    )
    return _by_name(columns, pairs, jax.device_get(found))


def _by_name(columns: Sequence[tuple[str, str]], pairs: Pairs, found: Interval) -> Measured:
    """Return values, intervals and differences by predictor and metric."""
    (values, changes), (low, low_change), (high, high_change), _ = found
    names = dict.fromkeys(name for name, _ in columns)
    by_name = {name: {} for name in names}
    intervals = {name: {} for name in names}
    differences = {name: {} for name in [*names][1:]}
    for key in (key for key in METRICS if key in values):
        for place, (name, suffix) in enumerate(columns):
            value = values[key][place]
            ends = (float(end[key][place]) for end in (low, high))
            bounds = METRICS[key].attainable(*ends)
            # JSON has no infinity, which overflow may produce from finite predictions.
            by_name[name][key + suffix] = float(value) if np.isfinite(value) else None
            if np.isfinite((value, *bounds)).all():
                intervals[name][key + suffix] = [*bounds]
    for key in (key for key in METRICS if key in changes):
        for number, (place, _) in enumerate(pairs):
            name, suffix = columns[place]
            change = [of[key][number] for of in (changes, low_change, high_change)]
            if np.isfinite(change).all():
                differences[name][key + suffix] = [*map(float, change)]
    return Measured(by_name, {"intervals": intervals, "differences": differences})


# --- claims ---------------------------------------------------------------------------------------


def _accuracy_claim(probs: ArrayLike, y: ArrayLike) -> dict[str, float]:
    """Return mean confidence, accuracy and p-value; correctness is independent given confidence.

    A soft label counts as correct by its probability of the predicted class.
    """
    probs, y = np.asarray(probs, float), np.asarray(y)
    predicted, everyone = probs.argmax(axis=1), np.arange(len(probs))
    right = y == predicted if y.ndim == 1 else y[everyone, predicted]
    return _claim(probs.max(axis=1), float(right.mean()))


def _coverage_claim(values: Mapping[str, Any], num_examples: int) -> dict[str, float]:
    """Return level, coverage and p-value of 90% intervals; an example's outputs count as one."""
    return _claim(np.full(num_examples, _CLAIMED_BY_INTERVALS), values["coverage_90"])


def _claim(claims: Float[np.ndarray, " N"], kept: float) -> dict[str, float]:
    """Return the mean claim and the exact two-sided p-value of the gap under the claims.

    The normal approximation fails for confident predictors, which make few errors on any number of
    examples.
    """
    chances, num_kept = _poisson_binomial(np.clip(claims, 0.0, 1.0)), round(kept * len(claims))
    tail = min(chances[: num_kept + 1].sum(), chances[num_kept:].sum())
    p_value = float(np.clip(2.0 * tail, 0.0, 1.0))
    return {"claimed": float(claims.mean()), "kept": float(kept), "p_value": p_value}


def _poisson_binomial(probs: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
    """Return the Poisson-binomial distribution of the number of events, in O(N log^2 N)."""
    found = np.stack([1.0 - probs, probs], axis=1)
    while len(found) > 1:
        if len(found) % 2:
            found = np.concatenate([found, np.eye(1, found.shape[1])])  # an impossible event
        size = 2 * found.shape[1]
        first, second = (np.fft.rfft(half, size) for half in (found[::2], found[1::2]))
        found = np.fft.irfft(first * second, size)
    return found[0]


# --- one object -----------------------------------------------------------------------------------


def _numbers(
    task: str,
    num_examples: int,
    test: Measured,
    claims: dict[str, dict[str, float]],
    others: Mapping[str, Mapping[str, Measured]],
) -> dict[str, Any]:
    values, bootstrap = (
        {
            kind: {where: getattr(of, part) for where, of in found.items()}
            for kind, found in others.items()
        }
        for part in ("values", "bootstrap")
    )
    return {
        "schema": SCHEMA,
        "task": task,
        "num_examples": num_examples,
        "predictors": list(test.values),
        **test.values,
        **values,
        "claims": claims,
        "bootstrap": {
            "level": LEVEL,
            "num_resamples": NUM_RESAMPLES,
            "test": test.bootstrap,
            **bootstrap,
        },
    }


def hard_labels(y: ArrayLike) -> np.ndarray:
    """Return labels `(N,)`; for one-hot or soft labels `(N, C)`, the most probable ones."""
    y = np.asarray(y)
    return y if y.ndim == 1 else y.argmax(axis=1)
