"""Scores of predicted numbers against scipy, scikit-learn and integrals."""

import jax
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from predictions import DTYPES, regression, tolerance
from twins import precision

from laplace_kit.eval import metrics as mt


@jax.jit
def gaussian_scores(mean, std, y):
    return (
        mt.gaussian_nll(mean, std**2, y),
        mt.chi_squared(mean, std**2, y),
        mt.crps_gaussian(mean, std, y),
        mt.rmse(mean, y),
        mt.mae(mean, y),
    )


@jax.jit
def sample_scores(samples, y):
    return mt.crps_samples(samples, y), mt.crps_samples(samples, y, fair=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(50,), (10, 2, 3)])
def test_regression_matches_scipy(shape, dtype):
    mean, std, y = regression(shape, dtype=dtype)
    norm = scipy.stats.norm(mean.astype(float), std.astype(float))
    z = (y - mean) / std
    with precision(dtype):
        nll, chi, _, rmse, mae = gaussian_scores(mean, std, y)
        found = nll, chi, rmse, mae, mt.sharpness(std)
    expected = (
        -norm.logpdf(y).reshape(shape[0], -1).sum(axis=1).mean(),
        (z**2).mean(),
        sklearn.metrics.root_mean_squared_error(y.ravel(), mean.ravel()),
        sklearn.metrics.mean_absolute_error(y.ravel(), mean.ravel()),
        np.sqrt((std.astype(float) ** 2).mean()),
    )
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(value, reference, rtol=tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_crps_is_the_integral_of_the_squared_gap_of_distributions(dtype):
    mean, std, y = regression((4,), dtype=dtype)
    grid = np.linspace(-30, 30, 600_001)
    integrals = [
        np.trapezoid((scipy.stats.norm.cdf(grid, m, s) - (grid >= t)) ** 2, grid)
        for m, s, t in zip(mean, std, y, strict=True)
    ]
    with precision(dtype):
        found = mt.crps_gaussian(mean, std, y)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, np.mean(integrals), atol=2e-4)
        np.testing.assert_allclose(
            mt.crps_gaussian(mean, np.full_like(std, 1e-6), y), np.abs(y - mean).mean(), atol=1e-5
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_crps_of_samples_is_a_sum_over_pairs(dtype):
    _, _, y = regression((6, 2), dtype=dtype)
    samples = np.random.default_rng(0).normal(size=(9, 6, 2)).round(1).astype(dtype)
    errors = np.abs(samples - y).mean(axis=0)
    pairs = np.abs(samples[:, None] - samples).sum(axis=(0, 1))
    with precision(dtype):
        found = sample_scores(samples, y)
        assert found[0].dtype == dtype
        expected = [(errors - pairs / 2 / num).mean() for num in (9 * 9, 9 * 8)]
        np.testing.assert_allclose(found, expected, atol=tolerance(dtype))
        # One draw, and draws that agree, are a prediction without doubt.
        alone = mt.crps_samples(samples[:1], y)
        np.testing.assert_allclose(alone, np.abs(samples[0] - y).mean(), rtol=tolerance(dtype))


def test_fair_samples_score_what_they_were_drawn_from():
    rng = np.random.default_rng(0)
    mean, std, y = regression((20_000,), dtype="float32")
    draws = (mean + std * rng.normal(size=(3, 20_000))).astype("float32")
    expected = mt.crps_gaussian(mean, std, y)
    plain, fair = sample_scores(draws, y)
    assert abs(fair - expected) < 0.02
    assert plain - expected > 0.1


def test_numbers_far_from_zero_cost_no_digits():
    _, _, y = regression((40,), dtype="float32")
    samples = np.random.default_rng(0).normal(size=(9, 40)).astype("float32")
    near, far = (sample_scores(samples + at, y + at)[0] for at in (0, 4096))
    np.testing.assert_allclose(near, far, rtol=1e-3)


def test_a_scalar_spread_is_that_of_every_output():
    mean, _, y = regression(dtype="float32")
    found = gaussian_scores(mean, 0.7, y)
    np.testing.assert_allclose(found, gaussian_scores(mean, np.full_like(mean, 0.7), y), rtol=1e-6)


def test_perfect_and_single():
    one = np.ones(1, "float32")
    nll, chi, crps, rmse, mae = gaussian_scores(one, one, one)
    np.testing.assert_allclose(nll, 0.5 * np.log(2 * np.pi), rtol=1e-6)
    assert chi == rmse == mae == 0
    np.testing.assert_allclose(crps, (np.sqrt(2) - 1) / np.sqrt(np.pi), rtol=1e-6)


@pytest.mark.parametrize("weights", [None, np.arange(50) % 4])
def test_r_squared_is_that_of_scikit_learn(weights):
    from sklearn.metrics import mean_absolute_error, r2_score

    mean, _, y = regression()
    found = mt.r_squared(mean, y, weights=weights)
    assert float(found) == pytest.approx(r2_score(y, mean, sample_weight=weights), rel=1e-5)
    found = mt.mae(mean, y, weights=weights)
    expected = mean_absolute_error(y, mean, sample_weight=weights)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_r_squared_of_targets_that_are_all_equal():
    same = np.ones((5, 1))
    assert float(mt.r_squared(same, same)) == 1
    assert float(mt.r_squared(same + 1, same)) == 0


def test_energy_score_by_all_pairs_and_as_crps_of_one_output():
    rng = np.random.default_rng(0)
    samples, y, weights = rng.normal(size=(7, 5, 3)), rng.normal(size=(5, 3)), rng.uniform(size=5)
    to_target = np.linalg.norm(samples - y, axis=2).mean(axis=0)
    pairs = np.linalg.norm(samples[:, None] - samples[None], axis=3).sum(axis=(0, 1))
    for fair, divisor in ((False, 7 * 7), (True, 7 * 6)):
        expected = np.average(to_target - pairs / (2 * divisor), weights=weights)
        found = mt.energy_score(samples, y, fair=fair, weights=weights)
        assert float(found) == pytest.approx(expected, rel=1e-6)
    one = mt.energy_score(samples[..., 0], y[:, 0])
    assert float(one) == pytest.approx(float(mt.crps_samples(samples[..., 0], y[:, 0])))
    with pytest.raises(ValueError, match="Found 1 sample for fair=True"):
        mt.energy_score(samples[:1], y, fair=True)


def test_energy_score_is_proper():
    """The true correlation scores better than none, beyond three standard errors."""
    rng = np.random.default_rng(1)
    cov = np.array([[1, 0.9], [0.9, 1]])
    y = rng.multivariate_normal([0, 0], cov, 600)
    true, independent = (
        rng.multivariate_normal([0, 0], cov, (40, 600)),
        rng.normal(size=(40, 600, 2)),
    )
    each = np.array(
        [
            float(mt.energy_score(independent[:, part], y[part], fair=True))
            - float(mt.energy_score(true[:, part], y[part], fair=True))
            for part in np.split(np.arange(600), 12)
        ]
    )
    assert each.mean() > 3 * each.std(ddof=1) / np.sqrt(12)
