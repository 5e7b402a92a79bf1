"""Transforms, their uniformity and the errors of quantiles, against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from predictions import DTYPES, regression, tolerance
from twins import precision

from laplace_kit.eval import metrics as mt


@jax.jit
def of_pit(pit, weights=None):
    test = mt.pit_uniformity_test(pit, weights=weights)
    return *test, mt.quantile_calibration_error(pit, weights=weights)


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniformity_and_quantiles_match_scipy(dtype):
    mean, std, y = regression((40, 2), dtype=dtype)
    expected_pit = scipy.stats.norm.cdf(y.astype(float), mean, std)
    levels = np.arange(1, 20) / 20
    shares = (expected_pit.reshape(-1, 1) <= levels).mean(axis=0)
    with precision(dtype):
        pit = mt.pit_gaussian(mean, std, y)
        assert pit.dtype == dtype
        np.testing.assert_allclose(pit, expected_pit, atol=tolerance(dtype))
        statistic, p_value, error = of_pit(pit)
        assert {statistic.dtype, p_value.dtype, error.dtype} == {np.dtype(dtype)}
        expected = scipy.stats.kstest(expected_pit.ravel(), "uniform", method="exact")
        np.testing.assert_allclose(statistic, expected.statistic, atol=tolerance(dtype))
        np.testing.assert_allclose(p_value, expected.pvalue, atol=5e-4)
        expected = np.sqrt(((shares - levels) ** 2).mean())
        np.testing.assert_allclose(error, expected, rtol=tolerance(dtype))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("num", "atol"), [(10, 3e-3), (50, 3e-4)])
def test_p_values_are_those_of_kolmogorovs_distribution(num, atol):
    rng = np.random.default_rng(0)
    found, expected = [], []
    for power in np.geomspace(0.3, 3, 12):  # from far too large to far too small
        pit = rng.uniform(size=num) ** power
        found.append(of_pit(pit)[1])
        expected.append(scipy.stats.kstest(pit, "uniform", method="exact").pvalue)
    assert min(expected) < 0.01 < 0.5 < max(expected)
    np.testing.assert_allclose(found, expected, atol=atol)


def test_p_values_are_uniform_under_calibration_and_small_without():
    @jax.jit
    @jax.vmap
    def p_values(key):
        y = jax.random.normal(key, (60,))
        return [
            mt.pit_uniformity_test(mt.pit_gaussian(jnp.zeros(60), std, y)).p_value
            for std in (1.0, 0.5)
        ]

    calibrated, overconfident = p_values(jax.random.split(jax.random.key(0), 2000))
    assert scipy.stats.kstest(np.asarray(calibrated), "uniform").pvalue > 0.01
    assert (np.asarray(overconfident) < 0.05).mean() > 0.9


def test_ranks_among_samples():
    samples = np.array([[1, 5], [2, 5], [3, 5]], "float32")
    found = mt.pit_samples(samples, np.array([2.5, 5], "float32"))
    np.testing.assert_allclose(found, [2.5 / 4, 2 / 4])
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(20, 30_000)).astype("float32")
    pit = mt.pit_samples(draws[:19], draws[19])
    shares = np.unique(np.asarray(pit), return_counts=True)[1] / 30_000
    np.testing.assert_allclose(shares, np.full(20, 1 / 20), atol=0.006)


def test_single_and_degenerate():
    statistic, p_value, error = of_pit(np.array([0.5], "float32"))
    np.testing.assert_allclose(statistic, 0.5)
    np.testing.assert_allclose(p_value, 1, atol=0.1)
    statistic, p_value, error = of_pit(np.zeros(50, "float32"))
    np.testing.assert_allclose([statistic, p_value], [1, 0], atol=1e-6)
    np.testing.assert_allclose(error, np.sqrt(np.mean((1 - np.arange(1, 20) / 20) ** 2)), rtol=1e-6)
