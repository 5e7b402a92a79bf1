"""The metrics of a report, for every predictor and set, with confidence intervals.

`metrics.json` holds one object, with schema 3:

| key | value |
| --- | --- |
| `schema` | 3 |
| `task` | `"classification"` or `"regression"` |
| `num_examples` | size of the test set, without examples of weight zero |
| `seed` | the seed of the resamples |
| `predictors` | names of the predictors; the first is the reference of all differences |
| `num_classes` | for classifiers |
| *predictor* | metrics on the test set by name |
| `shifted` | by set, by predictor: metrics by name |
| `ood` | by set, by predictor: `auroc`, `aupr`, `fpr95` by the largest probability, and by other scores with the suffix `_entropy` or `_epistemic` |
| `claims` | by predictor: `claimed`, the mean confidence on the test set (for regression, the level of the intervals); `kept`, the accuracy (the coverage); `p_value`, the probability of as large a gap for a calibrated predictor; and, for classifiers, `impossible`, the number of labels that were given probability zero |
| `bootstrap` | `level` and `num_resamples`; then `test`, `shifted` and `ood`, for each set with `intervals`, by predictor and metric `[low, high]`, and `differences`, by predictor except the first and metric `[difference, low, high]`: that predictor minus the first, on the same resamples; and `best`, by metric the predictor that is significantly better than every other, where there is one |
| `risk_control` | for classifiers: by predictor, for bounds below its error rate, `at_most`, `confidence`, `handed_on`, the share of predictions to hand on so that the others have at most so many errors, and `threshold` of the confidence; the last two are `null` where these examples show no such threshold |
| `recalibrated` | by predictor: `factor`, the temperature or factor of the standard deviations, and `difference`, the cross-fitted change of the NLL, `[difference, low, high]` |
| `sections` | by section: the numbers that it shows |
| `made` | date, name of the data, versions and command |

The last four are added by a report, and so is `names`, where there are any. With groups, `groups`
holds by grouping and group `num_examples`, the metrics of each predictor, `claims` and `intervals`
as above, and `gaps`, by predictor and metric `[gap, low, high, p_value]`: the group minus all
examples, simultaneous over all groups. A metric that is not finite is `null`, and has no interval.
Differences are given only for metrics
of which a larger, or a smaller, value is always better. Schema 1 had neither `predictors`, `claims`
nor `bootstrap`; in schema 2 all distributions of numbers were normal, and probabilities of zero
counted as the smallest normal number.
"""  # noqa: E501

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Num

from laplace_kit.eval.report import inputs
from laplace_kit.eval.report.checks import about, finite
from laplace_kit.eval.report.claims import accuracy_claim, coverage_claim
from laplace_kit.eval.report.pictures import TEST
from laplace_kit.eval.report.predictions import ClassPredictions, RegressionPredictions
from laplace_kit.eval.report.registry import LABEL, METRICS, evaluated
from laplace_kit.eval.report.scores import scores
from laplace_kit.eval.statistics import numbers
from laplace_kit.eval.statistics.classification import class_scores, class_sums
from laplace_kit.eval.statistics.detection import detection_scores, detection_sums
from laplace_kit.eval.statistics.numbers import TargetScores
from laplace_kit.eval.statistics.resampling import interval, weightings
from laplace_kit.eval.statistics.weighting import checked

SCHEMA = 3
LEVEL, NUM_RESAMPLES = 0.95, 1000
_TRANSFORMS = 100


# From weightings of the examples of each sample to all metrics of one predictor.
Evaluate = Callable[..., dict[str, Float[np.ndarray, " R"]]]


class Measured(NamedTuple):
    """The metrics on one set by predictor and metric, with bootstrap intervals and differences."""

    values: dict[str, dict[str, float | None]]
    bootstrap: dict[str, Any]


