"""Calibration plots: plain functions that draw on the `Axes` they are given and return it.

The colours are those of Okabe and Ito, which colour-blind readers tell apart; series that overlap
differ in hatch or line style too. The figure is the caller's: no function here makes one, imports
matplotlib or touches pyplot and its global state.
"""

from itertools import cycle, islice
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike, Float, Num

from laplace_kit.eval import metrics

if TYPE_CHECKING:
    import matplotlib.axes

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GREY = "#767676"
_SERIES = ((VERMILLION, "--"), (BLUE, "-"), (GREEN, "-."), (PURPLE, ":"))


# --- classification ----------------------------------------------------------------------------


def reliability_diagram(
    ax: "matplotlib.axes.Axes",
    probs: Float[ArrayLike, "N C"],
    y: Num[ArrayLike, "N ..."],
    *,
    num_bins: int = 15,
) -> "matplotlib.axes.Axes":
    r"""Draw the accuracy of each bin of confidence, and its gap to the mean confidence there.

    The bar of bin $b$ has height $\mathrm{acc}_b$; the hatched bar spans from there to
    $\mathrm{conf}_b$. The mean length of the hatched bars, weighted by the counts of the bins, is
    the expected calibration error. Empty bins have no bar.

    Parameters
    ----------
    ax
        Where to draw.
    probs
        Probabilities, `(N, C)`.
    y
        Labels, `(N,)`, or one-hot or soft labels, `(N, C)`.
    num_bins
        Number of bins of equal width between 0 and 1.

    Returns
    -------
    Axes
        `ax`; its containers are the bars of accuracy and the bars of the gap, in this order.

    References
    ----------
    Guo et al. (2017), "On calibration of modern neural networks".
    """
    edges, counts, confidence, accuracy = map(
        np.asarray, metrics.reliability_bins(probs, y, num_bins)
    )
    used = counts > 0
    left, width = edges[:-1][used], np.diff(edges)[used]
    accuracy, confidence = accuracy[used], confidence[used]
    ax.bar(left, accuracy, width, align="edge", color=BLUE, edgecolor="white", label="accuracy")
    ax.bar(
        left,
        confidence - accuracy,
        width,
        bottom=accuracy,
        align="edge",
        color="none",
        edgecolor=VERMILLION,
        hatch="////",
        linewidth=0.8,
        label="gap to confidence",
    )
    _diagonal(ax, 0.0, 1.0)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    return _tidy(ax, legend=True)


def bin_counts(
    ax: "matplotlib.axes.Axes",
    probs: Float[ArrayLike, "N C"],
    y: Num[ArrayLike, "N ..."],
    *,
    num_bins: int = 15,
) -> "matplotlib.axes.Axes":
    """Draw how many predictions are in each bin of `reliability_diagram`, on a logarithmic scale.

    Parameters
    ----------
    ax, probs, y, num_bins
        As for `reliability_diagram`.

    Returns
    -------
    Axes
        `ax`; its container is one bar for each bin.
    """
    edges, counts, _, _ = map(np.asarray, metrics.reliability_bins(probs, y, num_bins))
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=GREY, edgecolor="white")
    # Linear up to one, so that an empty bin and a bin of one differ.
    ax.set_yscale("symlog", linthresh=1.0)
    ax.set(xlim=(0, 1), ylim=(0, 3.0 * counts.max()), xlabel="confidence", ylabel="count")
    return _tidy(ax, legend=False)


def confidence_histogram(
    ax: "matplotlib.axes.Axes",
    probs: Float[ArrayLike, "N C"],
    y: Num[ArrayLike, "N ..."],
    *,
    num_bins: int = 20,
) -> "matplotlib.axes.Axes":
    """Draw how confident a classifier is where it is right and where it is wrong.

    Each histogram sums to one, so that a few errors stay visible beside many successes.

    Parameters
    ----------
    ax, probs, y, num_bins
        As for `reliability_diagram`.

    Returns
    -------
    Axes
        `ax`; its patches are the histograms of the right and of the wrong predictions, in this
        order, as far as there are any.
    """
    probs, y = np.asarray(probs, float), np.asarray(y)
    labels = y if y.ndim == 1 else y.argmax(axis=1)
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    _share_histogram(ax, confidence[right], edges, "right", BLUE)
    _share_histogram(ax, confidence[~right], edges, "wrong", VERMILLION, hatch="////")
    ax.set(xlim=(0, 1), xlabel="confidence", ylabel="share of predictions")
    return _tidy(ax, legend=True)


def score_histograms(
    ax: "matplotlib.axes.Axes",
    in_scores: Float[ArrayLike, " N"],
    out_scores: Float[ArrayLike, " M"],
    *,
    num_bins: int = 20,
) -> "matplotlib.axes.Axes":
    """Draw an out-of-distribution score on inputs of the known kind and on others.

    Each histogram sums to one; the less the two overlap, the better the score tells them apart.

    Parameters
    ----------
    ax
        Where to draw.
    in_scores
        Scores of in-distribution inputs, `(N,)`.
    out_scores
        Scores of out-of-distribution inputs, `(M,)`, expected higher.
    num_bins
        Number of bins of equal width over the range of both.

    Returns
    -------
    Axes
        `ax`; its patches are the histograms of `in_scores` and of `out_scores`, in this order.
    """
    inside, outside = np.asarray(in_scores, float), np.asarray(out_scores, float)
    edges = np.histogram_bin_edges(np.concatenate([inside, outside]), bins=num_bins)
    _share_histogram(ax, inside, edges, "test set", BLUE)
    _share_histogram(ax, outside, edges, "out of distribution", VERMILLION, hatch="////")
    ax.set(xlabel="score", ylabel="share of inputs")
    return _tidy(ax, legend=True)


