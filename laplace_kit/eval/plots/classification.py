"""Plots of classifiers: reliability, confidence, risk and coverage, uncertainty."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Num

from laplace_kit.eval.plots.style import (
    BLUE,
    GREY,
    MOST_POINTS,
    VERMILLION,
    curve,
    diagonal,
    mixed_density,
    points,
    series_style,
    share_histogram,
    tidy,
)
from laplace_kit.eval.statistics.confidence import reliability
from laplace_kit.host import fetch_array

if TYPE_CHECKING:
    import matplotlib.axes


def reliability_diagram(
    ax: "matplotlib.axes.Axes",
    probs: Float[ArrayLike, "N C"],
    y: Num[ArrayLike, "N ..."],
    *,
    num_bins: int = 15,
    weights: Num[ArrayLike, " N"] | None = None,
) -> "matplotlib.axes.Axes":
    r"""Draw the accuracy and its gap to the mean confidence in each confidence bin.

    The bar of bin $b$ has height $\mathrm{acc}_b$; the hatched bar spans from there to
    $\mathrm{conf}_b$. The mean length of the hatched bars, weighted by bin counts, is the expected
    calibration error. Empty bins have no bar. The dark whisker of a bin spans
    $\mathrm{conf}_b \pm 1.96 \sqrt{\mathrm{conf}_b (1 - \mathrm{conf}_b) / N_b}$: for a calibrated
    classifier, 95% of the accuracy bars end inside it.

    Parameters
    ----------
    ax
        Axes to draw on.
    probs
        Probabilities, `(N, C)`.
    y
        Labels, `(N,)`, or one-hot or soft labels, `(N, C)`.
    num_bins
        Number of bins of equal width between 0 and 1.
    weights
        Weights of the examples, `(N,)`; one each by default.

    Returns
    -------
    Axes
        `ax`; its containers are the accuracy bars, the gap bars and the whiskers, in this order.

    References
    ----------
    Guo et al. (2017), "On calibration of modern neural networks". Bröcker and Smith (2007),
    "Increasing the reliability of reliability diagrams", for the whiskers.
    """
    edges, counts, confidence, accuracy = reliability(probs, y, num_bins, weights)
    used = counts > 0
    left, width, counts = edges[:-1][used], np.diff(edges)[used], counts[used]
    accuracy, confidence = accuracy[used], confidence[used]
    error = 1.96 * np.sqrt(np.clip(confidence * (1 - confidence), 0, None) / counts)
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
    ax.errorbar(
        left + width / 2,
        confidence,
        yerr=(np.minimum(error, confidence), np.minimum(error, 1 - confidence)),
        fmt="none",
        ecolor="#222222",
        elinewidth=1.2,
        capsize=2,
        zorder=4,
        label="95% if calibrated",
    )
    diagonal(ax, 0.0, 1.0)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    return tidy(ax, legend=True)


def bin_counts(
    ax: "matplotlib.axes.Axes",
    probs: Float[ArrayLike, "N C"],
    y: Num[ArrayLike, "N ..."],
    *,
    num_bins: int = 15,
    weights: Num[ArrayLike, " N"] | None = None,
) -> "matplotlib.axes.Axes":
    """Draw the number of predictions in each bin of `reliability_diagram`, on a log scale.

    Parameters
    ----------
    ax, probs, y, num_bins, weights
        As for `reliability_diagram`; with weights, their sums are drawn.

    Returns
    -------
    Axes
        `ax`; its container holds one bar for each bin.
    """
    edges, counts, _, _ = reliability(probs, y, num_bins, weights)
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=GREY, edgecolor="white")
    # Linear up to one, so that an empty bin differs from a bin with one prediction.
    ax.set_yscale("symlog", linthresh=1.0)
    ax.set(xlim=(0, 1), ylim=(0, 3.0 * counts.max()), xlabel="confidence", ylabel="count")
    return tidy(ax, legend=False)


def confidence_histogram(
    ax: "matplotlib.axes.Axes",
    probs: Float[ArrayLike, "N C"],
    y: Num[ArrayLike, "N ..."],
    *,
    num_bins: int = 20,
    weights: Num[ArrayLike, " N"] | None = None,
) -> "matplotlib.axes.Axes":
    """Draw histograms of the confidence of correct and of wrong predictions.

    Each histogram sums to one, so that a few errors stay visible next to many correct predictions.

    Parameters
    ----------
    ax, probs, y, num_bins, weights
        As for `reliability_diagram`.

    Returns
    -------
    Axes
        `ax`; its patches are the histograms of the correct and of the wrong predictions, in this
        order, where there are any.
    """
    probs, y = fetch_array(probs, float), fetch_array(y)
    labels = y if y.ndim == 1 else y.argmax(axis=1)
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    for chosen, label, color, hatch in (
        (right, "correct", BLUE, None),
        (~right, "wrong", VERMILLION, "////"),
    ):
        share = None if weights is None else fetch_array(weights, float)[chosen]
        share_histogram(ax, confidence[chosen], edges, label, color, hatch=hatch, weights=share)
    ax.set(xlim=(0, 1), xlabel="confidence", ylabel="share of predictions")
    return tidy(ax, legend=True)


def risk_coverage_curve(
    ax: "matplotlib.axes.Axes",
    coverage: Float[ArrayLike, " K"],
    risk: Float[ArrayLike, " K"],
    *,
    label: str = "observed",
    series: int = 0,
) -> "matplotlib.axes.Axes":
    """Draw the risk of the most confident predictions against coverage.

    Parameters
    ----------
    ax
        Axes to draw on; several predictors may share them.
    coverage, risk
        The fraction of predictions kept and their mean loss, `(K,)` each.
    label, series
        The name of the curve, and its number, which determines its colour and line style.

    Returns
    -------
    Axes
        `ax`; its last line is the curve, its last collection the dot where it begins.
    """
    curve(ax, coverage, risk, label, series)
    # Equally confident predictions are kept together, so that a curve may be a single point.
    first, color = (fetch_array(values)[:1] for values in (coverage, risk)), series_style(series)[0]
    ax.scatter(*first, s=9, color=color, clip_on=False, zorder=3)
    ax.set(xlim=(0, 1), xlabel="coverage, most confident predictions first", ylabel="risk")
    # Otherwise the first curve would determine the limit for all.
    ax.set_ylim(bottom=0, auto=True)
    return tidy(ax, legend=True)


def entropy_scatter(
    ax: "matplotlib.axes.Axes",
    aleatoric: Float[ArrayLike, " N"],
    epistemic: Float[ArrayLike, " N"],
    right: Bool[ArrayLike, " N"],
) -> "matplotlib.axes.Axes":
    """Draw the two parts of the predictive entropy, for correct and for wrong predictions.

    Parameters
    ----------
    ax
        Axes to draw on.
    aleatoric, epistemic
        The expected entropy and the mutual information in nats, `(N,)` each; their sum is the
        entropy of the prediction.
    right
        Whether each prediction is correct, `(N,)`.

    Returns
    -------
    Axes
        `ax`; its collections are the points of correct and of wrong predictions, in this order.
        More than 2,000 are drawn as one density, whose hue is the share of wrong predictions.
    """
    aleatoric, epistemic, right = map(fetch_array, (aleatoric, epistemic, right))
    labels = f"correct ({np.count_nonzero(right)})", f"wrong ({np.count_nonzero(~right)})"
    if len(right) > MOST_POINTS:
        mixed_density(ax, aleatoric, epistemic, ~right, labels, (BLUE, VERMILLION))
    else:
        points(ax, aleatoric[right], epistemic[right], labels[0], BLUE)
        wrong = aleatoric[~right], epistemic[~right], labels[1], VERMILLION
        points(ax, *wrong, area=24.0, marker="x", alpha=1.0)
    ax.locator_params(axis="x", nbins=6)
    ax.set(xlabel="aleatoric part (nats)", ylabel="epistemic part (nats)")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    return tidy(ax, legend=True)
