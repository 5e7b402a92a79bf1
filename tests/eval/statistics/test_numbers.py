"""Scores of normal and of discrete distributions against SciPy."""

import numpy as np
import pytest
from scipy import integrate, stats

from laplace_kit.eval.statistics import numbers

RNG = np.random.default_rng(0)
MEAN, STD, Y = RNG.normal(size=(30, 2)), RNG.uniform(0.5, 2, (30, 2)), RNG.normal(size=(30, 2))


def test_scores_of_normal_distributions():
    found = numbers.normal_scores(MEAN, STD, Y)
    known = stats.norm(MEAN, STD)
    np.testing.assert_allclose(found.losses, -known.logpdf(Y).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.cdf, known.cdf(Y), rtol=1e-12)
    np.testing.assert_allclose((found.low, found.high), known.interval(0.9), rtol=1e-12)
    one = stats.norm(MEAN[0, 0], STD[0, 0])
    crps = sum(
        integrate.quad(lambda z, of=of: of(z) ** 2, *ends)[0]
        for of, ends in ((one.cdf, (-np.inf, Y[0, 0])), (one.sf, (Y[0, 0], np.inf)))
    )
    assert found.crps[0, 0] == pytest.approx(crps, rel=1e-7)


def counts():
    """Return many draws of Poisson targets, and their scores without the CRPS."""
    rates = RNG.uniform(0.2, 5, (20_000, 1))
    y, known = RNG.poisson(rates), stats.poisson(rates)
    low, high = known.interval(0.9)
    content = known.cdf(high) - known.cdf(low - 1)
    log_prob = known.logpmf(y)[:, 0]
    return y, numbers.TargetScores(
        -log_prob, known.cdf(y), known.cdf(y - 1), low, high, content, np.zeros(y.shape)
    )


def test_transforms_of_calibrated_counts_are_uniform_and_cover_as_they_claim():
    y, scores = counts()
    transforms = numbers.integral_transforms(scores, np.random.default_rng(1))
    assert stats.kstest(transforms.ravel(), "uniform").pvalue > 0.01
    levels = np.array([0.3, 0.9])
    covered = numbers.coverage(transforms, levels, np.ones((1, len(y))))
    np.testing.assert_allclose(covered, [levels], atol=0.015)
    columns = numbers.number_columns(0.0 * y, 1.0 + 0 * y, y.astype(float), scores, transforms)
    found = numbers.number_sums(columns, np.ones((1, len(y))))
    inside = ((scores.low <= y) & (y <= scores.high)).mean()
    assert found.covered[0] == pytest.approx(inside)
    assert found.covered[0] == pytest.approx(scores.content.mean(), abs=0.01)
    assert scores.content.mean() > 0.92
    assert numbers.quantile_calibration_error(found)[0] < 0.01


def test_means_over_outputs_are_weighted_by_example():
    weights = RNG.uniform(size=(1, 30))
    scores = numbers.normal_scores(MEAN, STD, Y)
    sums = numbers.number_sums(numbers.number_columns(MEAN, STD, Y, scores, scores.cdf), weights)
    each = np.square((Y - MEAN) / STD).mean(axis=1)
    assert numbers.chi_squared(sums)[0] == pytest.approx(np.average(each, weights=weights[0]))
    widths = 2 * stats.norm.ppf(0.95) * STD.mean(axis=1)
    assert numbers.interval_width(sums)[0] == pytest.approx(np.average(widths, weights=weights[0]))


@pytest.mark.parametrize("kind", ["none", "counts", "shares"])
def test_errors_explained_variance_and_sharpness(kind):
    from sklearn.metrics import mean_absolute_error, r2_score

    given = {"none": np.ones(30), "counts": np.arange(30) % 3, "shares": RNG.uniform(size=30)}
    weights = given[kind].astype(float)
    y = Y + np.array([100.0, -5.0])
    scores = numbers.normal_scores(MEAN, STD, y)
    rows = np.stack([weights, np.ones(30)])
    sums = numbers.number_sums(numbers.number_columns(MEAN, STD, y, scores, scores.cdf), rows)
    assert numbers.r_squared(sums)[0] == pytest.approx(r2_score(y, MEAN, sample_weight=weights))
    expected = mean_absolute_error(y, MEAN, sample_weight=weights)
    assert numbers.mae(sums)[0] == pytest.approx(expected)
    assert numbers.sharpness(sums)[1] == pytest.approx(np.sqrt(np.mean(STD**2)))


def test_explained_variance_of_equal_targets():
    y, mean = np.full((4, 1), 3.0), np.full((4, 1), 2.0)
    found = []
    for of in (y, mean):
        scores = numbers.normal_scores(of, 0 * y + 1, y)
        columns = numbers.number_columns(of, 0 * y + 1, y, scores, scores.cdf)
        found.append(numbers.r_squared(numbers.number_sums(columns, np.ones((1, 4))))[0])
    assert found == [1.0, 0.0]
