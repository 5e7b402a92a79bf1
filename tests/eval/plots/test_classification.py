"""The plots of a classifier carry the data that they claim to."""

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
    bars, gaps, whiskers = ax.containers
    left = np.linspace(0, 1, 11)[:-1][counts > 0]
    np.testing.assert_allclose([bar.get_x() for bar in bars], left, atol=1e-6)
    np.testing.assert_allclose([bar.get_height() for bar in bars], accuracy, atol=1e-6)
    np.testing.assert_allclose([gap.get_y() for gap in gaps], accuracy, atol=1e-6)
    np.testing.assert_allclose([gap.get_height() for gap in gaps], confidence - accuracy, atol=1e-6)
    error = norm.ppf(0.975) * np.sqrt(confidence * (1 - confidence) / counts[counts > 0])
    (segments,) = (lines.get_segments() for lines in whiskers[2])
    ends = np.stack([np.maximum(confidence - error, 0), np.minimum(confidence + error, 1)], axis=1)
    np.testing.assert_allclose([segment[:, 1] for segment in segments], ends, atol=1e-4)
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
    assert [patch.get_label() for patch in ax.patches] == ["correct (200)"]


def test_risk_coverage_curves_are_told_apart(ax):
    for series in range(2):
        plots.risk_coverage_curve(
            ax, np.array([0.5, 1.0]), np.array([0.1, 1 + series]), label=str(series), series=series
        )
    first, second = ax.lines
    np.testing.assert_array_equal(second.get_xydata(), [[0.5, 0.1], [1.0, 2.0]])
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()
    low, high = ax.get_ylim()
    assert low == 0
    assert high > 2, "the second curve is not cut off at the height of the first"


def test_a_risk_coverage_curve_of_one_prediction_is_a_point(ax):
    plots.risk_coverage_curve(ax, np.array([1.0]), np.array([0.5]))
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), [[1.0, 0.5]])


def test_entropy_scatter_tells_right_from_wrong(ax):
    aleatoric, epistemic = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    plots.entropy_scatter(ax, aleatoric, epistemic, np.array([True, False, True]))
    right, wrong = ax.collections
    np.testing.assert_array_equal(right.get_offsets(), [[0.1, 0.4], [0.3, 0.6]])
    np.testing.assert_array_equal(wrong.get_offsets(), [[0.2, 0.5]])
    assert (right.get_label(), wrong.get_label()) == ("correct (2)", "wrong (1)")


def test_many_points_are_a_density_that_mixes_the_colours_of_both_kinds(ax):
    rng = np.random.default_rng(0)
    aleatoric = np.concatenate([rng.normal(0.2, 0.02, 3000), rng.normal(0.8, 0.02, 3000)])
    right = np.repeat([True, False], 3000)
    plots.entropy_scatter(ax, aleatoric, rng.uniform(0, 0.1, 6000), right)
    (cells,) = ax.collections
    centres, colors = cells.get_offsets()[:, 0], cells.get_facecolor()
    # Blue on the side of the correct predictions, orange on the other.
    assert (colors[centres < 0.5, 2] > colors[centres < 0.5, 0]).all()
    assert (colors[centres > 0.5, 0] > colors[centres > 0.5, 2]).all()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["correct (3000)", "wrong (3000)"]


def test_weights_repeat_predictions(ax):
    rng = np.random.default_rng(0)
    probs, y = rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40)
    weights = rng.integers(0, 3, 40)
    repeated = np.repeat(np.arange(40), weights)
    for draw in (plots.reliability_diagram, plots.bin_counts):
        heights = []
        for given in ((probs, y, weights), (probs[repeated], y[repeated], None)):
            ax.clear()
            draw(ax, *given[:2], weights=given[2])
            heights.append([bar.get_height() for bar in ax.containers[0]])
        np.testing.assert_allclose(*heights, rtol=1e-12)
