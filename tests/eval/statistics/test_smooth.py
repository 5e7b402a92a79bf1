"""The smooth calibration error against its definition by quadrature and root finding."""

import numpy as np
import pytest
from scipy import optimize, stats

from laplace_kit.eval.statistics import smooth

RNG = np.random.default_rng(0)


def direct(p, gaps, weights, bandwidth):
    """Return the error at one bandwidth: a dense kernel with its images, on a fine grid."""
    t = (np.arange(4000) + 0.5) / 4000
    images = [s * p[:, None] + 2 * k for k in range(-3, 4) for s in (1, -1)]
    kernel = sum(stats.norm.pdf(t, centre, bandwidth) for centre in images)
    return np.abs((weights * gaps) @ kernel).mean() / weights.sum()


def of(p, gaps, weights=None):
    rows = np.ones((1, len(p))) if weights is None else weights[None]
    return smooth.smooth_errors(smooth.on_grid(p, gaps), rows)[0]


@pytest.mark.parametrize("weights", [None, RNG.uniform(size=60)])
def test_the_error_is_the_fixed_point(weights):
    p = RNG.uniform(size=60)
    gaps = (RNG.uniform(size=60) < p**2) - p
    given = np.ones(60) if weights is None else weights
    expected = optimize.brentq(lambda s: direct(p, gaps, given, s) - s, 1e-3, 1)
    assert of(p, gaps, weights) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_of_one_probability_it_is_the_gap(p):
    assert of(np.full(20, p), np.full(20, 0.17)) == pytest.approx(0.17, abs=1e-5)


def test_gaps_that_cancel_nearby_do_not_count():
    p = np.array([0.5, 0.5001])
    assert of(p, np.array([0.4, -0.4])) < 0.02
    assert of(np.array([0.1, 0.9]), np.array([0.4, -0.4])) > 0.2


def test_of_calibrated_predictions_it_vanishes_as_examples_become_many():
    """Within four standard errors of the mean over repetitions, it falls by half or more."""
    rng, means = np.random.default_rng(1), []
    for num in (200, 3200):
        found = []
        for _ in range(40):
            p = rng.uniform(size=num)
            found.append(of(p, (rng.uniform(size=num) < p) - p))
        means.append(np.mean(found))
        assert 4 * np.std(found) / np.sqrt(40) < 0.3 * means[-1]
    assert means[1] < 0.5 * means[0]


def test_counts_repeat_and_rows_are_apart():
    p, counts = RNG.uniform(size=50), RNG.integers(0, 3, 50).astype(float)
    gaps = (RNG.uniform(size=50) < 0.5) - p
    rows = np.stack([np.ones(50), counts])
    both = smooth.smooth_errors(smooth.on_grid(p, gaps), rows)
    repeated = np.repeat(np.arange(50), counts.astype(int))
    np.testing.assert_allclose(both, [of(p, gaps), of(p[repeated], gaps[repeated])], rtol=1e-9)


def test_the_curve_follows_the_frequency():
    p = RNG.uniform(size=40_000)
    outcomes = (RNG.uniform(size=len(p)) < p**2).astype(float)
    found = smooth.smooth_reliability(p, outcomes, np.ones(len(p)))
    middle = (found.probability > 0.3) & (found.probability < 0.7)
    # The kernel's width, the error, adds the curvature times its square.
    expected = found.probability**2 + found.error**2
    np.testing.assert_allclose(found.frequency[middle], expected[middle], atol=0.02)
    assert found.density.mean() == pytest.approx(1, rel=1e-5)
    assert found.error == pytest.approx(of(p, outcomes - p), rel=1e-9)


def test_where_no_prediction_is_near_the_frequency_is_zero():
    found = smooth.smooth_reliability(np.full(9, 0.4), np.arange(9) % 2 * 1.0, np.ones(9))
    assert found.frequency[-1] == 0
    assert found.frequency[204] == pytest.approx(4 / 9, rel=1e-5)
    assert found.error == pytest.approx(4 / 9 - 0.4, abs=1e-5)
