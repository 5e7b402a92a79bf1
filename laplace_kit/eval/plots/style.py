"""Colours, line styles and helpers shared by the plots."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike

from laplace_kit.host import fetch_array

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.collections

# The colour-blind safe palette of Okabe and Ito (2008).
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GREY = "#767676"
MOST_POINTS = 2000  # more are drawn as a density
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
    weights: np.ndarray | None = None,
) -> None:
    """Draw a histogram of `values`, normalised to sum to one, if there are any."""
    total = values.size if weights is None else weights.sum()
    if not total:
        return
    ax.stairs(
        np.histogram(values, bins=edges, weights=weights)[0] / total,
        edges,
        fill=True,
        facecolor=color + "55",
        edgecolor=color,
        linewidth=1,
        hatch=hatch,
        label=f"{label} ({values.size})",
    )


def points(
    ax: "matplotlib.axes.Axes",
    x: np.ndarray,
    y: np.ndarray,
    label: str,
    color: str,
    *,
    area: float | np.ndarray = 10.0,
    marker: str = "o",
    alpha: float = 0.4,
) -> None:
    """Draw points one by one or, where they would cover each other, their density.

    Parameters
    ----------
    ax, x, y, label, color
        The axes, the coordinates, the name in the legend and the colour.
    area, marker, alpha
        For single points. More than `MOST_POINTS` are counted in hexagons, whose shades of the
        colour are on a logarithmic scale.
    """
    if len(x) <= MOST_POINTS:
        edge = None if marker == "x" else 0  # a cross is all edge
        ax.scatter(
            x,
            y,
            area,
            color=color,
            alpha=alpha,
            linewidth=edge,
            label=label,
            marker=marker,
            zorder=3,
        )
        return
    from matplotlib.colors import to_rgb

    cells = _hexagons(ax, x, y)
    _shade(cells, np.broadcast_to(to_rgb(color), (len(cells.get_array()), 3)))
    ax.fill([], [], color=color, label=f"density of {label}")


def mixed_density(
    ax: "matplotlib.axes.Axes",
    x: np.ndarray,
    y: np.ndarray,
    is_second: np.ndarray,
    labels: tuple[str, str],
    colors: tuple[str, str],
) -> None:
    """Draw the density of points of two kinds, mixing the colours by their shares.

    Parameters
    ----------
    ax, x, y
        The axes, and the coordinates of all points.
    is_second
        Whether each point is of the second kind.
    labels, colors
        The names and the colours of both kinds.
    """
    from matplotlib.colors import to_rgb

    shares = _hexagons(ax, x, y, is_second)
    share = np.asarray(shares.get_array())[:, None]
    shares.remove()
    first, second = (np.array(to_rgb(color)) for color in colors)
    _shade(_hexagons(ax, x, y), (1 - share) * first + share * second)
    for color, label in zip(colors, labels, strict=True):
        ax.fill([], [], color=color, label=label)


def _hexagons(
    ax: "matplotlib.axes.Axes", x: np.ndarray, y: np.ndarray, values: np.ndarray | None = None
) -> "matplotlib.collections.PolyCollection":
    """Draw hexagons with the numbers of points, or with the means of values, as their array."""
    extent = (*_range(x), *_range(y))
    cells = ax.hexbin(x, y, values, gridsize=45, extent=extent, mincnt=1, linewidths=0.2)
    cells.set_zorder(0.5)  # below bands and lines
    return cells


def _shade(cells: "matplotlib.collections.PolyCollection", rgb: np.ndarray) -> None:
    """Colour hexagons, in lighter shades where there are fewer points, on a logarithmic scale."""
    counts = np.asarray(cells.get_array(), float)
    shade = 0.2 + 0.8 * np.log1p(counts)[:, None] / np.log1p(counts.max())
    cells.set_array(None)
    cells.set(facecolor=1 - shade * (1 - rgb), edgecolor="face")


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


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
