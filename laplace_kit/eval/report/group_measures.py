"""All metrics by group, with intervals, and gaps to all examples with control of multiplicity.

The null hypothesis is that groups are random subsets. The gap of each group's mean to that of all
examples, in standard deviations of such subsets, is compared with the largest of any group in
permutations of the examples: the probability that any of several random subsets is significant is
at most one minus the level, for each metric. Groups of the same mean whose values spread more than
those of all examples may be significant too, and their intervals are too narrow.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float, Num

from laplace_kit.eval.grouping import Groups
from laplace_kit.eval.report.inputs import classified, floating, numbers
from laplace_kit.eval.report.measures import (
    measure_classification,
    measure_regression,
    target_scores,
)
from laplace_kit.eval.report.predictions import ClassPredictions, RegressionPredictions
from laplace_kit.eval.statistics.classification import class_scores
from laplace_kit.eval.statistics.weighting import are_counts, as_columns, checked

LEVEL, NUM_PERMUTATIONS = 0.95, 1000
# More repeated examples are too many to permute: their counts are taken as proportions.
_MOST_REPEATED = 1 << 22
_STREAM = 200

ByName = Mapping[str, ClassPredictions] | Mapping[str, RegressionPredictions]


def measure_groups(
    predictions: ByName,
    y: Num[ArrayLike, "N ..."],
    groupings: Mapping[str, Groups],
    *,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return metrics, intervals, claims and gaps by grouping and group.

    Parameters
    ----------
    predictions
        The predictions of each predictor by name, valid ones.
    y
        Labels or targets.
    groupings
        The groups of each grouping.
    weights
        The weights of the examples.
    seed
        The seed of the resamples and permutations.

    Returns
    -------
    groups
        By grouping, by group: `num_examples`, for each predictor the metrics by name, `claims`,
        `intervals`, and `gaps`, by predictor and metric `[gap, low, high, p_value]`, group minus
        all examples. Examples of weight zero do not count, and groups without others are left out.
    """
    weights = checked(weights, len(np.asarray(y)))
    used = weights > 0
    gaps = {
        name: _gaps(_columns(of, y), groupings, weights, seed) for name, of in predictions.items()
    }
    found = {}
    for grouping, (names, codes) in groupings.items():
        found[grouping] = {}
        for number, group in enumerate(names):
            rows = np.flatnonzero((codes == number) & used)
            if not len(rows):
                continue
            measured = _measured(predictions, np.asarray(y)[rows], rows, weights[rows], seed)
            found[grouping][str(group)] = {
                "num_examples": len(rows),
                **{name: measured[name] for name in predictions},
                "claims": measured["claims"],
                "intervals": measured["bootstrap"]["test"]["intervals"],
                "gaps": {
                    name: {key: of[grouping][number].tolist() for key, of in each.items()}
                    for name, each in gaps.items()
                },
            }
    return found


def worst_group(measured: Mapping[str, Any], predictor: str) -> tuple[str, str, bool] | None:
    """Return the grouping and group of the largest NLL, and whether it is significantly larger.

    Only groups whose NLL is finite are compared; `None` if there is no group.
    """
    found = [
        (gaps["nll"][0], grouping, group, gaps["nll"][3] <= 1 - LEVEL)
        for grouping, of in measured.items()
        for group, each in of.items()
        if "nll" in (gaps := each["gaps"][predictor])
    ]
    if not found:
        return None
    significant = [each for each in found if each[3] and each[0] > 0]
    _, grouping, group, is_worse = max(significant or found, key=lambda each: each[0])
    return grouping, group, bool(significant) and is_worse


def _measured(predictions, y, rows, weights, seed) -> dict[str, Any]:
    """Return the content of `metrics.json` for some examples."""
    if all(isinstance(of, ClassPredictions) for of in predictions.values()):
        part = {
            name: ClassPredictions(
                np.asarray(of.probs)[rows],
                log_probs=None if of.log_probs is None else np.asarray(of.log_probs)[rows],
            )
            for name, of in predictions.items()
        }
        return measure_classification(part, y, {}, weights=weights, seed=seed)
    part = {name: _cut(of, rows) for name, of in predictions.items()}
    return measure_regression(part, y, weights=weights, seed=seed)