# --- regression --------------------------------------------------------------------------------


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
    """Draw the share of observations inside the central intervals against their nominal level.

    Below the diagonal the intervals are too narrow (over-confident), above it too wide.

    Parameters
    ----------
    ax
        Where to draw; several predictors may share it.
    mean, std, y
        Predictive mean, predictive standard deviation and observations, `(N, *outputs)` each.
    num_levels
        Number of nominal levels, evenly spaced between 0 and 1, which are left out.
    label
        The name of the curve in the legend.
    series
        The number of the curve, which decides its colour and line style.

    Returns
    -------
    Axes
        `ax`; its last line is the curve.
    """
    levels = np.linspace(0.0, 1.0, num_levels + 2)[1:-1]
    observed = np.asarray(metrics.interval_coverage(mean, std, y, levels))
    color, style = next(islice(cycle(_SERIES), series, None))
    _diagonal(ax, 0.0, 1.0)
    ax.plot(levels, observed, style, color=color, label=label, marker="o", markersize=3)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="nominal level", ylabel="observed coverage")
    return _tidy(ax, legend=True)


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
        Where to draw.
    x
        Inputs, `(N,)`, in any order.
    mean, std
        Predictive mean and standard deviation, noise included, `(N,)` each.
    epistemic_std
        The part of `std` that is uncertainty about the weights, `(N,)`, drawn as an inner band.
    x_observed, y_observed
        Observations to draw as points, `(M,)` each: training data, for example.
    level
        Probability of the central intervals.

    Returns
    -------
    Axes
        `ax`; its collections are the outer band, the inner band and the points, in this order, as
        far as they are given, and its line is the mean.

    Raises
    ------
    ValueError
        If only one of `x_observed` and `y_observed` is given.
    """
    if (x_observed is None) != (y_observed is None):
        found, missing = ("y", "x") if x_observed is None else ("x", "y")
        raise ValueError(
            f"Found {found}_observed without {missing}_observed, expected both or neither; pass "
            "the inputs and the values of the observations together."
        )
    order = np.argsort(np.asarray(x))
    x, mean, std = (np.asarray(values, float)[order] for values in (x, mean, std))
    half = _half_width(level) * std
    name = f"{level:.0%} interval"
    ax.fill_between(x, mean - half, mean + half, color=BLUE, alpha=0.2, linewidth=0, label=name)
    if epistemic_std is not None:
        half = _half_width(level) * np.asarray(epistemic_std, float)[order]
        name = "without noise"
        ax.fill_between(x, mean - half, mean + half, color=BLUE, alpha=0.4, linewidth=0, label=name)
    ax.plot(x, mean, color=BLUE, label="mean")
    if x_observed is not None:
        points = np.asarray(x_observed, float), np.asarray(y_observed, float)
        ax.scatter(*points, s=8, color="black", alpha=0.6, linewidth=0, zorder=3, label="observed")
    ax.set(xlabel="input", ylabel="output")
    return _tidy(ax, legend=True)


def predicted_against_observed(
    ax: "matplotlib.axes.Axes",
    mean: Float[ArrayLike, " N"],
    std: Float[ArrayLike, " N"],
    y: Num[ArrayLike, " N"],
    *,
    level: float = 0.9,
) -> "matplotlib.axes.Axes":
    """Draw predictions with their central intervals against the observations.

    A share `level` of a calibrated predictor's intervals cross the diagonal.

    Parameters
    ----------
    ax
        Where to draw.
    mean, std, y
        Predictive mean, predictive standard deviation and observations, `(N,)` each.
    level
        Probability of the central intervals.

    Returns
    -------
    Axes
        `ax`; its container is the points with their intervals.
    """
    mean, std, y = (np.asarray(values, float) for values in (mean, std, y))
    ax.errorbar(
        y,
        mean,
        yerr=_half_width(level) * std,
        fmt="o",
        markersize=3,
        color=BLUE,
        ecolor=BLUE + "55",
        elinewidth=1,
        label=f"{level:.0%} interval",
    )
    _diagonal(ax, min(y.min(), mean.min()), max(y.max(), mean.max()))
    ax.set(xlabel="observed", ylabel="predicted")
    return _tidy(ax, legend=True)


# --- parts -------------------------------------------------------------------------------------


def _half_width(level: float) -> float:
    """Half the central interval of probability `level` of a standard normal variable."""
    return NormalDist().inv_cdf((1 + level) / 2)


def _share_histogram(
    ax: "matplotlib.axes.Axes",
    values: np.ndarray,
    edges: np.ndarray,
    label: str,
    color: str,
    hatch: str | None = None,
) -> None:
    """Draw the share of `values` in each bin, if there are any."""
    if values.size == 0:
        return
    ax.stairs(
        np.histogram(values, bins=edges)[0] / values.size,
        edges,
        fill=True,
        facecolor=color + "55",
        edgecolor=color,
        linewidth=1,
        hatch=hatch,
        label=f"{label} ({values.size})",
    )


def _diagonal(ax: "matplotlib.axes.Axes", low: float, high: float) -> None:
    """Draw where calibrated predictions lie."""
    ax.plot([low, high], [low, high], "--", color=GREY, linewidth=1, zorder=3)


def _tidy(ax: "matplotlib.axes.Axes", *, legend: bool) -> "matplotlib.axes.Axes":
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        # Above the plot, where it hides no data.
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=2,
            frameon=False,
            fontsize=9,
            handlelength=1.4,
            columnspacing=1.2,
            borderaxespad=0.2,
        )
    return ax
