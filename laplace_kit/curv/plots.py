"""Plots of curvature: plain functions that draw on a given `Axes` and return it.

Colours are those of Okabe and Ito, and the colour map is cividis, both safe for colour-blind
readers. The figure is the caller's: no function here makes one or touches pyplot's state.
"""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import ArrayLike, Float

from laplace_kit.curv.landscape import Landscape
from laplace_kit.host import fetch_array

if TYPE_CHECKING:
    import matplotlib.axes

__all__ = ["eigenvalue_bars", "loss_curve", "loss_surface", "spectral_density"]

BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#767676"

_NUM_LEVELS = 15
_DECADES = 6  # shown of a density below its peak; lower values are only broadening


@runtime_checkable
class Density(Protocol):
    """A density of eigenvalues: `density` `(G,)` at the points of `grid` `(G,)`."""

    grid: ArrayLike
    density: ArrayLike


@runtime_checkable
class Eigenvalues(Protocol):
    r"""Eigenvalues `values` `(R,)`, and `residuals` `(R,)`, the norms $\|H u - s u\|$."""

    values: ArrayLike
    residuals: ArrayLike


def loss_curve(
    ax: "matplotlib.axes.Axes",
    landscape: Landscape,
    *,
    curvature: Float[ArrayLike, ""] | None = None,
    label: str = "loss",
) -> "matplotlib.axes.Axes":
    r"""Draw the loss along one direction $v$, and its parabola at the mode.

    Parameters
    ----------
    ax
        Where to draw.
    landscape
        A landscape along one direction.
    curvature
        $v^\top H v$, to draw $\mathcal L(\theta) + \frac12 t^2 v^\top H v$, the quadratic that a
        Laplace approximation puts in place of the loss. $\mathcal L(\theta)$ is read off the curve.
    label
        The name of the curve in the legend.

    Returns
    -------
    Axes
        `ax`; its lines are the loss and, given a curvature, the parabola.

    Raises
    ------
    ValueError
        If the landscape does not have exactly one direction.
    """
    (t,), losses = _read(landscape, 1)
    ax.plot(t, losses, color=BLUE, label=label)
    if curvature is not None:
        parabola = np.interp(0.0, t, losses) + 0.5 * float(curvature) * t**2
        ax.set_ylim(ax.get_ylim())  # a steep parabola must not flatten the curve
        ax.plot(t, parabola, "--", color=VERMILLION, label="quadratic")
    ax.set(xlim=(t.min(), t.max()), xlabel="step along the direction", ylabel="loss")
    return _tidy(ax, legend=curvature is not None)


def loss_surface(ax: "matplotlib.axes.Axes", landscape: Landscape) -> "matplotlib.axes.Axes":
    r"""Draw the contours of the loss along two directions; a cross marks the mode.

    Levels are spaced as the squares of whole numbers above the lowest loss, so that the contours of
    a quadratic bowl are rings at equal distances.

    Parameters
    ----------
    ax
        Where to draw.
    landscape
        A landscape along two directions: the first runs to the right, the second upwards.

    Returns
    -------
    Axes
        `ax`; its collections are the filled contours and their lines, its line is the cross.

    Raises
    ------
    ValueError
        If the landscape does not have exactly two directions, or no two finite losses differ.
    """
    (s, t), losses = _read(landscape, 2)
    finite = losses[np.isfinite(losses)]
    if finite.size == 0 or finite.min() == finite.max():
        raise ValueError(
            f"Found losses that are all {finite[0] if finite.size else 'not finite'}, expected a "
            "surface; choose other coordinates or directions."
        )
    low, high = finite.min(), finite.max()
    levels = low + (high - low) * np.linspace(0.0, 1.0, _NUM_LEVELS) ** 2
    masked = np.ma.masked_invalid(losses.T)
    ax.contourf(s, t, masked, levels, cmap="cividis")
    lines = ax.contour(s, t, masked, levels[1:-1], colors="white", linewidths=0.5)
    ax.clabel(lines, levels[2:-1:3], fontsize=7, fmt="%.4g")
    ax.plot(0, 0, "x", color="white", markersize=7, markeredgewidth=1.5)
    ax.set(xlabel="step along the first direction", ylabel="step along the second direction")
    return ax


def spectral_density(ax: "matplotlib.axes.Axes", spectrum: Density) -> "matplotlib.axes.Axes":
    """Draw a density of eigenvalues, on a logarithmic scale over six decades.

    Parameters
    ----------
    ax
        Where to draw.
    spectrum
        The result of `curv.spectral_density`, or anything with `grid` and `density`.

    Returns
    -------
    Axes
        `ax`; its line is the density.
    """
    grid, density = fetch_array(spectrum.grid, float), fetch_array(spectrum.density, float)
    floor = density.max() * 10.0**-_DECADES
    ax.plot(grid, density, color=BLUE, linewidth=1)
    ax.fill_between(grid, floor, np.maximum(density, floor), color=BLUE, alpha=0.2, linewidth=0)
    ax.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
    ax.set_yscale("log")
    ax.set(xlim=(grid.min(), grid.max()), ylim=(floor, 3 * density.max()))
    ax.set(xlabel="eigenvalue", ylabel="density")
    return _tidy(ax, legend=False)


def eigenvalue_bars(ax: "matplotlib.axes.Axes", pairs: Eigenvalues) -> "matplotlib.axes.Axes":
    """Draw eigenvalues as bars, in the given order, with error bars.

    The error bar of a value is its residual: there is an eigenvalue within this distance. Negative
    eigenvalues are hatched, in another colour.

    Parameters
    ----------
    ax
        Where to draw.
    pairs
        Eigenpairs of an operator, or anything with `values` and `residuals`.

    Returns
    -------
    Axes
        `ax`; its first container is the bars, its second the intervals of the residuals.
    """
    values, residuals = fetch_array(pairs.values, float), fetch_array(pairs.residuals, float)
    places = np.arange(1, len(values) + 1)
    bars = ax.bar(places, values, color=BLUE, edgecolor="white", linewidth=0.5)
    for bar, value in zip(bars, values, strict=True):
        if value < 0:
            bar.set(color="white", edgecolor=VERMILLION, hatch="////", linewidth=0.8)
    ax.errorbar(places, values, residuals, fmt="none", ecolor="black", capsize=3, linewidth=1)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlim=(0.4, len(values) + 0.6), xlabel="number", ylabel="eigenvalue")
    return _tidy(ax, legend=False)


def _read(landscape: Landscape, num: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return coordinates and losses of a landscape, which must have `num` directions."""
    if len(landscape.coordinates) != num:
        raise ValueError(
            f"Found a landscape of {len(landscape.coordinates)} directions, expected {num}; "
            "loss_curve draws one direction and loss_surface two."
        )
    axes = tuple(fetch_array(t, float) for t in landscape.coordinates)
    return axes, fetch_array(landscape.losses, float)


def _tidy(ax: "matplotlib.axes.Axes", *, legend: bool) -> "matplotlib.axes.Axes":
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        ax.legend(frameon=False, fontsize=9, handlelength=1.4)
    return ax
