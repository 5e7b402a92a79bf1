"""Bins and risk from cumulative sums are those of examples sorted by hand."""

import numpy as np
import pytest

from laplace_kit.eval import metrics
from laplace_kit.eval.statistics import confidence
from laplace_kit.eval.statistics.weighting import ranked

RNG = np.random.default_rng(0)
PROBS, Y = RNG.dirichlet(np.ones(3), 80), RNG.integers(0, 3, 80)


@pytest.mark.parametrize("weights", [None, RNG.integers(0, 3, 80)])
def test_reliability_is_that_of_the_metrics(weights):
    found = confidence.reliability(PROBS, Y, 10, weights)
    expected = metrics.reliability_bins(PROBS, Y, 10, weights=weights)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_proportions_count_as_many_examples_as_they_are_worth():
    weights = RNG.uniform(size=80)
    counts = confidence.reliability(PROBS, Y, 10, weights).counts
    assert counts.sum() == pytest.approx(weights.sum() ** 2 / np.sum(weights**2))


def test_risk_falls_where_the_least_confident_are_left_out():
    doubt, losses = np.array([0.3, 0.1, 0.3, 0.2]), np.array([1.0, 0.0, 3.0, 4.0])
    rows = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 0.0, 0.0]])
    curve = confidence.risk_curve(ranked(doubt), losses, rows)
    np.testing.assert_allclose(curve.coverage, [[0.25, 0.5, 1.0], [1 / 3, 1 / 3, 1.0]])
    np.testing.assert_allclose(curve.risk, [[0.0, 2.0, 2.0], [0.0, 0.0, 2 / 3]])
    # The mean over examples of the risk of those at least as confident.
    np.testing.assert_allclose(confidence.area_under(curve), [(0 + 2 + 2 + 2) / 4, 2 * 2 / 9])
