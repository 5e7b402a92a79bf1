"""Plots of regressors: predictions against targets, coverage, PIT, uncertainty."""

from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike, Float, Num

from laplace_kit.eval import metrics
from laplace_kit.eval.plots.style import BLUE, GREY, curve, diagonal, tidy
from laplace_kit.host import fetch_array

if TYPE_CHECKING:
    import matplotlib.axes


def coverage_curve(
    ax: "matplotlib.axes.Axes",
    mean: Float[ArrayLike, "N ..."],
    std: Float[ArrayLike, "N ..."],
    y: Num[ArrayLike, "N ..."],
    *,
    num_levels: int = 19,
    label: str = "observed",
    series: int = 0,
) -> "matplotlib.axes.Axes":
    """Draw the coverage of central intervals against their nominal level.

    Below the diagonal the intervals are too narrow (over-confident), above it too wide.

    Parameters
    ----------
    ax
        Axes to draw on; several predictors may share them.
    mean, std, y
        Predictive mean, predictive standard deviation and targets, `(N, *outputs)` each.
    num_levels
        Number of nominal levels, evenly spaced between 0 and 1, both excluded.
    label
        The name of the curve in the legend.
    series
        The number of the curve, which determines its colour and line style.

    Returns
    -------
    Axes
        `ax`; its last line is the curve.
    """
    levels = np.linspace(0.0, 1.0, num_levels + 2)[1:-1]
    observed = fetch_array(metrics.interval_coverage(mean, std, y, levels))
    diagonal(ax, 0.0, 1.0)
    curve(ax, levels, observed, label, series, marker="o")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="nominal level", ylabel="observed coverage")
    return tidy(ax, legend=True)


def predictive_band(
    ax: "matplotlib.axes.Axes",
    x: Num[ArrayLike, " N"],
    mean: Float[ArrayLike, " N"],
    std: Float[ArrayLike, " N"],
    epistemic_std: Float[ArrayLike, " N"] | None = None,
    *,
    x_observed: Num[ArrayLike, " M"] | None = None,
    y_observed: Num[ArrayLike, " M"] | None = None,
    level: float = 0.9,
) -> "matplotlib.axes.Axes":
    """Draw the predictive mean and its central interval as functions of one input.

    Parameters
    ----------
    ax
        Axes to draw on.
    x
        Inputs, `(N,)`, in any order.
    mean, std
        Predictive mean and standard deviation, noise included, `(N,)` each.
    epistemic_std
        The part of `std` due to uncertainty in the weights, `(N,)`, drawn as an inner band.
    x_observed, y_observed
        Data to draw as points, `(M,)` each, for example training data.
    level
        Probability of the central intervals.

    Returns
    -------
    Axes
        `ax`; its collections are the outer band, the inner band and the points, in this order,
        where they are given; its line is the mean.

    Raises
    ------
    ValueError
        If only one of `x_observed` and `y_observed` is given.
    """
    if (x_observed is None) != (y_observed is None):
        found, missing = ("y", "x") if x_observed is None else ("x", "y")
        raise ValueError(
            f"Found {found}_observed without {missing}_observed, expected both or neither; pass "
            "the inputs and the targets of the data together."
        )
    order = np.argsort(fetch_array(x))
    x, mean, std = (fetch_array(values, float)[order] for values in (x, mean, std))
    half = half_width(level) * std
    name = f"{level:.0%} interval"
    ax.fill_between(x, mean - half, mean + half, color=BLUE, alpha=0.2, linewidth=0, label=name)
    if epistemic_std is not None:
        half = half_width(level) * fetch_array(epistemic_std, float)[order]
        name = "without noise"
        ax.fill_between(x, mean - half, mean + half, color=BLUE, alpha=0.4, linewidth=0, label=name)
    ax.plot(x, mean, color=BLUE, label="mean")
    if x_observed is not None:
        points = fetch_array(x_observed, float), fetch_array(y_observed, float)
        ax.scatter(*points, s=8, color="black", alpha=0.6, linewidth=0, zorder=3, label="observed")
    ax.set(xlabel="input", ylabel="output")
    return tidy(ax, legend=True)


