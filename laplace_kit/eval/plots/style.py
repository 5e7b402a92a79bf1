"""Colours, line styles and helpers shared by the plots."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike

from laplace_kit.host import fetch_array

if TYPE_CHECKING:
    import matplotlib.axes

# The colour-blind safe palette of Okabe and Ito (2008).
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GREY = "#767676"
SERIES = ((VERMILLION, "--"), (BLUE, "-"), (GREEN, "-."), (PURPLE, ":"))


def series_style(series: int) -> tuple[str, str]:
    """Return the colour and the line style of a series, numbered from zero."""
    # Repeated colours have another line style.
    color, _ = SERIES[series % len(SERIES)]
    _, style = SERIES[(series + series // len(SERIES)) % len(SERIES)]
    return color, style


def curve(
    ax: "matplotlib.axes.Axes",
    x: ArrayLike,
    y: ArrayLike,
    label: str,
    series: int,
    marker: str | None = None,
) -> None:
    """Draw the line of a series."""
    color, style = series_style(series)
    ax.plot(
        fetch_array(x),
        fetch_array(y),
        style,
        color=color,
        label=label,
        marker=marker,
        markersize=3,
        clip_on=False,
        # Solid lines below the others: where curves coincide, they show through the gaps.
        zorder=2.0 if style == "-" else 2.1,
    )


def share_histogram(
    ax: "matplotlib.axes.Axes",
    values: np.ndarray,
    edges: np.ndarray,
    label: str,
    color: str,
    hatch: str | None = None,
) -> None:
    """Draw a histogram of `values`, normalised to sum to one, if there are any."""
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


def diagonal(ax: "matplotlib.axes.Axes", low: float, high: float) -> None:
    """Draw the line on which both coordinates are equal."""
    ax.plot([low, high], [low, high], "--", color=GREY, linewidth=1, zorder=3)


def tidy(ax: "matplotlib.axes.Axes", *, legend: bool) -> "matplotlib.axes.Axes":
    """Remove two spines and, if asked, put the legend above the plot, where it hides no data."""
    ax.spines[["top", "right"]].set_visible(False)
    # The power of ten above the axis is aligned with the tick labels.
    ax.yaxis.get_offset_text().set_horizontalalignment("right")
    if legend:
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