def _cut(of: Any, rows: np.ndarray) -> Any:
    """Return a dataclass of arrays, and of dataclasses of arrays, for some examples."""
    if of is None:
        return None
    if dataclasses.is_dataclass(of):
        fields = (field.name for field in dataclasses.fields(of))
        return dataclasses.replace(of, **{name: _cut(getattr(of, name), rows) for name in fields})
    return np.asarray(of)[rows]


def _columns(of: ClassPredictions | RegressionPredictions, y: ArrayLike) -> dict[str, np.ndarray]:
    """Return one number for each example, of which the metric is the mean."""
    if isinstance(of, ClassPredictions):
        probs, labels = classified(of.probs, y)
        logs = None if of.log_probs is None else floating(of.log_probs)
        scores = class_scores(probs, labels, logs)
        return {
            "accuracy": scores.hits,
            "overconfidence": probs.max(axis=1).astype(float) - scores.hits,
            "nll": scores.losses,
            "brier": scores.squares,
        }
    mean, std, targets = numbers(of.mean, of.std, y)
    scores = target_scores(of, np.asarray(y))
    return {
        "nll": scores.losses,
        "mae": np.abs(targets - mean).mean(axis=1),
        "crps": scores.crps.mean(axis=1),
        "coverage_90": as_columns((scores.low <= targets) & (targets <= scores.high)),
        "chi_squared": np.square((targets - mean) / std).mean(axis=1),
    }


def _gaps(
    columns: Mapping[str, Float[np.ndarray, " N"]],
    groupings: Mapping[str, Groups],
    weights: Float[np.ndarray, " N"],
    seed: int,
) -> dict[str, dict[str, Float[np.ndarray, "G 4"]]]:
    """Return `[gap, low, high, p_value]` of each group by metric and grouping."""
    keys = [key for key, of in columns.items() if np.isfinite(of).all()]
    if not keys:
        return {}
    values = np.stack([columns[key] for key in keys], axis=1)
    used = weights > 0
    values, weights = values[used], weights[used]
    codes = {name: of.codes[used] for name, of in groupings.items()}
    if are_counts(weights) and weights.sum() <= _MOST_REPEATED:
        each = np.repeat(np.arange(len(weights)), weights.astype(int))
        values, weights = values[each], np.ones(len(each))
        codes = {name: code[each] for name, code in codes.items()}
    sizes = {name: len(of.names) for name, of in groupings.items()}
    overall = weights @ values / weights.sum()
    values = values - overall
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM,)))
    spread = np.sqrt(weights @ np.square(values) / weights.sum())

    def standardized(order: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Return gaps and their standard errors, of the groups of all groupings together."""
        shares, parts = weights[order], (weights[:, None] * values)[order]
        gaps, errors = [], []
        for name, code in codes.items():
            total = np.bincount(code, shares, sizes[name])[:, None]
            squares = np.bincount(code, np.square(shares), sizes[name])[:, None]
            sums = [np.bincount(code, part, sizes[name]) for part in parts.T]
            gaps.append(_ratio(np.stack(sums, axis=1), total))
            # The error of a random subset of as many examples as these weights are worth.
            inverse, of_all = _ratio(squares, np.square(total)), shares @ shares / shares.sum() ** 2
            errors.append(np.sqrt(np.maximum(inverse - of_all, 0)) * spread)
        return np.concatenate(gaps), np.concatenate(errors)

    gaps, errors = standardized(slice(None))
    largest = np.empty((NUM_PERMUTATIONS, len(keys)))
    for row in range(NUM_PERMUTATIONS):
        drawn, scale = standardized(rng.permutation(len(weights)))
        largest[row] = _ratio(np.abs(drawn), scale).max(axis=0)
    own = _ratio(np.abs(gaps), errors)
    above = (largest[:, None] >= own[None] * (1 - 1e-9)).sum(axis=0)
    p_values = (1 + above) / (NUM_PERMUTATIONS + 1)
    reach = np.quantile(largest, LEVEL, axis=0, method="higher") * errors
    stacked = np.stack([gaps, gaps - reach, gaps + reach, p_values], axis=2)
    ends = np.cumsum([0, *sizes.values()])
    return {
        key: {name: stacked[ends[at] : ends[at + 1], column] for at, name in enumerate(groupings)}
        for column, key in enumerate(keys)
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return `part / whole`, zero where `whole` is not positive."""
    return np.divide(part, whole, where=whole > 0, out=np.zeros(part.shape))