def measure_classification(
    predictions: Mapping[str, ClassPredictions],
    y: ArrayLike,
    shifted_labels: Mapping[str, ArrayLike],
    *,
    weights: ArrayLike | None = None,
    shifted_weights: Mapping[str, ArrayLike] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the content of `metrics.json` for classifiers."""
    everyone, weights = predictions.items(), checked(weights, len(np.asarray(y)))
    ood_sets = dict.fromkeys(where for of in predictions.values() for where in of.ood)
    shifted = {}
    for where, labels in shifted_labels.items():
        given = (shifted_weights or {}).get(where)
        own = checked(given, len(np.asarray(labels)), f"the weights of {where!r}")
        probs = {name: of.shifted[where] for name, of in everyone if where in of.shifted}
        logs = {name: of.shifted_log_probs.get(where) for name, of in everyone}
        shifted[where] = _measure_probs(where, probs, logs, labels, own, seed)
    probs = {name: of.probs for name, of in everyone}
    log_probs = {name: of.log_probs for name, of in everyone}
    ood = {}
    for where in ood_sets:
        able = {name: of for name, of in everyone if where in of.ood}
        ood[where] = _measure_detection(where, able, weights, seed)
    test = _measure_probs(TEST, probs, log_probs, y, weights, seed)
    claims = {name: accuracy_claim(of.probs, y, weights, of.log_probs) for name, of in everyone}
    others = {"shifted": shifted, "ood": ood}
    num_examples = int(np.count_nonzero(weights))
    found = _numbers("classification", num_examples, seed, test, claims, others)
    return found | {"num_classes": np.shape(next(iter(probs.values())))[1]}


def measure_regression(
    predictions: Mapping[str, RegressionPredictions],
    y: Num[np.ndarray, "N ..."],
    *,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the content of `metrics.json` for regressors."""
    evaluate, contents = {}, {}
    for name, of in predictions.items():
        with about(name, TEST):
            moments = inputs.numbers(finite("mean", of.mean), finite("std", of.std), y)
        found = target_scores(of, y)
        averaged = numbers.number_columns(*moments, found, integral_transforms(found, seed))
        evaluate[name] = lambda rows, of=averaged: evaluated(numbers.number_sums(of, rows))
        contents[name] = found.content.mean(axis=1)
    weights = checked(weights, len(y))
    test = _measure(evaluate, [weights], seed)
    claims = {
        name: coverage_claim(content, test.values[name]["coverage_90"], weights)
        for name, content in contents.items()
    }
    return _numbers("regression", int(np.count_nonzero(weights)), seed, test, claims, {})


def target_scores(of: RegressionPredictions, y: Num[np.ndarray, "N ..."]) -> TargetScores:
    """Return the scores of the targets: those given, or those of normal distributions."""
    if of.distributions is None:
        return numbers.normal_scores(*inputs.numbers(of.mean, of.std, y))
    log_prob, *others = (
        np.asarray(getattr(of.distributions, field), float)
        for field in ("log_prob", "cdf", "cdf_below", "low", "high", "content", "crps")
    )
    return TargetScores(-log_prob, *others)


def integral_transforms(scores: TargetScores, seed: int) -> Float[np.ndarray, "N C"]:
    """Return the probability integral transforms, randomised for counts by the seed."""
    # A stream of its own, which neither the resamples nor data made with the same seed share.
    stream = np.random.SeedSequence(seed, spawn_key=(_TRANSFORMS,))
    return numbers.integral_transforms(scores, np.random.default_rng(stream))


# --- all predictors on one set --------------------------------------------------------------------


def _measure_probs(
    where: str,
    probs: Mapping[str, ArrayLike],
    log_probs: Mapping[str, ArrayLike | None],
    y: ArrayLike,
    weights: Float[np.ndarray, " N"],
    seed: int,
) -> Measured:
    evaluate = {}
    for name, of in probs.items():
        with about(name, where):
            valid, labels = inputs.classified(of, y)
        logs = None if log_probs[name] is None else inputs.floating(log_probs[name])
        found = class_scores(valid, labels, logs)
        second = _second_class(valid, labels) if valid.shape[1] == 2 else None
        evaluate[name] = lambda rows, of=found, two=second: (
            evaluated(class_sums(of, rows)) | ({} if two is None else two(rows))
        )
    return _measure(evaluate, [weights], seed)


def _second_class(probs: Float[np.ndarray, "N 2"], y: Num[np.ndarray, "N ..."]) -> Evaluate:
    """Return how well the probability of the second class ranks its examples before the others."""
    positive = (y if y.ndim == 1 else y[:, 1]).astype(float)
    ranking = detection_scores(probs[:, 1], probs[:, 1])
    return lambda rows: evaluated(
        detection_sums(ranking, rows * (1 - positive), rows * positive), LABEL
    )


def _measure_detection(
    where: str,
    predictions: Mapping[str, ClassPredictions],
    weights: Float[np.ndarray, " N"],
    seed: int,
) -> Measured:
    evaluate = {}
    for name, of in predictions.items():
        with about(name, where):
            inside = scores(of.probs, of.epistemic)
            outside = scores(of.ood[where], of.ood_epistemic.get(where))
        ranked = {
            kind: detection_scores(inside[kind], outside[kind])
            for kind in outside
            if kind in inside
        }
        evaluate[name] = lambda *rows, of=ranked: {
            key: values
            for kind, ranking in of.items()
            for key, values in evaluated(detection_sums(ranking, *rows), kind).items()
        }
        size = len(outside["max_probability"])
    return _measure(evaluate, [weights, np.ones(size)], seed)


def _measure(
    evaluate: Mapping[str, Evaluate], samples: Sequence[Float[np.ndarray, " _"]], seed: int
) -> Measured:
    """Return the metrics of all predictors, with intervals and differences of paired resamples.

    Parameters
    ----------
    evaluate
        The metrics of each predictor, as functions of weightings of the samples.
    samples
        The weights of the examples of each sample.
    seed
        Draws the resamples.
    """
    parts: dict[str, list[dict]] = {name: [] for name in evaluate}
    # Sums of huge numbers overflow, and a resample may miss a class.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = {
            name: {key: float(found[0]) for key, found in of(*(w[None] for w in samples)).items()}
            for name, of in evaluate.items()
        }
        for drawn in weightings(samples, NUM_RESAMPLES, seed):
            for name, of in evaluate.items():
                parts[name].append(of(*drawn))
    replicates = {
        name: {key: np.concatenate([part[key] for part in found]) for key in values[name]}
        for name, found in parts.items()
    }
    if min(map(np.count_nonzero, samples)) < 2:
        # Every resample of a single example is that example: the spread is unknown.
        replicates = {
            name: {key: np.full(NUM_RESAMPLES, np.nan) for key in of} for name, of in values.items()
        }
    return _with_intervals(values, replicates)


