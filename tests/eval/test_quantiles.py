"""Quantiles and distribution functions against scipy's, integration and their own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from scipy import integrate, stats

from laplace_kit.eval.outputs import Predictive, from_gaussian
from laplace_kit.eval.quantiles import pit
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    FromLoss,
    Gaussian,
    HeteroscedasticGaussian,
    Masked,
    MultivariateGaussian,
    Poisson,
)
from laplace_kit.targets import NoTargets, Outputs

RNG = np.random.default_rng(0)
LEVELS = np.asarray([0.01, 0.3, 0.5, 0.975])


def predictive_of(likelihood, f, f_var, f_cov=None, dtype=None) -> Predictive:
    parts = [None if a is None else jnp.asarray(a, dtype) for a in (f, f_var, f_cov)]
    return from_gaussian(likelihood, *parts, link="probit", key=None, num_samples=2)


# --- Gaussian noise -------------------------------------------------------------------------------


@jax.jit
def forms(predictive):
    levels = (predictive.quantile(0.3), predictive.quantile(LEVELS))
    return *levels, *predictive.interval(0.8), predictive.cdf(0.4)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gaussian_quantiles_are_those_of_scipy(dtype):
    f, f_var = RNG.normal(size=(5, 2)), RNG.uniform(0.1, 1.0, (5, 2))
    law = stats.norm(f, np.sqrt(f_var + 0.49))
    levels = (law.ppf(0.3), law.ppf(LEVELS[:, None, None]), law.ppf(0.1), law.ppf(0.9))
    with twins.precision(dtype):
        found = forms(predictive_of(Masked(Gaussian(0.7)), f, f_var, dtype=dtype))
        for value, expected in zip(found, (*levels, law.cdf(0.4)), strict=True):
            twins.assert_close(value, expected, dtype=dtype)


def test_correlated_noise_leaves_the_quantiles_of_each_output_as_they_are():
    noise = jnp.asarray([[0.49, 0.1], [0.1, 0.49]])
    f, f_var = RNG.normal(size=(2, 3, 2))
    found = predictive_of(MultivariateGaussian(noise), f, f_var**2, dtype="float32").quantile(0.8)
    expected = stats.norm(f, np.sqrt(f_var**2 + 0.49)).ppf(0.8)
    twins.assert_close(found, expected, dtype="float32")


# --- predicted noise ------------------------------------------------------------------------------

F = np.asarray([[0.3, -1.0, 0.5, 2.0], [1.0, 0.0, -1.0, 0.0]])  # two means, two log-precisions
ROOT = 0.5 * RNG.normal(size=(2, 4, 4))
F_COV = ROOT @ ROOT.transpose(0, 2, 1)
F_VAR = np.einsum("ncc->nc", F_COV)


def mixed_normal_cdf(y, n, c, correlated):
    """Integrate the log-precision out, with the mean's law given it."""
    var, own_var, cov = F_VAR[n, c], F_VAR[n, c + 2], F_COV[n, c, c + 2] * correlated
    mean, log_precision = F[n, c], F[n, c + 2]

    def of_z(z):
        s = log_precision + np.sqrt(own_var) * z
        given = mean + cov / np.sqrt(own_var) * z
        std = np.sqrt(var - cov**2 / own_var + np.exp(-s))
        return stats.norm.cdf((y - given) / std) * stats.norm.pdf(z)

    return integrate.quad(of_z, -9, 9, epsabs=1e-12)[0]


@pytest.mark.parametrize("correlated", [True, False])
def test_predicted_noise_is_integrated_out(correlated, x64):
    f_cov = F_COV if correlated else None
    predictive = predictive_of(HeteroscedasticGaussian(), F, F_VAR, f_cov)
    found = predictive.cdf(0.2)
    for n in range(2):
        for c in range(2):
            twins.assert_close(found[n, c], mixed_normal_cdf(0.2, n, c, correlated), rtol=1e-9)
    quantiles = predictive.quantile(LEVELS)
    for q, values in zip(LEVELS, quantiles, strict=True):
        twins.assert_close(predictive.cdf(values), np.full((2, 2), q))


def test_known_noise_is_a_normal_law():
    f_var = np.zeros((2, 4))
    f_var[:, :2] = 0.5
    predictive = predictive_of(HeteroscedasticGaussian(), F, f_var, dtype="float32")
    std = np.sqrt(0.5 + np.exp(-F[:, 2:]))
    expected = stats.norm(F[:, :2], std).ppf(LEVELS[:, None, None])
    twins.assert_close(predictive.quantile(LEVELS), expected, dtype="float32")


# --- counts ---------------------------------------------------------------------------------------

LOG_RATE = np.asarray([[-2.0], [0.5], [3.0]])


def mixed_poisson_cdf(k, mean, std):
    z = np.linspace(-9, 9, 2001)
    return stats.poisson.cdf(k, np.exp(mean + std * z)) @ stats.norm.pdf(z) * (z[1] - z[0])


