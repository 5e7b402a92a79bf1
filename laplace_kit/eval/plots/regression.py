"""Plots of regressors: predictions against targets, coverage, PIT, uncertainty."""

from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike, Float, Num
from scipy import special

from laplace_kit.eval.plots.style import (
    BLUE,
    GREY,
    MOST_POINTS,
    VERMILLION,
    curve,
    diagonal,
    points,
    tidy,
)
from laplace_kit.eval.statistics.weighting import effective_size
from laplace_kit.host import fetch_array

if TYPE_CHECKING:
    import matplotlib.axes

Interval = tuple[Float[ArrayLike, " N"], Float[ArrayLike, " N"]]
# Noise that differs by less, relative to the largest, is the same.
_EQUAL = 1e-5


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
    mean, std, y = (fetch_array(values, float) for values in (mean, std, y))
    distances = 2 * special.ndtr(np.abs((y - mean) / std)) - 1
    observed = (distances.reshape(-1, 1) <= levels).mean(axis=0)
    return level_curve(ax, levels, observed, label=label, series=series)


def level_curve(
    ax: "matplotlib.axes.Axes",
    levels: Float[ArrayLike, " L"],
    observed: Float[ArrayLike, " L"],
    *,
    label: str = "observed",
    series: int = 0,
) -> "matplotlib.axes.Axes":
    """Draw observed coverages of central intervals against their nominal levels.

    Parameters
    ----------
    ax, label, series
        As for `coverage_curve`.
    levels, observed
        Nominal levels and the fractions of targets inside, `(L,)` each.

    Returns
    -------
    Axes
        `ax`; its last line is the curve.
    """
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
    interval: Interval | None = None,
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
    level, interval
        Probability of the central intervals, and their ends, `(N,)` each, for distributions that
        are not normal.

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
    low, high = (mean - half, mean + half) if interval is None else interval
    if interval is not None:
        low, high = (fetch_array(end, float)[order] for end in (low, high))
    name = f"{level:.0%} interval"
    ax.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0, label=name)
    if epistemic_std is not None:
        half = half_width(level) * fetch_array(epistemic_std, float)[order]
        name = "without noise"
        ax.fill_between(x, mean - half, mean + half, color=BLUE, alpha=0.4, linewidth=0, label=name)
    ax.plot(x, mean, color=BLUE, label="mean")
    if x_observed is not None:
        observed = fetch_array(x_observed, float), fetch_array(y_observed, float)
        color = "#000000" if len(observed[0]) <= MOST_POINTS else "#B8B8B8"
        points(ax, *observed, "observed", color, area=8.0, alpha=0.6)
    ax.set(xlabel="input", ylabel="output")
    return tidy(ax, legend=True)


def predicted_against_observed(
    ax: "matplotlib.axes.Axes",
    mean: Float[ArrayLike, " N"],
    std: Float[ArrayLike, " N"],
    y: Num[ArrayLike, " N"],
    *,
    level: float = 0.9,
    interval: Interval | None = None,
) -> "matplotlib.axes.Axes":
    """Draw predictions with their central intervals against the targets.

    If predictions are calibrated, a fraction `level` of the intervals cross the diagonal.

    Parameters
    ----------
    ax
        Axes to draw on.
    mean, std, y
        Predictive mean, predictive standard deviation and targets, `(N,)` each.
    level, interval
        As for `predictive_band`.

    Returns
    -------
    Axes
        `ax`; its container holds the points with their intervals. More than 2,000 points are drawn
        as a density, without intervals.
    """
    mean, std, y = (fetch_array(values, float) for values in (mean, std, y))
    lowest, highest = min(y.min(), mean.min()), max(y.max(), mean.max())
    if len(y) > MOST_POINTS:
        points(ax, y, mean, "predictions", BLUE)
        diagonal(ax, lowest, highest)
        ax.set(xlabel="observed", ylabel="predicted")
        return tidy(ax, legend=True)
    half = half_width(level) * std
    errors = (half, half)
    if interval is not None:
        # A skewed interval may lie on one side of the mean.
        low, high = (fetch_array(end, float) for end in interval)
        errors = (np.maximum(mean - low, 0), np.maximum(high - mean, 0))
    ax.errorbar(
        y,
        mean,
        yerr=errors,
        fmt="o",
        markersize=3,
        color=BLUE,
        ecolor=BLUE + "55",
        elinewidth=1,
        label=f"{level:.0%} interval",
    )
    diagonal(ax, lowest, highest)
    ax.set(xlabel="observed", ylabel="predicted")
    return tidy(ax, legend=True)


def pit_histogram(
    ax: "matplotlib.axes.Axes",
    pit: Float[ArrayLike, " N"],
    *,
    num_bins: int = 10,
    weights: Num[ArrayLike, " N"] | None = None,
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
    weights
        Weights of the values, `(N,)`; one each by default.

    Returns
    -------
    Axes
        `ax`; its container holds the bars, with mean density one.

    References
    ----------
    Gneiting, Balabdaoui and Raftery (2007), "Probabilistic forecasts, calibration and sharpness".
    """
    pit = fetch_array(pit, float)
    weights = np.ones(len(pit)) if weights is None else fetch_array(weights, float)
    counts, edges = np.histogram(pit, bins=num_bins, range=(0.0, 1.0), weights=weights)
    density, size = counts * num_bins / weights.sum(), effective_size(weights)
    error = 1.96 * np.sqrt((num_bins - 1) / size)
    ax.bar(
        edges[:-1],
        density,
        np.diff(edges),
        align="edge",
        color=BLUE,
        edgecolor="white",
        label="observed",
    )
    low, high = max(1 - error, 0), 1 + error
    ax.axhspan(low, high, color=GREY, alpha=0.35, zorder=0.5, label="95% if calibrated")
    ax.hlines([low, high], 0, 1, color=GREY, linewidth=0.8)
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
        `ax`; its collection holds the points, or hexagons where there are more than 2,000. If the
        noise is the same for all targets, the epistemic part is drawn as a histogram, and the noise
        as a line.
    """
    noise_std, epistemic_std, error = (
        fetch_array(values, float) for values in (noise_std, epistemic_std, error)
    )
    if noise_std.min() >= (1 - _EQUAL) * noise_std.max():
        return _deviation_histogram(ax, float(noise_std.max()), epistemic_std)
    area = 4 + 56 * error / max(error.max(), np.finfo(float).tiny)
    label = "one target; the larger its error, the larger the point"
    if len(error) > MOST_POINTS:
        label = "targets"
    points(ax, noise_std, epistemic_std, label, BLUE, area=area)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.locator_params(axis="x", nbins=6)
    ax.set(xlabel="aleatoric std", ylabel="epistemic std")
    return tidy(ax, legend=True)


def _deviation_histogram(
    ax: "matplotlib.axes.Axes", noise_std: float, epistemic_std: np.ndarray
) -> "matplotlib.axes.Axes":
    """Draw the histogram of the epistemic part beside one noise for all targets."""
    edges = np.linspace(0.0, max(float(epistemic_std.max()), noise_std) * 1.05, 31)
    ax.hist(epistemic_std, edges, color=BLUE, edgecolor="white", linewidth=0.5, label="epistemic")
    ax.axvline(noise_std, color=VERMILLION, linestyle="--", label="aleatoric, all targets")
    ax.set(xlabel="standard deviation", ylabel="targets", xlim=(0.0, edges[-1]))
    return tidy(ax, legend=True)


def half_width(level: float) -> float:
    """Return the half-width of the central interval of a standard normal distribution."""
    return NormalDist().inv_cdf((1 + level) / 2)
