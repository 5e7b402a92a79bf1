"""Plots of single classes: reliability of a probability, precision and recall, confusion."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike, Float

from laplace_kit.eval.plots.style import curve, diagonal, series_style, tidy
from laplace_kit.host import fetch_array

if TYPE_CHECKING:
    import matplotlib.axes

_Z = 1.96
_MOST_NUMBERS = 12  # of classes whose entries of a confusion matrix are written


def probability_reliability(
    ax: "matplotlib.axes.Axes",
    claimed: Float[ArrayLike, " B"],
    observed: Float[ArrayLike, " B"],
    counts: Float[ArrayLike, " B"],
    *,
    label: str = "observed",
    series: int = 0,
) -> "matplotlib.axes.Axes":
    r"""Draw the frequency of one class against its mean predicted probability, by bin.

    Whiskers are 95% Wilson intervals of the frequency,
    $(f + \frac{z^2}{2n} \pm z \sqrt{\frac{f (1 - f)}{n} + \frac{z^2}{4n^2}}) / (1 + z^2 / n)$.

    Parameters
    ----------
    ax
        Axes to draw on; several predictors may share them.
    claimed, observed, counts
        The mean probability, the frequency of the class and the number of examples in each bin,
        `(B,)` each; empty bins are left out.
    label, series
        The name of the curve, and its number, which determines its colour and line style.

    Returns
    -------
    Axes
        `ax`; its last line is the curve.

    References
    ----------
    Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    claimed, observed, counts = (fetch_array(of, float) for of in (claimed, observed, counts))
    used = counts > 0
    claimed, observed, counts = claimed[used], observed[used], counts[used]
    squared = _Z**2 / counts
    centre = (observed + squared / 2) / (1 + squared)
    spread = observed * (1 - observed) / counts + squared / (4 * counts)
    half = _Z * np.sqrt(spread) / (1 + squared)
    color, _ = series_style(series)
    diagonal(ax, 0.0, 1.0)
    ax.vlines(claimed, centre - half, centre + half, color=color, linewidth=1, alpha=0.55)
    curve(ax, claimed, observed, label, series, marker="o")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability", ylabel="observed frequency")
    return tidy(ax, legend=True)


def precision_recall_curve(
    ax: "matplotlib.axes.Axes",
    recall: Float[ArrayLike, " K"],
    precision: Float[ArrayLike, " K"],
    *,
    label: str = "observed",
    series: int = 0,
) -> "matplotlib.axes.Axes":
    """Draw precision against recall, at decreasing thresholds.

    Parameters
    ----------
    ax
        Axes to draw on; several predictors may share them.
    recall, precision
        The share of the positive examples that are flagged, and that of the flagged examples that
        are positive, `(K,)` each.
    label, series
        The name of the curve, and its number, which determines its colour and line style.

    Returns
    -------
    Axes
        `ax`; its last line is the curve.
    """
    curve(ax, recall, precision, label, series)
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    return tidy(ax, legend=True)


def confusion_matrix(
    ax: "matplotlib.axes.Axes",
    counts: Float[ArrayLike, "C C"],
    names: Sequence[str],
) -> "matplotlib.axes.Axes":
    """Draw how many examples of each class are predicted as each class.

    Parameters
    ----------
    ax
        Axes to draw on.
    counts
        Sums of weights, `(C, C)`: rows are the labels, columns the predictions. The shade is the
        share of the row.
    names
        The names of the classes.

    Returns
    -------
    Axes
        `ax`; its image holds the shares. Up to 12 classes have their counts written.
    """
    from matplotlib.colors import LinearSegmentedColormap

    counts = fetch_array(counts, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    shades = LinearSegmentedColormap.from_list("shares", ["#FFFFFF", "#0072B2"])
    ax.imshow(shares, cmap=shades, vmin=0.0, vmax=1.0)
    places = range(len(names))
    rotation = 0 if max(map(len, names)) <= 3 else 45
    anchor = {"rotation": rotation, "ha": "right" if rotation else "center"}
    ax.set_xticks(places, names, fontsize=8, rotation_mode="anchor", **anchor)
    ax.set_yticks(places, names, fontsize=8)
    ax.set(xlabel="predicted", ylabel="label")
    if len(names) <= _MOST_NUMBERS:
        for row, column in np.ndindex(counts.shape):
            color = "#FFFFFF" if shares[row, column] > 0.5 else "#222222"
            text = f"{counts[row, column]:.4g}"
            ax.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    return tidy(ax, legend=False)