def test_counts_are_poisson_with_the_rate_integrated_out(x64):
    std = np.asarray([[1.5], [0.4], [0.7]])
    predictive = predictive_of(Poisson(), LOG_RATE, std**2)
    quantiles = np.asarray(predictive.quantile(LEVELS))
    for n in range(3):
        expected = [mixed_poisson_cdf(k, LOG_RATE[n, 0], std[n, 0]) for k in range(120)]
        for k in (0, 1, 7):
            twins.assert_close(predictive.cdf(k)[n, 0], expected[k], rtol=1e-8)
        by_definition = [np.argmax(np.asarray(expected) >= q) for q in LEVELS]
        np.testing.assert_array_equal(quantiles[:, n, 0], by_definition)
    low, high = predictive.interval(0.9)
    assert np.all(predictive.cdf(high) - predictive.cdf(low - 1) >= 0.9)
    np.testing.assert_array_equal(predictive.cdf(-1), np.zeros((3, 1)))
    twins.assert_close(predictive.cdf(2.5), predictive.cdf(2))


def test_a_known_rate_has_the_quantiles_of_scipy():
    predictive = predictive_of(Poisson(), LOG_RATE, np.zeros((3, 1)), dtype="float32")
    expected = stats.poisson.ppf(LEVELS[:, None, None], np.exp(LOG_RATE))
    np.testing.assert_array_equal(predictive.quantile(LEVELS), expected)


def test_a_rate_that_is_all_but_unknown_has_finite_quantiles():
    predictive = predictive_of(Poisson(), [[3.0]], [[300.0]], dtype="float32")
    assert not np.isfinite(predictive.var).any()
    median = float(predictive.quantile(0.5)[0, 0])
    assert 10 < median < 40  # near exp(3)


# --- the probability integral transform -----------------------------------------------------------


def test_transforms_of_what_was_predicted_are_uniform():
    num = 1000
    rng = np.random.default_rng(1)
    f, z = rng.normal(size=(2, num, 1)).astype(np.float32)
    f_var = np.full((num, 1), 0.3, np.float32)
    counts = rng.poisson(np.exp(f + np.sqrt(f_var) * z))
    of_counts = predictive_of(Poisson(), f, f_var)
    randomised = pit(of_counts, counts, key=jax.random.key(0))
    assert stats.kstest(np.asarray(randomised).ravel(), "uniform").pvalue > 0.01
    middle = np.asarray(pit(of_counts, counts))
    assert abs(middle.mean() - 0.5) < 4 * middle.std() / np.sqrt(num)

    assert (counts == 0).any()
    for dtype in ("uint8", "int8", "float32"):  # of which an unsigned zero less one wraps
        found = pit(of_counts, counts.astype(dtype))
        np.testing.assert_allclose(found, middle, rtol=1e-6)

    numbers = f + np.sqrt(f_var + 0.25) * z
    transforms = pit(predictive_of(Gaussian(0.5), f, f_var), numbers)
    assert stats.kstest(np.asarray(transforms).ravel(), "uniform").pvalue > 0.01


# --- programs and errors --------------------------------------------------------------------------


def test_new_values_compile_nothing():
    def both(shift):
        numbers = predictive_of(HeteroscedasticGaussian(), F + shift, F_VAR, dtype="float32")
        counts = predictive_of(Poisson(), LOG_RATE + shift, LOG_RATE**2, dtype="float32")
        return numbers.interval(0.9), counts.interval(0.9), counts.cdf(3)

    jax.block_until_ready(both(0.0))
    with twins.compilations() as names:
        jax.block_until_ready(both(0.5))
    assert names == []


def test_a_level_may_be_traced():
    predictive = predictive_of(Gaussian(0.5), F, F_VAR, dtype="float32")
    found = jax.jit(lambda p, level: p.interval(level))(predictive, 0.9)
    for end, expected in zip(found, predictive.interval(0.9), strict=True):
        twins.assert_close(end, expected, dtype="float32")


@pytest.mark.parametrize("level", [0.0, 1.0, 1.2, float("nan")])
def test_levels_out_of_range_are_refused(level):
    predictive = predictive_of(Gaussian(0.5), F, F_VAR)
    with pytest.raises(ValueError, match="expected numbers between 0 and 1"):
        predictive.interval(level)
    with pytest.raises(ValueError, match="expected numbers between 0 and 1"):
        predictive.quantile([0.5, level])


def test_targets_without_quantiles_are_refused():
    for likelihood in (Categorical(), Bernoulli()):
        with pytest.raises(TypeError, match="no order"):
            predictive_of(likelihood, F, F_VAR).interval()
        with pytest.raises(TypeError, match="no order"):
            predictive_of(likelihood, F, F_VAR).cdf(1)
    with pytest.raises(TypeError, match="FromLoss likelihood"):
        predictive_of(FromLoss(twins.log_cosh_loss), F, F_VAR).quantile(0.5)
    with pytest.raises(TypeError, match="without a likelihood"):
        Predictive(NoTargets(Outputs(jnp.zeros((2, 3)), jnp.zeros((2, 3))))).cdf(0.0)
