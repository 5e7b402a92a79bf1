"""Sections on each of several classes: a table, confusions, and reliability by class."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from laplace_kit.eval import plots
from laplace_kit.eval.report import pictures
from laplace_kit.eval.report.inputs import floating
from laplace_kit.eval.report.material import Classified
from laplace_kit.eval.report.section import Section, Table
from laplace_kit.eval.report.table import display_name
from laplace_kit.eval.report.two_classes import frequencies
from laplace_kit.eval.statistics.weighting import are_counts, effective_size, ratio

MOST_CLASSES = 20  # in tables and matrices
_MOST_PICTURES = 9
_LARGE_GAP = 4.0  # standard deviations: once in sixteen thousand classes by chance


class ByClass(NamedTuple):
    """What is known of each of C classes, `(C,)` each.

    Attributes
    ----------
    num, predicted
        The number of examples with this label, and of those predicted as this class.
    recall, precision
        The share of the former, and of the latter, that are right.
    claimed, observed
        The mean probability of the class, and its frequency.
    gap
        Their difference in standard deviations of the frequency, if the probabilities are right.
    """

    num: Float[np.ndarray, " C"]
    predicted: Float[np.ndarray, " C"]
    recall: Float[np.ndarray, " C"]
    precision: Float[np.ndarray, " C"]
    claimed: Float[np.ndarray, " C"]
    observed: Float[np.ndarray, " C"]
    gap: Float[np.ndarray, " C"]


def by_class(
    probs: Float[np.ndarray, "N C"],
    labels: Int[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"],
) -> ByClass:
    """Return numbers, recall, precision and calibration of each class."""
    num_classes, total = probs.shape[1], weights.sum()
    predicted = probs.argmax(axis=1)
    num, taken, hit = (
        np.bincount(classes, weights * of, minlength=num_classes)
        for classes, of in ((labels, 1.0), (predicted, 1.0), (labels, predicted == labels))
    )
    claimed, observed = weights @ probs / total, num / total
    # The variance of a frequency if each label is drawn from its probabilities.
    shares = weights if are_counts(weights) else np.square(weights)
    spread = np.sqrt(shares @ (probs * (1 - probs))) / total
    return ByClass(
        num,
        taken,
        ratio(hit, num),
        ratio(hit, taken),
        claimed,
        observed,
        ratio(claimed - observed, spread),
    )


def confusions(
    labels: Int[np.ndarray, " N"],
    predicted: Int[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"],
    num_classes: int,
) -> Float[np.ndarray, "C C"]:
    """Return the sums of weights by label, the row, and by prediction, the column."""
    places = labels * num_classes + predicted
    sums = np.bincount(places, weights, minlength=num_classes**2)
    return sums.reshape(num_classes, num_classes)


def many_classes(of: Classified) -> Iterator[Section]:
    """Yield the sections on single classes where there are more than two."""
    if of.num_classes < 3:
        return
    labels, weights = of.labels.astype(int), of.counted
    probs = {name: floating(found) for name, found in of.probs.items()}
    found = {name: by_class(p, labels, weights) for name, p in probs.items()}
    chosen = _chosen(found)
    yield _table(of, found, chosen)
    yield _confusion(of, probs, labels, weights)
    yield _reliability(of, probs, labels, weights, chosen[:_MOST_PICTURES])


def _chosen(found: dict[str, ByClass]) -> list[int]:
    """Return the classes to show: all in their order, or those with the largest gaps."""
    gaps = np.max([np.abs(each.gap) for each in found.values()], axis=0)
    if len(gaps) <= MOST_CLASSES:
        return [*range(len(gaps))]
    return np.argsort(-gaps, kind="stable")[:MOST_CLASSES].tolist()


def _table(of: Classified, found: dict[str, ByClass], chosen: list[int]) -> Section:
    columns = ("class", "examples", "predicted", "recall", "precision", "mean P", "frequency", "")
    tables = []
    for name, each in found.items():
        rows = [_row(of.names.of_class(k), each, k) for k in chosen]
        marked = tuple(place for place, k in enumerate(chosen) if abs(each.gap[k]) > _LARGE_GAP)
        # Without a remark, there is no column of remarks.
        width = len(columns) if marked else len(columns) - 1
        shown = tuple(row[:width] for row in rows)
        tables.append(Table(columns[:width], shown, title=display_name(name), marked=marked))
    which = ""
    if len(chosen) < of.num_classes:
        which = (
            f" Shown are the {len(chosen)} of {of.num_classes:,} classes whose mean probability "
            "is furthest from their frequency, in standard deviations."
        )
    return Section(
        "Classes",
        "For each class: the number of examples with this label, and of those predicted as it; "
        "recall, the share of the former that is found, and precision, the share of the latter "
        "that is right; the mean predicted probability, which for a calibrated predictor equals "
        "the frequency. Marked classes differ by more than four standard deviations." + which,
        tables=tuple(tables),
        key="classes",
        numbers={
            "shown": [of.names.of_class(k) for k in chosen],
            **{
                name: {field: values[chosen].tolist() for field, values in each._asdict().items()}
                for name, each in found.items()
            },
        },
    )


def _row(name: str, of: ByClass, k: int) -> tuple[str, ...]:
    large = abs(of.gap[k]) > _LARGE_GAP
    word = ("claimed too often" if of.gap[k] > 0 else "claimed too rarely") if large else ""
    return (
        name,
        f"{of.num[k]:,.6g}",
        f"{of.predicted[k]:,.6g}",
        f"{of.recall[k]:.1%}" if of.num[k] else "–",
        f"{of.precision[k]:.1%}" if of.predicted[k] else "–",
        f"{of.claimed[k]:.2%}",
        f"{of.observed[k]:.2%}",
        word,
    )


def _confusion(of: Classified, probs, labels, weights) -> Section:
    """Return the confusion matrices as pictures, or of many classes the most frequent errors."""
    predicted = {name: p.argmax(axis=1) for name, p in probs.items()}
    if of.num_classes > MOST_CLASSES:
        return _frequent_errors(of, predicted, labels, weights)
    names = [pictures.drawn_name(of.names.of_class(k), str(k)) for k in range(of.num_classes)]
    drawn = []
    for name, classes in predicted.items():
        counts = confusions(labels, classes, weights, of.num_classes)
        figure = pictures.new_figure(4.6)
        plots.confusion_matrix(figure.subplots(), counts, names)
        wrong = counts - np.diag(np.diag(counts))
        row, column = np.unravel_index(wrong.argmax(), wrong.shape)
        caption = f"{display_name(name)}: no errors"
        if wrong.any():
            caption = (
                f"{display_name(name)}: most often {of.names.of_class(int(row))} is taken for "
                f"{of.names.of_class(int(column))}, {wrong[row, column]:,.6g} times"
            )
        file = pictures.file_name("confusion", name)
        drawn.append(pictures.picture(file, caption, figure))
    note = (
        "How many examples of each class, a row, are predicted as each class, a column. The "
        "darker, the larger the share of the row; errors are off the diagonal."
    )
    return Section("Confusion matrix", note, tuple(drawn))


def _frequent_errors(of: Classified, predicted, labels, weights) -> Section:
    tables = []
    for name, classes in predicted.items():
        wrong = classes != labels
        places = labels[wrong] * of.num_classes + classes[wrong]
        kinds, where = np.unique(places, return_inverse=True)
        sums = np.bincount(where, weights[wrong], minlength=len(kinds))
        first = np.argsort(-sums, kind="stable")[:MOST_CLASSES]
        rows = tuple(
            (
                of.names.of_class(int(kinds[k] // of.num_classes)),
                of.names.of_class(int(kinds[k] % of.num_classes)),
                f"{sums[k]:,.6g}",
            )
            for k in first
        )
        tables.append(Table(("label", "predicted", "examples"), rows, title=display_name(name)))
    note = "The most frequent errors: which class is taken for which, and how often."
    return Section("Confusions", note, tables=tuple(tables))


def _reliability(of: Classified, probs, labels, weights, chosen: list[int]) -> Section:
    """Return reliability diagrams of single classes, with a curve for each predictor."""
    drawn, curves = [], pictures.legend_names(probs)
    for k in chosen:
        figure, happened, ends = pictures.new_figure(4.2), (labels == k).astype(float), []
        ax = figure.subplots()
        for series, (name, p) in enumerate(probs.items()):
            bins = frequencies(p[:, k].astype(float), happened, weights)
            plots.probability_reliability(ax, *bins, label=curves[name], series=series)
            ends.append(f"{display_name(name)} {weights @ p[:, k] / weights.sum():.2%}")
        title = of.names.of_class(k)
        ax.set_xlabel(f"predicted probability of {pictures.drawn_name(title, str(k))}")
        size = effective_size(weights) * float(weights @ happened / weights.sum())
        caption = (
            f"{title}, {size:,.6g} examples, {weights @ happened / weights.sum():.2%} of all; "
            f"mean probability: {', '.join(ends)}"
        )
        caption = pictures.with_legend_key(caption, probs)
        drawn.append(pictures.picture(f"class_{k}.png", caption, figure))
    note = (
        "The frequency of each class against its predicted probability, with 95% intervals; on "
        "the dashed line the probability is calibrated."
    )
    if len(chosen) < of.num_classes:
        note += f" Shown are {len(chosen)} of {of.num_classes:,} classes, as in the table above."
    return Section("Reliability by class", note, tuple(drawn))
