"""Distributions of statistics against integrals and tables, and the levels of the tests."""

import numpy as np
import pytest
from scipy import integrate, stats

from laplace_kit.eval.statistics import hypotheses
from laplace_kit.eval.statistics.hypotheses import brownian_maximum_above, brownian_range_above

REPEATS, NUM = 1000, 300
# Four standard errors of a share of 5%, and what the limit is off for so few examples.
SLACK = 4 * np.sqrt(0.05 * 0.95 / REPEATS)


def binary(rng, num=NUM):
    p = rng.uniform(0.02, 0.98, num)
    return p, (rng.uniform(size=num) < p).astype(float)


def found_by_tests(p, y, weights=None):
    both = np.stack([1 - p, p], axis=1)
    surprise = hypotheses.label_surprise(both, y.astype(int))
    weights = np.ones(len(p)) if weights is None else weights
    return hypotheses.calibration_tests(p, y, surprise, weights)


def test_distributions_of_brownian_motion():
    """Means of the largest absolute value and of the range are known in closed form."""
    for above, mean in (
        (brownian_maximum_above, np.sqrt(np.pi / 2)),
        (brownian_range_above, np.sqrt(8 / np.pi)),
    ):
        assert integrate.quad(above, 0, 12, limit=200)[0] == pytest.approx(mean, rel=1e-6)
        assert above(0.0) == above(-1.0) == 1.0
        assert above(9.0) < 1e-15
    near = [brownian_maximum_above(1 - 1e-9), brownian_maximum_above(1 + 1e-9)]
    assert near[0] == pytest.approx(near[1], abs=1e-8)
    walks = np.cumsum(np.random.default_rng(0).normal(size=(4000, 1000)) / np.sqrt(1000), axis=1)
    ranges = np.maximum(walks.max(axis=1), 0) - np.minimum(walks.min(axis=1), 0)
    assert (ranges > 1.5).mean() == pytest.approx(brownian_range_above(1.5), abs=0.04)


def test_spiegelhalter_of_two_classes_by_its_formula():
    p, y = binary(np.random.default_rng(0))
    variance = np.sum((1 - 2 * p) ** 2 * p * (1 - p))
    z = np.sum((y - p) * (1 - 2 * p)) / np.sqrt(variance)
    found = found_by_tests(p, y).spiegelhalter
    assert found.statistic == pytest.approx(z, rel=1e-10)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-10)


def test_cumulative_gaps_by_hand():
    p, y = np.array([0.2, 0.4, 0.4, 0.9]), np.array([0.0, 1.0, 0.0, 0.0])
    found = found_by_tests(p, y)
    sums = np.array([-0.2, 0.0, -0.9]) / 4  # both 0.4 together
    assert found.kolmogorov_smirnov.statistic == pytest.approx(-sums.min())
    assert found.kuiper.statistic == pytest.approx(-sums.min())
    deviation = np.sqrt(np.sum(p * (1 - p))) / 4
    expected = brownian_maximum_above(0.225 / deviation)
    assert found.kolmogorov_smirnov.p_value == pytest.approx(expected)


def test_levels_of_the_tests_of_calibrated_probabilities():
    rng = np.random.default_rng(0)
    values = np.array([[of.p_value for of in found_by_tests(*binary(rng))] for _ in range(REPEATS)])
    level = (values <= 0.05).mean(axis=0)
    assert (level < 0.05 + SLACK).all()
    assert (level > 0.05 - SLACK - 0.01).all()  # the largest sum is of few steps
    assert stats.kstest(values[:, 0], "uniform").pvalue > 0.001


def test_levels_for_many_classes_and_for_weights():
    rng, found = np.random.default_rng(1), []
    weights = rng.uniform(0.2, 2, NUM)
    for _ in range(REPEATS):
        probs = rng.dirichlet(np.full(5, 0.5), NUM)
        y = (probs.cumsum(axis=1) < rng.uniform(size=(NUM, 1))).sum(axis=1).clip(0, 4)
        top = probs.max(axis=1), (probs.argmax(axis=1) == y).astype(float)
        surprise = hypotheses.label_surprise(probs, y)
        tests = hypotheses.calibration_tests(*top, surprise, weights)
        found.append([of.p_value for of in tests])
    level = (np.array(found) <= 0.05).mean(axis=0)
    assert (level < 0.05 + SLACK).all()
    assert (level > 0.05 - SLACK - 0.01).all()


def test_over_confidence_is_found():
    p, y = binary(np.random.default_rng(2), 500)
    sharper = p**3 / (p**3 + (1 - p) ** 3)
    found = found_by_tests(sharper, y)
    assert found.spiegelhalter.statistic > 3
    assert all(of.p_value < 1e-3 for of in found)


def test_counts_repeat_examples():
    rng = np.random.default_rng(3)
    (p, y), counts = binary(rng, 80), rng.integers(0, 4, 80)
    expected = found_by_tests(np.repeat(p, counts), np.repeat(y, counts))
    np.testing.assert_allclose(found_by_tests(p, y, counts.astype(float)), expected, rtol=1e-10)
    np.testing.assert_allclose(
        found_by_tests(p, y, np.full(80, 0.3)), found_by_tests(p, y), rtol=1e-10
    )


def test_certain_predictions():
    sure = np.ones(5)
    assert all(of.p_value == 1 for of in found_by_tests(sure, sure)[1:])
    assert all(of.p_value == 0 for of in found_by_tests(sure, 0 * sure)[1:])


# --- uniformity -----------------------------------------------------------------------------------


def test_uniformity_against_scipy_and_stephens_table():
    values = np.random.default_rng(4).uniform(size=120) ** 1.1
    found = hypotheses.uniformity_tests(values, np.ones(120))
    expected = stats.kstest(values, "uniform")
    assert found.kolmogorov_smirnov.statistic == pytest.approx(expected.statistic, rel=1e-12)
    assert found.kolmogorov_smirnov.p_value == pytest.approx(expected.pvalue, abs=3e-4)
    for critical, level in ((1.620, 0.1), (1.747, 0.05), (2.001, 0.01)):
        assert hypotheses._kuiper_above(critical) == pytest.approx(level, rel=0.01)


def test_levels_of_the_tests_of_uniformity():
    rng = np.random.default_rng(5)
    draws = rng.uniform(size=(REPEATS, 60))
    found = [hypotheses.uniformity_tests(values, np.ones(60)) for values in draws]
    level = (np.array([[of.p_value for of in each] for each in found]) <= 0.05).mean(axis=0)
    assert (abs(level - 0.05) < SLACK).all()


def test_wrong_spread_is_seen_by_kuiper_and_counts_repeat():
    rng = np.random.default_rng(6)
    values = stats.norm.cdf(1.5 * rng.normal(size=200))
    found = hypotheses.uniformity_tests(values, np.ones(200))
    assert found.kuiper.p_value < 1e-3
    assert found.kuiper.p_value < found.kolmogorov_smirnov.p_value
    counts = rng.integers(0, 3, 200)
    repeated = np.repeat(values, counts)
    np.testing.assert_allclose(
        hypotheses.uniformity_tests(values, counts.astype(float)),
        hypotheses.uniformity_tests(repeated, np.ones(len(repeated))),
        rtol=1e-10,
    )
