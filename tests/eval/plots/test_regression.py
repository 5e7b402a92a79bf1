"""The plots of a regressor carry the data that they claim to."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import binom, norm

from laplace_kit.eval import plots


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture
def regressed():
    rng = np.random.default_rng(1)
    mean, std = rng.normal(size=40), rng.uniform(0.5, 1.5, size=40)
    return mean, std, mean + std * rng.normal(size=40)


def test_coverage_curve_counts_the_observations_inside(ax, regressed):
    mean, std, y = regressed
    plots.coverage_curve(ax, mean, std, y, num_levels=9, label="one")
    plots.coverage_curve(ax, mean, 100 * std, y, num_levels=9, label="two", series=1)
    levels = np.arange(1, 10) / 10
    inside = np.abs(y - mean) / std <= norm.ppf((1 + levels) / 2)[:, None]
    one, two = (line for line in ax.lines if line.get_label() in ("one", "two"))
    np.testing.assert_allclose(one.get_xdata(), levels)
    np.testing.assert_allclose(one.get_ydata(), inside.mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(two.get_ydata(), np.ones(9))
    assert (one.get_color(), one.get_linestyle()) != (two.get_color(), two.get_linestyle())


def test_predictive_band_holds_the_interval_in_the_order_of_the_inputs(ax):
    x = np.array([2.0, 0.0, 1.0])
    mean, std, epistemic = 10 * x, 1 + x, 0.5 * (1 + x)
    plots.predictive_band(
        ax, x, mean, std, epistemic, x_observed=np.array([0.5]), y_observed=np.array([4.0])
    )
    line = next(line for line in ax.lines if line.get_label() == "mean")
    np.testing.assert_array_equal(line.get_xydata(), [[0, 0], [1, 10], [2, 20]])
    outer, inner, points = ax.collections
    for band, scale in ((outer, 1.0), (inner, 0.5)):
        vertices = band.get_paths()[0].vertices
        for at in (0.0, 1.0, 2.0):
            here = vertices[vertices[:, 0] == at, 1]
            half = scale * norm.ppf(0.95) * (1 + at)
            np.testing.assert_allclose(
                [here.min(), here.max()], [10 * at - half, 10 * at + half], rtol=1e-6
            )
    np.testing.assert_array_equal(points.get_offsets(), [[0.5, 4.0]])


def test_predictive_band_without_observations_or_epistemic_part(ax):
    plots.predictive_band(ax, np.arange(3), np.zeros(3), np.ones(3))
    assert len(ax.collections) == 1


@pytest.mark.parametrize("given", ["x_observed", "y_observed"])
def test_predictive_band_wants_both_coordinates_of_the_observations(ax, given):
    with pytest.raises(ValueError, match=r"(x|y)_observed without (x|y)_observed, expected both"):
        plots.predictive_band(ax, np.zeros(2), np.zeros(2), np.ones(2), **{given: np.zeros(1)})


def test_predicted_against_observed_draws_points_intervals_and_the_diagonal(ax, regressed):
    mean, std, y = regressed
    plots.predicted_against_observed(ax, mean, std, y, level=0.8)
    points, _, (intervals,) = ax.containers[0]
    np.testing.assert_allclose(points.get_xydata(), np.stack([y, mean], axis=1))
    drawn = np.array([segment[:, 1] for segment in intervals.get_segments()])
    half = norm.ppf(0.9) * std
    np.testing.assert_allclose(drawn, np.stack([mean - half, mean + half], axis=1))
    diagonal = ax.lines[-1].get_xydata()
    np.testing.assert_array_equal(diagonal[:, 0], diagonal[:, 1])
    assert diagonal.min() == min(y.min(), mean.min())
    assert diagonal.max() == max(y.max(), mean.max())


def test_pit_histogram_has_density_one_and_a_band_for_chance(ax):
    pit = np.random.default_rng(0).uniform(size=500)
    plots.pit_histogram(ax, pit, num_bins=5)
    bars = ax.containers[0]
    expected = np.histogram(pit, bins=5, range=(0, 1), density=True)[0]
    np.testing.assert_allclose([bar.get_height() for bar in bars], expected)
    (band,) = (patch for patch in ax.patches if patch not in bars)
    low, high = band.get_y(), band.get_y() + band.get_height()
    chance = binom(500, 1 / 5)
    assert chance.cdf(500 / 5 * high) - chance.cdf(500 / 5 * low) == pytest.approx(0.95, abs=0.01)


def test_deviation_scatter_draws_larger_points_for_larger_errors(ax):
    noise, epistemic = np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.2, 0.1])
    plots.deviation_scatter(ax, noise, epistemic, np.array([0.0, 1.0, 2.0]))
    (points,) = ax.collections
    np.testing.assert_array_equal(points.get_offsets(), np.stack([noise, epistemic], axis=1))
    np.testing.assert_allclose(np.diff(points.get_sizes()), 28)


def test_errors_that_are_all_zero_are_drawn_too(ax):
    plots.deviation_scatter(ax, np.array([1.0, 2.0]), np.ones(2), np.zeros(2))
    assert np.isfinite(ax.collections[0].get_sizes()).all()


def test_one_noise_is_a_line_beside_the_histogram_of_the_epistemic_part(ax):
    epistemic = np.linspace(0.1, 0.5, 40)
    plots.deviation_scatter(ax, np.full(40, 0.3), epistemic, np.ones(40))
    assert sum(bar.get_height() for bar in ax.containers[0]) == 40
    np.testing.assert_allclose(ax.lines[0].get_xdata(), 0.3)
    assert ax.get_xlabel() == "standard deviation"


def test_many_points_are_a_density(ax):
    rng = np.random.default_rng(0)
    y, mean = rng.normal(size=(2, 5000))
    plots.predicted_against_observed(ax, mean, np.ones(5000), y)
    (cells,) = ax.collections
    assert 100 < len(cells.get_facecolor()) < 45 * 45
    assert not ax.containers
    shades = cells.get_facecolor()[:, 0]
    assert shades.min() < 0.1 < 0.5 < shades.max(), "darker where there are more"


def test_intervals_of_other_distributions_are_drawn_as_given(ax):
    mean, low, high = np.array([1.0, 2.0]), np.array([0.0, 0.0]), np.array([3.0, 7.0])
    plots.predictive_band(ax, np.arange(2), mean, np.ones(2), interval=(low, high))
    (vertices,) = (path.vertices for path in ax.collections[0].get_paths())
    assert (vertices[:, 1].min(), vertices[:, 1].max()) == (0.0, 7.0)
    ax.clear()
    plots.predicted_against_observed(ax, mean, np.ones(2), mean, interval=(low, high))
    (segments,) = (bars.get_segments() for bars in ax.containers[0][2])
    np.testing.assert_allclose([s[:, 1] for s in segments], [[0, 3], [0, 7]])


def test_weighted_transforms_repeat_values(ax):
    pit = np.array([0.05, 0.55, 0.95])
    plots.pit_histogram(ax, pit, weights=np.array([2.0, 0.0, 3.0]))
    heights = [bar.get_height() for bar in ax.containers[0]]
    assert heights[0] == pytest.approx(4)
    assert heights[9] == pytest.approx(6)
    assert sum(heights) == pytest.approx(10)
