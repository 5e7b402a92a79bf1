"""What a report draws of regressors; captions quote measured values."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import ArrayLike, Float, Num

from laplace_kit.eval import plots
from laplace_kit.eval.report import pictures
from laplace_kit.eval.report.pictures import TEST, Section
from laplace_kit.eval.report.table import Values, display_name, number

_ByName = Mapping[str, Float[np.ndarray, " N"]]


def bands(
    x: Num[ArrayLike, " N"],
    mean: _ByName,
    std: _ByName,
    epistemic_std: _ByName,
    y: Num[ArrayLike, " N"],
    measured: Mapping[str, Values],
) -> Section:
    """Draw the predictive band over one input, with the observations, for each predictor."""
    drawn = []
    for name in mean:
        figure = pictures.new_figure(3.6)
        plots.predictive_band(
            figure.subplots(),
            x,
            mean[name],
            std[name],
            epistemic_std.get(name),
            x_observed=x,
            y_observed=y,
        )
        caption = pictures.caption(name, TEST, "coverage_90", measured[name])
        drawn.append(pictures.picture(pictures.file_name("band", name), caption, figure))
    note = "Predictive mean and central 90% interval, with the observations of the test set."
    return Section("Predictive band", note, tuple(drawn))


def predicted(
    mean: _ByName, std: _ByName, y: Num[ArrayLike, " N"], measured: Mapping[str, Values]
) -> Section:
    """Draw predictions with their intervals against observations for each predictor."""
    drawn = []
    for name in mean:
        figure = pictures.new_figure(4.2)
        plots.predicted_against_observed(figure.subplots(), mean[name], std[name], y)
        caption = pictures.caption(name, TEST, "rmse", measured[name])
        drawn.append(pictures.picture(pictures.file_name("predicted", name), caption, figure))
    note = "Of a calibrated predictor's 90% intervals nine in ten cross the dashed line."
    return Section("Predicted against observed", note, tuple(drawn))


def coverage(
    mean: _ByName, std: _ByName, y: Num[ArrayLike, " N"], measured: Mapping[str, Values]
) -> Section:
    """Draw the coverage curves of all predictors together."""
    figure = pictures.new_figure(4.2)
    ax = figure.subplots()
    labels = pictures.legend_names(mean)
    for series, name in enumerate(mean):
        plots.coverage_curve(ax, mean[name], std[name], y, label=labels[name], series=series)
    found = (f"{display_name(name)} {number(measured[name]['coverage_90'])}" for name in mean)
    caption = pictures.in_words(f"Of 90% intervals: {', '.join(found)}", mean)
    drawn = pictures.picture("coverage.png", caption, figure)
    note = (
        "Share of the observations inside the central intervals of each nominal level. Below the "
        "dashed line the intervals are too narrow, above it too wide."
    )
    return Section("Coverage", note, (drawn,))


def integral_transforms(pit: _ByName, measured: Mapping[str, Values]) -> Section:
    """Draw the histogram of the probability integral transforms for each predictor."""
    drawn = []
    for name, values in pit.items():
        figure = pictures.new_figure()
        plots.pit_histogram(figure.subplots(), values)
        caption = pictures.caption(name, TEST, "crps", measured[name])
        drawn.append(pictures.picture(pictures.file_name("pit", name), caption, figure))
    note = (
        "Where the observations fall in their predictive distributions. Calibrated predictions "
        "make it flat within the grey band; a valley means that they are too narrow, a hill too "
        "wide, a slope that they are biased."
    )
    return Section("Probability integral transform", note, tuple(drawn))


def risk_coverage(
    curves: Mapping[str, tuple[Float[ArrayLike, " _"], Float[ArrayLike, " _"]]],
) -> Section:
    """Draw the squared error left where the widest predictions are handed to somebody else."""
    figure = pictures.new_figure(3.8)
    ax = figure.subplots()
    labels = pictures.legend_names(curves)
    for series, (name, (kept, risk)) in enumerate(curves.items()):
        plots.risk_coverage_curve(ax, kept, risk, label=labels[name], series=series)
    ax.set_ylabel("mean squared error of those")
    caption = pictures.in_words(f"{pictures.names(curves)}, {TEST}", curves)
    note = (
        "The error among the predictions of the smallest predictive deviation. Deviations that "
        "know where the errors are make the curve fall to the left; where all of them are alike "
        "the order means nothing."
    )
    return Section(
        "Risk against coverage", note, (pictures.picture("risk_coverage.png", caption, figure),)
    )


def uncertainty(
    mean: _ByName, std: _ByName, epistemic_std: _ByName, y: Num[ArrayLike, " N"]
) -> Section:
    """Draw epistemic against aleatoric deviation for each predictor whose parts are known."""
    drawn = []
    for name, part in epistemic_std.items():
        noise = np.sqrt(np.clip(std[name] ** 2 - part**2, 0.0, None))
        figure = pictures.new_figure(3.8)
        plots.deviation_scatter(figure.subplots(), noise, part, np.abs(y - mean[name]))
        share = number(float((part**2).sum() / (std[name] ** 2).sum()))
        caption = f"{display_name(name)}, {TEST}: epistemic share of the variance {share}"
        drawn.append(pictures.picture(pictures.file_name("uncertainty", name), caption, figure))
    note = (
        "The predictive deviation in two parts: aleatoric, the noise, which more data would not "
        "remove, and epistemic, the uncertainty about the weights."
    )
    return Section("Epistemic against aleatoric", note, tuple(drawn))
