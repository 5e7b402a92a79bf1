"""Reliability diagrams without bins: smoothed by a kernel, and isotonic."""

from typing import TYPE_CHECKING

import numpy as np

from laplace_kit.eval.plots.style import curve, diagonal, series_style, tidy
from laplace_kit.eval.statistics.corp import CorpReliability
from laplace_kit.eval.statistics.smooth import SmoothReliability

if TYPE_CHECKING:
    import matplotlib.axes

_LEAST_DENSITY = 0.02  # of its maximum, below which the smooth curve is not drawn


def smooth_reliability_diagram(
    ax: "matplotlib.axes.Axes",
    reliability: SmoothReliability,
    *,
    label: str = "smooth",
    series: int = 1,
) -> "matplotlib.axes.Axes":
    """Draw the frequency of an event as a smooth function of its probability.

    The line is as wide as predictions are dense; where there are hardly any it is not drawn.

    Parameters
    ----------
    ax
        Axes to draw on.
    reliability
        What `laplace_kit.eval.smooth_reliability` returns.
    label
        The name in the legend, before the error.
    series
        The number of the series, from zero, which chooses the colour.

    Returns
    -------
    Axes
        `ax`; its collection is the line, in pieces.
    """
    from matplotlib.collections import LineCollection

    diagonal(ax, 0.0, 1.0)
    dense = reliability.density / max(reliability.density.max(), 1e-12)
    shown = dense >= _LEAST_DENSITY
    places = np.stack([reliability.probability, reliability.frequency], axis=1)
    pieces = np.stack([places[:-1], places[1:]], axis=1)[shown[:-1] & shown[1:]]
    widths = (0.8 + 4 * dense)[:-1][shown[:-1] & shown[1:]]
    color, _ = series_style(series)
    name = f"{label}, error {reliability.error:.3f}"
    ax.add_collection(LineCollection(pieces, linewidths=widths, colors=color, label=name))
    return _finished(ax)


def corp_diagram(
    ax: "matplotlib.axes.Axes",
    reliability: CorpReliability,
    *,
    label: str = "isotonic",
    series: int = 1,
) -> "matplotlib.axes.Axes":
    """Draw the recalibrated probability for every predicted one.

    Parameters
    ----------
    ax
        Axes to draw on.
    reliability
        What `laplace_kit.eval.corp_reliability` returns.
    label
        The name in the legend, before the miscalibration.
    series
        The number of the series, from zero, which chooses the line.

    Returns
    -------
    Axes
        `ax`; its last line is the curve.
    """
    diagonal(ax, 0.0, 1.0)
    name = f"{label}, miscalibration {reliability.miscalibration:.3f}"
    curve(ax, reliability.probability, reliability.frequency, name, series)
    return _finished(ax)


def _finished(ax: "matplotlib.axes.Axes") -> "matplotlib.axes.Axes":
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability", ylabel="frequency")
    return tidy(ax, legend=True)
