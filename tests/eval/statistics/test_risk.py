"""p-values against SciPy, and how often a controlled risk exceeds its bound."""

import numpy as np
import pytest
from scipy import stats

from laplace_kit.eval.statistics import risk

REPEATS, DELTA = 500, 0.1
SLACK = 4 * np.sqrt(DELTA * (1 - DELTA) / REPEATS)


def test_p_values_are_tails_of_the_binomial():
    lost, num = np.array([0.0, 3.0, 50.0, 7.0]), np.array([20.0, 100.0, 400.0, 7.0])
    expected = stats.binom.cdf(lost, num, 0.1)
    np.testing.assert_allclose(risk.binomial_p_values(lost, num, 0.1), expected, rtol=1e-9)


def test_bounded_p_values_are_between_the_binomial_one_and_hoeffdings():
    mean, num = np.array([0.0, 0.02, 0.07, 0.3]), 200.0
    found = risk.bounded_p_values(mean, num, 0.1)
    binomial = stats.binom.cdf(np.round(mean * num), num, 0.1)
    hoeffding = np.exp(-2 * num * np.maximum(0.1 - mean, 0) ** 2)
    assert (found >= np.minimum(binomial, 1) - 1e-12).all()
    assert (found <= np.minimum(hoeffding, 1) + 1e-12).all()
    assert found[-1] == 1


def test_fixed_sequence_stops_at_the_first_failure():
    p_values = np.array([0.01, 0.04, 0.2, 0.001])
    assert risk.rejected(p_values, 0.05, in_order=True).tolist() == [True, True, False, False]
    assert risk.rejected(p_values, 0.05, in_order=False).tolist() == [True, False, False, True]


def drawn(rng, num=300):
    """Return uniform scores s, and errors with the chance (1 - s)^2."""
    scores = rng.uniform(size=num)
    return scores, (rng.uniform(size=num) < (1 - scores) ** 2).astype(float)


def error_above(threshold):
    """Return the error rate of all scores above a threshold."""
    return (1 - max(threshold, 0)) ** 2 / 3


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("bound", [0.05, 0.15])
def test_the_error_rate_exceeds_its_bound_rarely(in_order, bound):
    rng, exceeded, shares = np.random.default_rng(0), 0, []
    for _ in range(REPEATS):
        scores, lost = drawn(rng)
        weights = np.ones(300)
        found = risk.control_kept_losses(scores, lost, weights, bound, DELTA, in_order=in_order)
        exceeded += np.isfinite(found.threshold) and error_above(found.threshold) > bound
        shares.append(found.share)
    assert exceeded / REPEATS < DELTA + SLACK
    if in_order:
        assert exceeded > 0
    if bound == 0.15 or in_order:  # 300 examples are few for 20 tests of a small bound
        assert np.mean(shares) > (0.4 if bound == 0.15 else 0.05)


def test_scores_that_mislead_are_controlled_by_bonferroni():
    """Those with the largest scores are all wrong: nothing can be kept at any threshold."""
    rng, exceeded = np.random.default_rng(1), 0
    for _ in range(REPEATS):
        scores = rng.uniform(size=300)
        chance = np.where(scores > 0.9, 0.3, 0.02)
        lost = (rng.uniform(size=300) < chance).astype(float)
        found = risk.control_kept_losses(scores, lost, np.ones(300), 0.1, DELTA, in_order=False)
        above = max(1 - max(found.threshold, 0), 1e-9)
        risk_above = (0.3 * min(above, 0.1) + 0.02 * max(above - 0.1, 0)) / above
        exceeded += found.share > 0 and risk_above > 0.1
    assert exceeded / REPEATS < DELTA + SLACK


def test_soft_losses_are_controlled():
    rng, exceeded = np.random.default_rng(2), 0
    for _ in range(REPEATS):
        scores = rng.uniform(size=300)
        lost = (1 - scores) ** 2 * rng.uniform(0, 1, 300)
        found = risk.control_kept_losses(scores, lost, np.ones(300), 0.08, DELTA, in_order=True)
        exceeded += np.isfinite(found.threshold) and error_above(found.threshold) / 2 > 0.08
    assert exceeded / REPEATS < DELTA + SLACK


def test_the_share_left_out_exceeds_its_bound_rarely():
    rng = np.random.default_rng(3)
    found = [
        risk.control_left_out(rng.uniform(size=80), np.ones(80), 0.2, DELTA).threshold
        for _ in range(REPEATS)
    ]
    rate = np.mean(np.array(found) > 0.2)
    assert rate < DELTA + SLACK
    assert rate > DELTA - SLACK - 0.05
    ranks = [k for k in range(1, 80) if stats.binom.sf(k - 1, 80, 0.2) >= 1 - DELTA]
    scores = rng.uniform(size=80)
    one = risk.control_left_out(scores, np.ones(80), 0.2, DELTA)
    assert one.threshold == pytest.approx(np.sort(scores)[max(ranks) - 1], abs=1e-12)
    assert (scores <= one.threshold).sum() == max(ranks) - 1


def test_counts_repeat_examples_and_ties_stay_together():
    rng = np.random.default_rng(4)
    scores, lost = drawn(rng)
    scores, counts = np.round(scores, 1), rng.integers(0, 4, 300).astype(float)
    rows = np.repeat(np.arange(300), counts.astype(int))
    for in_order in (True, False):
        given = (0.2, DELTA)
        found = risk.control_kept_losses(scores, lost, counts, *given, in_order=in_order)
        ones = np.ones(len(rows))
        same = risk.control_kept_losses(scores[rows], lost[rows], ones, *given, in_order=in_order)
        np.testing.assert_allclose(found, same)
        kept = scores > found.threshold
        assert found.risk == pytest.approx(np.average(lost[kept], weights=counts[kept]))
        assert found.share == pytest.approx(np.average(kept, weights=counts))


def test_conformal_column():
    losses = np.array([[1.0, 0.5, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert risk.conformal_column(losses, 0.7, 1.0) == 1  # (1.5 + 1) / 4
    assert risk.conformal_column(losses, 0.25, 1.0) == 2
    assert risk.conformal_column(losses, 0.2, 1.0) is None
