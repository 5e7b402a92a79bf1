"""Metrics by group: every metric with its interval, gaps, the worst group, reliability."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import ArrayLike, PyTree

from laplace_kit.eval.evaluation import class_log_probs, weights_of_rows
from laplace_kit.eval.given import Predictions, class_rows, is_of_numbers, numbers_given
from laplace_kit.eval.grouping import Groups, as_groupings
from laplace_kit.eval.observed import checked_targets
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.report import ClassPredictions
from laplace_kit.eval.report.group_measures import LEVEL, measure_groups, worst_group
from laplace_kit.eval.report.registry import METRICS
from laplace_kit.eval.report.table import number
from laplace_kit.eval.statistics.confidence import NUM_BINS, ReliabilityBins, reliability
from laplace_kit.host import fetch_array
from laplace_kit.likelihood import Likelihood

_NAME = "predictions"


@dataclass(frozen=True)
class Gap:
    """A group's metric minus that of all examples.

    Parameters
    ----------
    value, low, high
        The gap, and a 95% interval, simultaneous over the groups of a metric, for groups whose
        values spread like those of all examples; it is too narrow for groups that spread more.
    p_value
        Adjusted for all groups: at most 0.05 is significant, however many there are.
    """

    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class GroupMetrics:
    """Metrics by grouping and group; `str(metrics)` is a table.

    Parameters
    ----------
    sizes
        The number of examples: `sizes[grouping][group]`.
    values, intervals
        Metrics by name: `values[grouping][group]["ece"]`, and 95% bootstrap intervals.
    gaps
        A `Gap` for each metric that is a mean over examples.
    reliability
        Bins of confidence and accuracy, for classes.
    worst
        The grouping and group of the largest NLL: the largest among those significantly larger than
        that of all examples, if any.
    is_worse
        Whether the NLL of the worst group is significantly larger.
    """

    sizes: Mapping[str, Mapping[str, int]]
    values: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    intervals: Mapping[str, Mapping[str, Mapping[str, list[float]]]]
    gaps: Mapping[str, Mapping[str, Mapping[str, Gap]]]
    reliability: Mapping[str, Mapping[str, ReliabilityBins]]
    worst: tuple[str, str] | None
    is_worse: bool

    def __str__(self) -> str:
        """Return a table of the metrics whose gaps are known; a star marks significant ones."""
        rows = []
        for grouping, groups in self.values.items():
            keys = next(iter(self.gaps[grouping].values()))
            rows.append([grouping, "examples", *(METRICS[key].label for key in keys)])
            for group, values in groups.items():
                gaps = self.gaps[grouping][group]
                marks = ("*" if gaps[key].p_value <= 1 - LEVEL else "" for key in keys)
                cells = (number(values[key]) + mark for key, mark in zip(keys, marks, strict=True))
                rows.append([group, str(self.sizes[grouping][group]), *cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


def by_group(
    predictions: Predictions,
    y: PyTree,
    groups: Any,
    *,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> GroupMetrics:
    """Return every metric by group, and which groups differ from all examples.

    Parameters
    ----------
    predictions
        A `Predictive`; probabilities `(N, C)`, or of class 1 `(N,)`; or a pair of means and
        standard deviations of normal distributions.
    y
        Labels or targets; with a mask, `(y, mask)`, for a predictive.
    groups
        The group of each example, `(N,)`, as numbers or text; several groupings as a mapping from
        names to such arrays, or a DataFrame.
    weights
        Weights of the examples, `(N,)`.
    seed
        The seed of the resamples and permutations.

    Returns
    -------
    metrics
        A `GroupMetrics`. Gaps are tested by 1,000 permutations of the examples, which control, for
        each metric, the probability that any of several random subsets is starred; a group of the
        same mean whose values spread more may be starred too. Cost: the metrics of a report for
        each grouping, in NumPy; nothing is compiled for arrays.

    Raises
    ------
    TypeError, ValueError
        If predictions, targets or weights are not valid, or there is not one group for each
        example.

    References
    ----------
    Westfall and Young (1993), Resampling-based multiple testing, for the largest of all statistics.
    """
    is_predictive, is_numbers = isinstance(predictions, Predictive), is_of_numbers(predictions)
    if is_numbers:
        found, rows = numbers_given(predictions, y, weights)
    else:
        rows = class_rows(predictions, y, weights)
        found = ClassPredictions(rows.probs)
        if is_predictive:
            found = replace(found, log_probs=class_log_probs(*_given(predictions, y)))
    groupings = as_groupings(groups, len(predictions.f_mean) if is_predictive else len(rows.y))
    if is_predictive and (isinstance(y, tuple) or not is_numbers):  # a row for each label
        groupings = {
            name: Groups(of.names, _of_rows(predictions, y, of.codes))
            for name, of in groupings.items()
        }
    measured = measure_groups({_NAME: found}, rows.y, groupings, weights=rows.weights, seed=seed)
    worst = worst_group(measured, _NAME)
    bins = {}
    if isinstance(found, ClassPredictions):
        bins = {
            grouping: {
                str(group): reliability(
                    rows.probs[is_in], rows.y[is_in], NUM_BINS, rows.weights[is_in]
                )
                for code, group in enumerate(of.names)
                if rows.weights[is_in := of.codes == code].any()
            }
            for grouping, of in groupings.items()
        }

    def each(pick):
        return {
            grouping: {group: pick(of) for group, of in groups_of.items()}
            for grouping, groups_of in measured.items()
        }

    return GroupMetrics(
        each(lambda of: of["num_examples"]),
        each(lambda of: of[_NAME]),
        each(lambda of: of["intervals"][_NAME]),
        each(lambda of: {key: Gap(*gap) for key, gap in of["gaps"][_NAME].items()}),
        bins,
        None if worst is None else worst[:2],
        worst is not None and worst[2],
    )


def _of_rows(predictive: Predictive, y: PyTree, codes):
    """Return the group of each row of a predictive, which has one for each observed label."""
    return fetch_array(weights_of_rows(*_given(predictive, y), codes), int)


def _given(predictive: Predictive, y: PyTree) -> tuple[Likelihood, Predictive, PyTree]:
    likelihood, values = checked_targets(predictive, y)
    return likelihood, predictive, values
