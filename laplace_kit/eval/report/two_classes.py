"""Sections on two classes: the probability of the second one, and thresholds for decisions."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

from laplace_kit.eval import plots
from laplace_kit.eval.report import pictures, trends
from laplace_kit.eval.report.inputs import floating
from laplace_kit.eval.report.material import Classified
from laplace_kit.eval.report.section import Section, Table
from laplace_kit.eval.report.table import display_name, number
from laplace_kit.eval.statistics.detection import detection_scores, detection_sums, roc_curve
from laplace_kit.eval.statistics.weighting import effective_size, ratio

_NUM_BINS = 10
_RATIOS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # costs of a false negative over a false positive


class Bins(NamedTuple):
    """The mean probability, the frequency and the number of examples in each of B bins."""

    claimed: Float[np.ndarray, " B"]
    observed: Float[np.ndarray, " B"]
    counts: Float[np.ndarray, " B"]


class Decision(NamedTuple):
    """What follows from flagging examples whose probability is at least a threshold.

    Attributes
    ----------
    ratio
        The cost of a false negative over that of a false positive, for which the threshold
        minimises the expected cost if the probabilities are right.
    threshold
        The threshold, `1 / (1 + ratio)`.
    flagged, precision, recall
        The share of the examples that are flagged; of the flagged ones, the share that is positive;
        and of the positive ones, the share that is flagged.
    false_positives, false_negatives
        Their numbers; sums of weights.
    cost, cost_of_none
        The cost for each example, and that of the better of flagging all or none.
    """

    ratio: float
    threshold: float
    flagged: float
    precision: float
    recall: float
    false_positives: float
    false_negatives: float
    cost: float
    cost_of_none: float


def frequencies(
    claimed: Float[np.ndarray, " N"],
    happened: Float[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"],
    num_bins: int = _NUM_BINS,
) -> Bins:
    """Return mean probabilities and frequencies of an event in bins of equal width."""
    places = np.minimum((claimed * num_bins).astype(int), num_bins - 1)
    sums = [
        np.bincount(places, weights * of, minlength=num_bins) for of in (1.0, claimed, happened)
    ]
    counts = sums[0] * effective_size(weights) / weights.sum()
    return Bins(ratio(sums[1], sums[0]), ratio(sums[2], sums[0]), counts)


def decide(
    claimed: Float[np.ndarray, " N"],
    happened: Float[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"],
    ratio_of_costs: float,
    cost_of_false_positive: float = 1.0,
) -> Decision:
    """Return what follows from the threshold that is best for a ratio of costs.

    Parameters
    ----------
    claimed, happened, weights
        The probability of the positive class, the label (1 if positive; soft ones between), and the
        weight of each example.
    ratio_of_costs, cost_of_false_positive
        The cost of a false negative over that of a false positive, and that of the latter.

    References
    ----------
    Elkan (2001), "The foundations of cost-sensitive learning".
    """
    threshold = 1.0 / (1.0 + ratio_of_costs)
    flagged = claimed >= threshold
    total, positive = weights.sum(), float(weights @ happened)
    taken, hit = float(weights @ flagged), float(weights @ (flagged * happened))
    false_positives, false_negatives = taken - hit, positive - hit
    return Decision(
        ratio_of_costs,
        threshold,
        taken / total,
        float(ratio(np.array(hit), np.array(taken))),
        float(ratio(np.array(hit), np.array(positive))),
        false_positives,
        false_negatives,
        cost_of_false_positive * (false_positives + ratio_of_costs * false_negatives) / total,
        cost_of_false_positive * min(ratio_of_costs * positive, total - positive) / total,
    )


def positives(y: ArrayLike) -> Float[np.ndarray, " N"]:
    """Return whether each label is the second class; its probability in soft labels `(N, 2)`."""
    y = np.asarray(y)
    return (y if y.ndim == 1 else y[:, 1]).astype(float)


def two_classes(of: Classified) -> Iterator[Section]:
    """Yield the sections on the second of two classes, none for more classes."""
    if of.num_classes != 2:
        return
    happened, weights = positives(of.y), of.counted
    claimed = {name: floating(probs)[:, 1].astype(float) for name, probs in of.probs.items()}
    name, base_rate = of.names.of_class(1), float(weights @ happened / weights.sum())
    sums = {
        predictor: detection_sums(
            detection_scores(p, p), (weights * (1 - happened))[None], (weights * happened)[None]
        )
        for predictor, p in claimed.items()
    }
    drawn = [_reliability(of, claimed, happened, weights)]
    if 0 < base_rate < 1:  # otherwise there is nothing to tell apart
        drawn += [_roc(of, sums), _precision_recall(of, sums, base_rate)]
    yield Section(
        "Probability of the positive class",
        f"The probability of class {name}, which is {base_rate:.1%} of the test set, the base "
        "rate. Left: its frequency against the predicted probability, with 95% intervals; on the "
        "dashed line the probability is calibrated. Then ROC and precision-recall curves: what "
        "flagging the most probable examples finds, and at what price. The Brier score above sums "
        "over both classes, and is twice the mean squared error of this probability.",
        tuple(drawn),
        key="positive_class",
        numbers={"class": name, "base_rate": base_rate},
    )
    yield _thresholds(of, claimed, happened, weights)


def _reliability(of: Classified, claimed, happened, weights) -> pictures.Picture:
    figure, labels = pictures.new_figure(4.4), pictures.legend_names(claimed)
    ax, gaps, sides = figure.subplots(), [], []
    for series, (name, p) in enumerate(claimed.items()):
        bins = frequencies(p, happened, weights)
        found = trends.of_bins(*bins, "frequency")
        sides.append(f"{display_name(name)}: {found}")
        plots.probability_reliability(ax, *bins, label=labels[name], series=series)
        above = "above" if weights @ p > weights @ happened else "below"
        mean = weights @ p / weights.sum()
        gaps.append(f"{display_name(name)} {mean:.1%} on average, {above} the frequency")
    ax.set_xlabel(f"predicted probability of {pictures.drawn_name(of.names.of_class(1), '1')}")
    caption = pictures.with_legend_key(f"Predicted probability: {'; '.join(gaps)}", claimed)
    alt = f"{caption}. {' '.join(sides)}"
    return pictures.picture("positive_reliability.png", caption, figure, alt)


def _roc(of: Classified, sums) -> pictures.Picture:
    figure, labels = pictures.new_figure(4.4), pictures.legend_names(sums)
    ax = figure.subplots()
    for series, (name, found) in enumerate(sums.items()):
        plots.roc_curve(ax, *roc_curve(found), label=labels[name], series=series)
    return pictures.picture("positive_roc.png", _caption("ROC curve", of, "roc_auc"), figure)


def _precision_recall(of: Classified, sums, base_rate: float) -> pictures.Picture:
    figure, labels = pictures.new_figure(4.4), pictures.legend_names(sums)
    ax = figure.subplots()
    for series, (name, found) in enumerate(sums.items()):
        true, both = found.outside[0], found.outside[0] + found.inside[0]
        flagged = both > 0  # thresholds above which there is no weight have no precision
        recall, precision = (true / true[-1])[flagged], ratio(true, both)[flagged]
        plots.precision_recall_curve(ax, recall, precision, label=labels[name], series=series)
    ax.axhline(base_rate, color="#767676", linestyle="--", linewidth=1)
    caption = _caption("Precision-recall curve", of, "average_precision")
    caption += f"; dashed: the base rate, {base_rate:.1%}"
    return pictures.picture("positive_precision_recall.png", caption, figure)


def _caption(what: str, of: Classified, key: str) -> str:
    found = (f"{display_name(name)} {number(of.measured[name][key])}" for name in of.predictions)
    return pictures.with_legend_key(f"{what}: area {', '.join(found)}", of.predictions)


def _thresholds(of: Classified, claimed, happened, weights) -> Section:
    cost_positive, cost_negative = of.costs
    own = cost_negative / cost_positive
    ratios = sorted({*_RATIOS, own})
    decisions = {
        name: [decide(p, happened, weights, each, cost_positive) for each in ratios]
        for name, p in claimed.items()
    }
    marked = (ratios.index(own),) if of.costs != (1.0, 1.0) else ()
    columns = (
        *("false negative costs", "flag from", "flagged", "precision", "recall"),
        *("false positives", "false negatives", "cost per example", "without a model"),
    )
    tables = tuple(
        Table(columns, tuple(map(_row, found)), title=display_name(name), marked=marked)
        for name, found in decisions.items()
    )
    said = f", here {cost_negative:g} to {cost_positive:g} in the marked row" if marked else ""
    return Section(
        "Decision thresholds",
        "If a false negative costs r times as much as a false positive, flag an example as "
        f"{of.names.of_class(1)} from the probability 1 / (1 + r) on{said}: with calibrated "
        "probabilities no other threshold costs less. The cost is per example, in units in which "
        f"a false positive costs {cost_positive:g}; without a model, all examples or none are "
        "flagged, whichever is cheaper.",
        tables=tables,
        key="thresholds",
        numbers={
            "costs": [cost_positive, cost_negative],
            "decisions": {
                name: [each._asdict() for each in found] for name, found in decisions.items()
            },
        },
    )


def _row(of: Decision) -> Sequence[str]:
    return (
        f"{of.ratio:.3g}×",
        f"{of.threshold:.3f}",
        f"{of.flagged:.1%}",
        f"{of.precision:.1%}" if of.flagged else "–",
        f"{of.recall:.1%}",
        f"{of.false_positives:,.6g}",
        f"{of.false_negatives:,.6g}",
        number(of.cost),
        number(of.cost_of_none),
    )
