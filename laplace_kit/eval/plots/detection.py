"""Plots of out-of-distribution detection: score histograms and ROC curves."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike, Float, Num

from laplace_kit.eval.plots.style import (
    BLUE,
    VERMILLION,
    curve,
    diagonal,
    share_histogram,
    tidy,
)
from laplace_kit.host import fetch_array

if TYPE_CHECKING:
    import matplotlib.axes


def score_histograms(
    ax: "matplotlib.axes.Axes",
    in_scores: Float[ArrayLike, " N"],
    out_scores: Float[ArrayLike, " M"],
    *,
    num_bins: int = 20,
    limits: tuple[float, float] | None = None,
    in_weights: Num[ArrayLike, " N"] | None = None,
) -> "matplotlib.axes.Axes":
    """Draw histograms of a score on in-distribution and out-of-distribution inputs.

    Each histogram sums to one; the less they overlap, the better the score separates the inputs.

    Parameters
    ----------
    ax
        Axes to draw on.
    in_scores
        Scores of in-distribution inputs, `(N,)`.
    out_scores
        Scores of out-of-distribution inputs, `(M,)`, expected higher.
    num_bins
        Number of bins of equal width.
    limits
        The range of the bins; by default that of both samples.
    in_weights
        The weights of the in-distribution inputs, `(N,)`; ones by default.

    Returns
    -------
    Axes
        `ax`; its patches are the histograms of `in_scores` and of `out_scores`, in this order.
    """
    inside, outside = fetch_array(in_scores, float), fetch_array(out_scores, float)
    edges = np.histogram_bin_edges(np.concatenate([inside, outside]), bins=num_bins, range=limits)
    weights = None if in_weights is None else fetch_array(in_weights, float)
    share_histogram(ax, inside, edges, "test set", BLUE, weights=weights)
    share_histogram(ax, outside, edges, "out of distribution", VERMILLION, hatch="////")
    ax.set(xlabel="score", ylabel="share of inputs")
    return tidy(ax, legend=True)


def roc_curve(
    ax: "matplotlib.axes.Axes",
    false_positive: Float[ArrayLike, " K"],
    true_positive: Float[ArrayLike, " K"],
    *,
    label: str = "observed",
    series: int = 0,
) -> "matplotlib.axes.Axes":
    """Draw an ROC curve: true against false positive rate of out-of-distribution detection.

    Parameters
    ----------
    ax
        Axes to draw on; several curves may share them.
    false_positive, true_positive
        Fractions of the in-distribution and out-of-distribution inputs that score at least each
        threshold, `(K,)` each.
    label, series
        The name of the curve, and its number, which determines its colour and line style.

    Returns
    -------
    Axes
        `ax`; its last line is the curve.
    """
    diagonal(ax, 0.0, 1.0)
    curve(ax, false_positive, true_positive, label, series)
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="false positive rate", ylabel="true positive rate")
    return tidy(ax, legend=True)
