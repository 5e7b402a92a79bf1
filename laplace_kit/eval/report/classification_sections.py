"""Sections of a classification report; captions quote measured values."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Num

from laplace_kit.eval import plots
from laplace_kit.eval.plots.style import MOST_POINTS
from laplace_kit.eval.report import pictures, trends
from laplace_kit.eval.report.material import hard_labels
from laplace_kit.eval.report.pictures import TEST
from laplace_kit.eval.report.scores import SCORES
from laplace_kit.eval.report.section import Section
from laplace_kit.eval.report.table import Values, display_name, number
from laplace_kit.eval.statistics.confidence import NUM_BINS as _NUM_BINS
from laplace_kit.eval.statistics.confidence import reliability as binned
from laplace_kit.eval.statistics.weighting import checked

_ByName = Mapping[str, Float[ArrayLike, "_ C"]]
_Scores = Mapping[str, Mapping[str, Float[np.ndarray, " _"]]]


def reliability(
    probs: Mapping[str, _ByName],
    labels: Mapping[str, ArrayLike],
    measured: Mapping[str, Mapping[str, Values]],
    weights: Mapping[str, Num[np.ndarray, " _"] | None],
) -> Section:
    """Draw a reliability diagram with bin counts for each set and predictor."""
    drawn = []
    for where, by_name in probs.items():
        figures = {name: pictures.new_figure(4.8) for name in by_name}
        for name, predicted in by_name.items():
            upper, lower = figures[name].subplots(2, 1, sharex=True, height_ratios=(3, 1))
            given = predicted, labels[where]
            plots.reliability_diagram(upper, *given, weights=weights[where]).set_xlabel("")
            plots.bin_counts(lower, *given, weights=weights[where])
        pictures.with_same_axes([*figures.values()])
        for name, figure in figures.items():
            caption = pictures.caption(name, where, "ece", measured[where][name])
            file = pictures.file_name("reliability", name, where)
            found = binned(by_name[name], labels[where], _NUM_BINS, weights[where])
            trend = trends.of_bins(found.confidence, found.accuracy, found.counts)
            drawn.append(pictures.picture(file, caption, figure, f"{caption}. {trend}"))
    note = (
        "Accuracy of the predictions in each bin of confidence. Bars that end at the dashed line "
        "are calibrated; bars that end below it are over-confident. A bar that ends inside the "
        "dark whisker is consistent with calibration. The lower panel shows the number of "
        "predictions in each bin."
    )
    return Section("Reliability", note, tuple(drawn))


def confidence(
    probs: _ByName,
    y: ArrayLike,
    measured: Mapping[str, Values],
    weights: Num[np.ndarray, " _"] | None,
) -> Section:
    """Draw histograms of the confidence of correct and wrong test predictions, by predictor."""
    drawn, figures = [], {name: pictures.new_figure() for name in probs}
    for name, predicted in probs.items():
        plots.confidence_histogram(figures[name].subplots(), predicted, y, weights=weights)
    pictures.with_same_axes([*figures.values()])
    for name, figure in figures.items():
        caption = pictures.caption(name, TEST, "accuracy", measured[name])
        file, predicted = pictures.file_name("confidence", name), np.asarray(probs[name], float)
        right = predicted.argmax(axis=1) == hard_labels(y)
        counted = checked(weights, len(right))
        trend = trends.of_confidence(predicted.max(axis=1), right, counted)
        drawn.append(pictures.picture(file, caption, figure, f"{caption}. {trend}"))
    note = (
        "Histograms of the confidence of correct and of wrong predictions, each normalised to one. "
        "Errors made with high confidence are the costly ones."
    )
    return Section("Confidence, correct and wrong", note, tuple(drawn))


def risk_coverage(
    curves: Mapping[str, tuple[Float[ArrayLike, " _"], Float[ArrayLike, " _"]]],
    measured: Mapping[str, Values],
) -> Section:
    """Draw the risk-coverage curves `(coverage, risk)` of all predictors together."""
    figure = pictures.new_figure(3.8)
    ax = figure.subplots()
    labels = pictures.legend_names(curves)
    for series, (name, (coverage, risk)) in enumerate(curves.items()):
        plots.risk_coverage_curve(ax, coverage, risk, label=labels[name], series=series)
    ax.set_ylabel("error rate of those kept")
    found = (f"{display_name(name)} {number(measured[name]['aurc'])}" for name in curves)
    caption = pictures.with_legend_key(f"AURC: {', '.join(found)}", curves)
    ends = (f"{display_name(name)} {trends.of_risk(*of, True)}" for name, of in curves.items())
    alt = f"{caption}. Error rate: {'; '.join(ends)}"
    drawn = pictures.picture("risk_coverage.png", caption, figure, alt)
    note = (
        "Selective prediction: the error rate of the remaining predictions if the least confident "
        "ones are deferred. If the confidence is informative, the curve falls towards the left. "
        "The area under it is the AURC, the lower the better."
    )
    return Section("Risk-coverage curve", note, (drawn,))


def uncertainty(
    parts: Mapping[str, tuple[Float[ArrayLike, " N"], Float[ArrayLike, " N"]]],
    right: Mapping[str, Bool[np.ndarray, " N"]],
    weights: Float[np.ndarray, " N"],
) -> Section:
    """Draw the parts `(aleatoric, epistemic)` of the entropy where they are known, by predictor."""
    drawn, figures = [], {name: pictures.new_figure(3.8) for name in parts}
    for name, each in parts.items():
        plots.entropy_scatter(figures[name].subplots(), *each, right[name])
    pictures.with_same_axes([*figures.values()])
    for name, figure in figures.items():
        aleatoric, epistemic = (np.asarray(part, float) for part in parts[name])
        whole = max(weights @ (aleatoric + epistemic), np.finfo(float).tiny)
        share = number(weights @ epistemic / whole)
        caption = f"{display_name(name)}, {TEST}: epistemic share of the entropy {share}"
        drawn.append(pictures.picture(pictures.file_name("uncertainty", name), caption, figure))
    note = (
        "The entropy of each prediction in two parts: the epistemic part is the mutual information "
        "of label and weights, which more data would remove; the aleatoric part is the expected "
        "entropy given the weights, which more data would not remove."
    )
    if max(map(len, right.values())) > MOST_POINTS:
        note += (
            " So many predictions are drawn as a density: the darker a hexagon, the more of them; "
            "the more orange, the larger the share of wrong ones."
        )
    return Section("Epistemic against aleatoric", note, tuple(drawn))


def score_histograms(
    where: str,
    inside: _Scores,
    outside: _Scores,
    measured: Mapping[str, Values],
    weights: Float[np.ndarray, " N"],
) -> Section:
    """Draw score histograms of an out-of-distribution set and the test set, by predictor."""
    drawn, limits = [], _limits(inside, outside)
    figures = {name: pictures.new_figure(2.2 * len(of) + 0.4) for name, of in outside.items()}
    for name, scores in outside.items():
        axes = np.atleast_1d(figures[name].subplots(len(scores), 1))
        for ax, (kind, values) in zip(axes, scores.items(), strict=True):
            given = inside[name][kind], values
            plots.score_histograms(ax, *given, limits=limits[kind], in_weights=weights)
            ax.set_xlabel(SCORES[kind].label)
        for ax in axes[1:]:
            ax.get_legend().remove()
    pictures.with_same_axes([*figures.values()])
    for name, scores in outside.items():
        figure = figures[name]
        found = (f"{SCORES[kind].short} {_auroc(measured[name], kind)}" for kind in scores)
        caption = f"{display_name(name)}, {where}: AUROC by {', by '.join(found)}"
        drawn.append(pictures.picture(pictures.file_name("ood", name, where), caption, figure))
    note = (
        "Uncertainty scores of the test set and of out-of-distribution inputs: the less they "
        "overlap, the better the score detects such inputs. The epistemic score is the part of the "
        "entropy that is due to uncertainty in the weights."
    )
    return Section(f"Out of distribution, {where}", note, tuple(drawn))


def _limits(inside: _Scores, outside: _Scores) -> dict[str, tuple[float, float]]:
    """Return the range of each score over all predictors and both samples."""
    found = {}
    for name, scores in outside.items():
        for kind, values in scores.items():
            both = np.concatenate([inside[name][kind], values])
            low, high = found.get(kind, (np.inf, -np.inf))
            found[kind] = (min(low, float(both.min())), max(high, float(both.max())))
    return found


def roc_curves(
    where: str,
    curves: Mapping[str, Mapping[str, tuple[Float[ArrayLike, " _"], Float[ArrayLike, " _"]]]],
    measured: Mapping[str, Values],
    predictors: Sequence[str],
) -> Section:
    """Draw the ROC curves of an out-of-distribution set, with the same colours as elsewhere."""
    drawn, labels = [], pictures.legend_names(predictors)
    for kind, by_name in curves.items():
        figure = pictures.new_figure(4.4)
        ax = figure.subplots()
        for name, (false_positive, true_positive) in by_name.items():
            series = predictors.index(name)
            plots.roc_curve(ax, false_positive, true_positive, label=labels[name], series=series)
        found = (f"{display_name(name)} {_auroc(measured[name], kind)}" for name in by_name)
        caption = f"By {SCORES[kind].short}, {where}: AUROC {', '.join(found)}"
        caption = pictures.with_legend_key(caption, predictors)
        drawn.append(pictures.picture(f"roc_{kind}@{where}.png", caption, figure))
    note = (
        "ROC curves of the detection of out-of-distribution inputs: the fraction of them that is "
        "flagged, against the fraction of the test set that is flagged. The area under the curve "
        "is the AUROC: 1 for perfect detection, 0.5 for chance."
    )
    return Section(f"Detection, {where}", note, tuple(drawn))


def _auroc(values: Values, kind: str) -> str:
    return number(values[f"auroc{SCORES[kind].suffix}"])