def _with_intervals(
    values: Mapping[str, Mapping[str, float]],
    replicates: Mapping[str, Mapping[str, Float[np.ndarray, " R"]]],
) -> Measured:
    """Return values, intervals, differences and the best predictors by metric."""
    reference, *others = values

    def change(name: str, against: str, key: str) -> list[float] | None:
        """Return a difference with its interval, `None` unless all are finite."""
        if key not in values[name] or key not in values[against]:
            return None
        value = values[name][key] - values[against][key]
        if not np.isfinite(value):
            return None
        ends = interval(value, replicates[name][key] - replicates[against][key], LEVEL)
        return [value, *ends] if np.isfinite(ends).all() else None

    found = {name: {} for name in values}
    intervals, differences, best = ({name: {} for name in values}, {n: {} for n in others}, {})
    for key, metric in METRICS.items():
        for name in (name for name in values if key in values[name]):
            value = values[name][key]
            ends = interval(value, replicates[name][key], LEVEL)
            # JSON has no infinity.
            found[name][key] = value if np.isfinite(value) else None
            if np.isfinite([value, *ends]).all():
                intervals[name][key] = [*metric.attainable(*ends)]
        if not metric.is_monotone:
            continue
        changes = {name: change(name, reference, key) for name in others}
        for name in (name for name in others if changes[name]):
            differences[name][key] = changes[name]
        able = [name for name in values if found[name].get(key) is not None]
        if len(able) < 2:
            continue
        leader = min(able, key=lambda name: metric.loss(found[name][key]))
        rivals = (change(leader, name, key) for name in able if name != leader)
        if all(rival and metric.judged(rival) == "better" for rival in rivals):
            best[key] = leader
    return Measured(found, {"intervals": intervals, "differences": differences, "best": best})


# --- one object -----------------------------------------------------------------------------------


def _numbers(
    task: str,
    num_examples: int,
    seed: int,
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
        "seed": seed,
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
