"""The plots of scores carry the data that they claim to."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from laplace_kit.eval import plots


@pytest.fixture
def ax():
    return Figure().subplots()


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


def test_roc_curve_is_what_it_is_given(ax):
    plots.roc_curve(ax, np.array([0.0, 0.2, 1.0]), np.array([0.0, 0.7, 1.0]), label="one", series=1)
    chance, curve = ax.lines
    np.testing.assert_array_equal(chance.get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(curve.get_xydata(), [[0, 0], [0.2, 0.7], [1, 1]])
