"""The plots carry the data they claim to: artists are compared with numbers computed apart."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import norm

from laplace_kit.eval import plots


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture
def classified():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([0.6, 0.6, 0.6], size=200).astype(np.float32)
    return probs, rng.integers(0, 3, size=200)


@pytest.fixture
def regressed():
    rng = np.random.default_rng(1)
    mean, std = rng.normal(size=40), rng.uniform(0.5, 1.5, size=40)
    return mean, std, mean + std * rng.normal(size=40)


def binned(probs, y, num_bins):
    """Return counts, mean confidence and accuracy of the bins (low, high], one bin at a time."""
    confidence, hit = probs.max(axis=1), probs.argmax(axis=1) == y
    edges = np.linspace(0, 1, num_bins + 1)
    members = [(confidence > low) & (confidence <= high) for low, high in pairwise(edges)]
    used = [m for m in members if m.any()]
    return (
        np.array([m.sum() for m in members]),
        np.array([confidence[m].mean() for m in used]),
        np.array([hit[m].mean() for m in used]),
    )


def test_reliability_bars_are_accuracy_and_its_gap_to_confidence(ax, classified):
    probs, y = classified
    assert plots.reliability_diagram(ax, probs, y, num_bins=10) is ax
    counts, confidence, accuracy = binned(probs, y, 10)
    bars, gaps = ax.containers
    left = np.linspace(0, 1, 11)[:-1][counts > 0]
    np.testing.assert_allclose([bar.get_x() for bar in bars], left, atol=1e-6)
    np.testing.assert_allclose([bar.get_height() for bar in bars], accuracy, atol=1e-6)
    np.testing.assert_allclose([gap.get_y() for gap in gaps], accuracy, atol=1e-6)
    np.testing.assert_allclose([gap.get_height() for gap in gaps], confidence - accuracy, atol=1e-6)
    assert counts[0] == 0, "three classes leave the first bins empty: they have no bar"


def test_bin_counts_has_a_bar_for_each_bin_below_the_diagram(ax, classified):
    probs, y = classified
    plots.bin_counts(ax, probs, y, num_bins=10)
    heights = [bar.get_height() for bar in ax.containers[0]]
    np.testing.assert_array_equal(heights, binned(probs, y, 10)[0])
    assert ax.get_ylim()[1] > max(heights)


@pytest.mark.parametrize("one_hot", [False, True])
def test_confidence_histogram_shares_right_and_wrong_apart(ax, classified, one_hot):
    probs, y = classified
    plots.confidence_histogram(ax, probs, np.eye(3)[y] if one_hot else y, num_bins=5)
    right = probs.argmax(axis=1) == y
    assert len(ax.patches) == 2
    for patch, group in zip(ax.patches, (right, ~right), strict=True):
        counts, edges = np.histogram(probs[group].max(axis=1), bins=5, range=(0, 1))
        np.testing.assert_allclose(patch.get_data().values, counts / group.sum())
        np.testing.assert_allclose(patch.get_data().edges, edges)
        assert f"({group.sum()})" in patch.get_label()


def test_confidence_histogram_leaves_out_the_errors_that_are_not_there(ax, classified):
    probs, _ = classified
    plots.confidence_histogram(ax, probs, probs.argmax(axis=1))
    assert [patch.get_label() for patch in ax.patches] == ["right (200)"]


def test_score_histograms_share_their_bins(ax):
    inside, outside = np.array([0.0, 0.1, 0.1, 0.2]), np.array([0.35, 0.4])
    plots.score_histograms(ax, inside, outside, num_bins=4)
    known, foreign = (patch.get_data() for patch in ax.patches)
    np.testing.assert_allclose(known.edges, np.linspace(0.0, 0.4, 5))
    np.testing.assert_array_equal(known.edges, foreign.edges)
    np.testing.assert_allclose(known.values.sum(), 1.0)
    np.testing.assert_allclose(foreign.values, [0, 0, 0, 1])


def test_score_histograms_of_equal_scores(ax):
    plots.score_histograms(ax, np.zeros(3), np.zeros(2))
    assert [patch.get_data().values.max() for patch in ax.patches] == [1.0, 1.0]


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
    with pytest.raises(ValueError, match=r"expected both or neither; pass the inputs"):
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


def test_matplotlib_is_loaded_when_first_used_and_pyplot_never():
    code = (
        "import sys, numpy as np\n"
        "from laplace_kit.eval import figures, report\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "one = {'map': np.zeros(3)}\n"
        "figures.coverage(one, {'map': np.ones(3)}, np.ones(3))\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
