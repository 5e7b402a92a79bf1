"""Diagrams without bins show the curves that they are given."""

import numpy as np
from matplotlib.figure import Figure

from laplace_kit.eval import plots
from laplace_kit.eval.calibration import corp_reliability, smooth_reliability

RNG = np.random.default_rng(0)
P = RNG.uniform(0.3, 0.9, 300)
Y = RNG.uniform(size=300) < P


def test_the_smooth_diagram_is_drawn_where_predictions_are():
    ax, found = Figure().subplots(), smooth_reliability(P, Y)
    assert plots.smooth_reliability_diagram(ax, found, label="map") is ax
    (line,) = ax.collections
    ends = np.array([piece[0] for piece in line.get_segments()])
    assert 0.05 < ends[:, 0].min() < 0.3
    at = np.searchsorted(found.probability, ends[:, 0])
    np.testing.assert_allclose(ends[:, 1], found.frequency[at])
    assert ax.get_legend().get_texts()[0].get_text() == f"map, error {found.error:.3f}"
    assert np.ptp(line.get_linewidths()) > 1


def test_the_isotonic_diagram_shows_recalibrated_probabilities():
    ax, found = Figure().subplots(), corp_reliability(P, Y)
    plots.corp_diagram(ax, found)
    line = ax.lines[-1]
    np.testing.assert_array_equal(line.get_xdata(), found.probability)
    np.testing.assert_array_equal(line.get_ydata(), found.frequency)