def predicted_against_observed(
    ax: "matplotlib.axes.Axes",
    mean: Float[ArrayLike, " N"],
    std: Float[ArrayLike, " N"],
    y: Num[ArrayLike, " N"],
    *,
    level: float = 0.9,
) -> "matplotlib.axes.Axes":
    """Draw predictions with their central intervals against the targets.

    If predictions are calibrated, a fraction `level` of the intervals cross the diagonal.

    Parameters
    ----------
    ax
        Axes to draw on.
    mean, std, y
        Predictive mean, predictive standard deviation and targets, `(N,)` each.
    level
        Probability of the central intervals.

    Returns
    -------
    Axes
        `ax`; its container holds the points with their intervals.
    """
    mean, std, y = (fetch_array(values, float) for values in (mean, std, y))
    ax.errorbar(
        y,
        mean,
        yerr=half_width(level) * std,
        fmt="o",
        markersize=3,
        color=BLUE,
        ecolor=BLUE + "55",
        elinewidth=1,
        label=f"{level:.0%} interval",
    )
    diagonal(ax, min(y.min(), mean.min()), max(y.max(), mean.max()))
    ax.set(xlabel="observed", ylabel="predicted")
    return tidy(ax, legend=True)


def pit_histogram(
    ax: "matplotlib.axes.Axes", pit: Float[ArrayLike, " N"], *, num_bins: int = 10
) -> "matplotlib.axes.Axes":
    r"""Draw a histogram of the probability integral transforms $F_n(y_n)$.

    If predictions are calibrated, they are uniform, and 95% of the bars end inside the grey band.
    A U-shape means predictive distributions that are too narrow, a hump too wide, a slope biased.

    Parameters
    ----------
    ax
        Axes to draw on.
    pit
        Predictive distribution functions at the targets, `(N,)`.
    num_bins
        Number of bins of equal width.

    Returns
    -------
    Axes
        `ax`; its container holds the bars, with mean density one.

    References
    ----------
    Gneiting, Balabdaoui and Raftery (2007), "Probabilistic forecasts, calibration and sharpness".
    """
    pit = fetch_array(pit, float)
    counts, edges = np.histogram(pit, bins=num_bins, range=(0.0, 1.0))
    density, error = counts * num_bins / len(pit), 1.96 * np.sqrt((num_bins - 1) / len(pit))
    ax.bar(
        edges[:-1],
        density,
        np.diff(edges),
        align="edge",
        color=BLUE,
        edgecolor="white",
        label="observed",
    )
    ax.axhspan(max(1 - error, 0), 1 + error, color=GREY, alpha=0.35, label="95% if calibrated")
    ax.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
    ax.set(xlim=(0, 1), xlabel="probability integral transform", ylabel="density")
    return tidy(ax, legend=True)


def deviation_scatter(
    ax: "matplotlib.axes.Axes",
    noise_std: Float[ArrayLike, " N"],
    epistemic_std: Float[ArrayLike, " N"],
    error: Float[ArrayLike, " N"],
) -> "matplotlib.axes.Axes":
    """Draw the epistemic against the aleatoric standard deviation.

    Parameters
    ----------
    ax
        Axes to draw on.
    noise_std, epistemic_std
        The standard deviations due to the noise and due to uncertainty in the weights, `(N,)` each;
        their squares sum to the predictive variance.
    error
        The absolute error of each prediction, `(N,)`: the area of a point grows with it.

    Returns
    -------
    Axes
        `ax`; its collection holds the points.
    """
    noise_std, epistemic_std, error = (
        fetch_array(values, float) for values in (noise_std, epistemic_std, error)
    )
    area = 4 + 56 * error / max(error.max(), np.finfo(float).tiny)
    label = "one target; the larger its error, the larger the point"
    ax.scatter(noise_std, epistemic_std, area, color=BLUE, alpha=0.4, linewidth=0, label=label)
    # From zero: constant noise gives the axis no range.
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.locator_params(axis="x", nbins=6)
    ax.set(xlabel="aleatoric std", ylabel="epistemic std")
    return tidy(ax, legend=True)


def half_width(level: float) -> float:
    """Return the half-width of the central interval of a standard normal distribution."""
    return NormalDist().inv_cdf((1 + level) / 2)
