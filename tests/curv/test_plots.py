"""The pictures carry the data they claim to: artists are compared with numbers computed apart."""

import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from laplace_kit.curv import plots
from laplace_kit.curv.landscape import Landscape

S, T = np.linspace(-1, 1, 21), np.linspace(-2, 2, 31)


@pytest.fixture
def ax():
    return Figure().subplots()


def landscape(losses, *coordinates):
    return Landscape(tuple(map(jnp.asarray, coordinates)), jnp.asarray(losses))


def bowl():
    return landscape(7 + 3 * S[:, None] ** 2 + T**2, S, T)


def test_curve_is_the_loss_and_its_parabola_at_the_mode(ax, x64):
    losses = 5 + 2 * S**2 + S**3
    assert plots.loss_curve(ax, landscape(losses, S), curvature=4.0, label="training") is ax
    loss, parabola = ax.lines
    assert loss.get_label() == "training"
    np.testing.assert_allclose(loss.get_xydata(), np.stack([S, losses], axis=1))
    np.testing.assert_allclose(parabola.get_ydata(), 5 + 2 * S**2)
    assert (loss.get_color(), loss.get_linestyle()) != (
        parabola.get_color(),
        parabola.get_linestyle(),
    )


def test_a_steep_parabola_does_not_flatten_the_curve(ax):
    plots.loss_curve(ax, landscape(S**2, S), curvature=1e4)
    assert ax.get_ylim()[1] < 2


def test_surface_of_a_bowl_has_rings_at_equal_distances(ax, x64):
    assert plots.loss_surface(ax, bowl()) is ax
    filled, lines = ax.collections[:2]
    np.testing.assert_allclose([filled.levels[0], filled.levels[-1]], [7, 14])
    radii = np.sqrt(lines.levels - 7)
    np.testing.assert_allclose(np.diff(radii), radii[0])
    # The first direction runs to the right: there the bowl is steeper.
    inner = lines.get_paths()[0].vertices
    np.testing.assert_allclose(np.abs(inner).max(axis=0), radii[0] / [np.sqrt(3), 1], rtol=0.1)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0]])


def test_surface_with_overflow_draws_what_is_finite(ax, x64):
    losses = np.asarray(bowl().losses).copy()
    losses[:, [0, -1]], losses[[0, -1]] = np.inf, np.nan
    plots.loss_surface(ax, landscape(losses, S, T))
    assert ax.collections[0].levels[-1] < 14


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_flat_surface_is_refused(ax, value):
    with pytest.raises(ValueError, match="expected a surface"):
        plots.loss_surface(ax, landscape(np.full((21, 31), value), S, T))


def test_the_number_of_directions_is_checked(ax):
    with pytest.raises(ValueError, match="Found a landscape of 2 directions, expected 1"):
        plots.loss_curve(ax, bowl())
    with pytest.raises(ValueError, match="Found a landscape of 1 directions, expected 2"):
        plots.loss_surface(ax, landscape(S**2, S))


def test_density_is_on_a_logarithmic_scale_over_six_decades(ax):
    density = 10.0 ** -np.arange(21.0)
    assert plots.spectral_density(ax, SimpleNamespace(grid=S, density=density)) is ax
    np.testing.assert_allclose(ax.lines[0].get_xydata(), np.stack([S, density], axis=1))
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] == pytest.approx(1e-6)


def test_bars_are_values_with_their_residuals_and_negative_ones_stand_out(ax):
    values, residuals = np.array([3.0, 1.0, -0.5]), np.array([0.1, 0.2, 0.3])
    pairs = SimpleNamespace(values=values, residuals=residuals)
    assert plots.eigenvalue_bars(ax, pairs) is ax
    bars, (_, _, (intervals,)) = ax.containers
    np.testing.assert_allclose([bar.get_height() for bar in bars], values)
    drawn = np.array([segment[:, 1] for segment in intervals.get_segments()])
    np.testing.assert_allclose(drawn, np.stack([values - residuals, values + residuals], axis=1))
    looks = [(bar.get_facecolor(), bar.get_hatch()) for bar in bars]
    assert looks[0] == looks[1] == (to_rgba(plots.BLUE), None)
    assert looks[2] == (to_rgba("white"), "////")


def test_matplotlib_is_not_loaded_with_the_functions():
    code = "import sys, laplace_kit.curv.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
