"""Sections of a regression report; captions quote measured values."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import ArrayLike, Float, Num

from laplace_kit.eval import plots
from laplace_kit.eval.plots.style import MOST_POINTS
from laplace_kit.eval.report import pictures, trends
from laplace_kit.eval.report.pictures import TEST
from laplace_kit.eval.report.section import Section
from laplace_kit.eval.report.table import Values, display_name, number

_ByName = Mapping[str, Float[np.ndarray, " N"]]
_Intervals = Mapping[str, tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]]


def bands(
    x: Num[ArrayLike, " N"],
    mean: _ByName,
    std: _ByName,
    intervals: _Intervals,
    epistemic_std: _ByName,
    y: Num[ArrayLike, " N"],
    measured: Mapping[str, Values],
    labels: tuple[str, str] = ("input", "output"),
) -> Section:
    """Draw the predictive band over one input, with the targets, for each predictor."""
    drawn, figures = [], {name: pictures.new_figure(3.6) for name in mean}
    for name, figure in figures.items():
        plots.predictive_band(
            figure.subplots(),
            x,
            mean[name],
            std[name],
            epistemic_std.get(name),
            x_observed=x,
            y_observed=y,
            interval=intervals[name],
        ).set(xlabel=labels[0], ylabel=labels[1])
    pictures.with_same_axes([*figures.values()])
    for name, figure in figures.items():
        caption = pictures.caption(name, TEST, "coverage_90", measured[name])
        drawn.append(pictures.picture(pictures.file_name("band", name), caption, figure))
    note = "Predictive mean and central 90% interval, with the targets of the test set."
    return Section("Predictive band", note, tuple(drawn))


def predicted(
    mean: _ByName,
    std: _ByName,
    intervals: _Intervals,
    y: Num[ArrayLike, " N"],
    measured: Mapping[str, Values],
    target: str = "",
) -> Section:
    """Draw predictions with their intervals against the targets, for each predictor."""
    drawn, figures = [], {name: pictures.new_figure(4.2) for name in mean}
    for name, figure in figures.items():
        plots.predicted_against_observed(
            figure.subplots(), mean[name], std[name], y, interval=intervals[name]
        ).set(xlabel=f"observed {target}".strip(), ylabel=f"predicted {target}".strip())
    pictures.with_same_axes([*figures.values()])
    for name, figure in figures.items():
        caption = pictures.caption(name, TEST, "rmse", measured[name])
        drawn.append(pictures.picture(pictures.file_name("predicted", name), caption, figure))
    note = "For a calibrated predictor, nine in ten of the 90% intervals cross the dashed line."
    if len(np.ravel(y)) > MOST_POINTS:
        note = "For a good predictor, the predictions are close to the dashed line."
    return Section("Predicted against observed", note, tuple(drawn))


def coverage(
    levels: Float[np.ndarray, " L"],
    covered: Mapping[str, Float[np.ndarray, " L"]],
    measured: Mapping[str, Values],
) -> Section:
    """Draw the coverage curves of all predictors in one plot."""
    figure = pictures.new_figure(4.2)
    ax = figure.subplots()
    labels = pictures.legend_names(covered)
    for series, (name, shares) in enumerate(covered.items()):
        plots.level_curve(ax, levels, shares, label=labels[name], series=series)
    found = (f"{display_name(name)} {number(measured[name]['coverage_90'])}" for name in covered)
    caption = pictures.with_legend_key(f"Coverage of 90% intervals: {', '.join(found)}", covered)
    sides = (f"{display_name(n)} {trends.of_levels(levels, of)}" for n, of in covered.items())
    drawn = pictures.picture("coverage.png", caption, figure, f"{caption}. {'; '.join(sides)}")
    note = (
        "Fraction of the targets inside the central intervals of each nominal level. Below the "
        "dashed line the intervals are too narrow, above it too wide. For counts, whether an end "
        "belongs to its interval is drawn at random, so that calibrated ones are on the line."
    )
    return Section("Coverage", note, (drawn,))


def integral_transforms(
    pit: _ByName, weights: Float[np.ndarray, " N"], measured: Mapping[str, Values]
) -> Section:
    """Draw the PIT histogram for each predictor."""
    drawn, figures = [], {name: pictures.new_figure() for name in pit}
    for name, figure in figures.items():
        plots.pit_histogram(figure.subplots(), pit[name], weights=weights)
    pictures.with_same_axes([*figures.values()])
    for name, figure in figures.items():
        caption = pictures.caption(name, TEST, "crps", measured[name])
        alt = f"{caption}. {trends.of_transforms(pit[name], weights)}"
        drawn.append(pictures.picture(pictures.file_name("pit", name), caption, figure, alt))
    note = (
        "The predictive distribution functions at the targets. For calibrated predictions the "
        "histogram is flat within the grey band. A U-shape means predictive distributions that are "
        "too narrow, a hump means too wide, a slope means biased. For counts the values are "
        "randomised within their steps."
    )
    return Section("Probability integral transform", note, tuple(drawn))


def risk_coverage(
    curves: Mapping[str, tuple[Float[ArrayLike, " _"], Float[ArrayLike, " _"]]],
) -> Section:
    """Draw the squared error that remains if the widest predictions are deferred."""
    figure = pictures.new_figure(3.8)
    ax = figure.subplots()
    labels = pictures.legend_names(curves)
    for series, (name, (kept, risk)) in enumerate(curves.items()):
        plots.risk_coverage_curve(ax, kept, risk, label=labels[name], series=series)
    ax.set_ylabel("mean squared error of those kept")
    caption = pictures.with_legend_key(f"{pictures.names(curves)}, {TEST}", curves)
    ends = (f"{display_name(name)} {trends.of_risk(*of, False)}" for name, of in curves.items())
    alt = f"{caption}. Mean squared error: {'; '.join(ends)}"
    note = (
        "The mean squared error of the predictions with the smallest predictive standard "
        "deviations. If the standard deviations are informative, the curve falls towards the left; "
        "if they are all equal, the order of the predictions is arbitrary."
    )
    return Section(
        "Risk-coverage curve", note, (pictures.picture("risk_coverage.png", caption, figure, alt),)
    )


def uncertainty(
    mean: _ByName,
    std: _ByName,
    epistemic_std: _ByName,
    y: Num[ArrayLike, " N"],
    weights: Float[np.ndarray, " N"],
) -> Section:
    """Draw epistemic against aleatoric standard deviations where they are known, by predictor."""
    drawn, figures = [], {name: pictures.new_figure(3.8) for name in epistemic_std}
    for name, part in epistemic_std.items():
        noise = np.sqrt(np.clip(std[name] ** 2 - part**2, 0.0, None))
        plots.deviation_scatter(figures[name].subplots(), noise, part, np.abs(y - mean[name]))
    for label in dict.fromkeys(figure.axes[0].get_xlabel() for figure in figures.values()):
        alike = [figure for figure in figures.values() if figure.axes[0].get_xlabel() == label]
        pictures.with_same_axes(alike)
    for name, part in epistemic_std.items():
        figure = figures[name]
        share = number(float((weights @ part**2) / (weights @ std[name] ** 2)))
        caption = f"{display_name(name)}, {TEST}: epistemic share of the variance {share}"
        drawn.append(pictures.picture(pictures.file_name("uncertainty", name), caption, figure))
    note = (
        "The predictive standard deviation in two parts: aleatoric, the noise, which more data "
        "would not remove, and epistemic, due to uncertainty in the weights."
    )
    return Section("Epistemic against aleatoric", note, tuple(drawn))
