"""Normal targets of predicted noise against integrals by SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from laplace_kit.targets import Outputs
from laplace_kit.targets.normal_mixture import normal_mixture

MEAN, LOG_PRECISION = 0.4, -0.3
COV = np.array([[0.5, 0.2], [0.2, 0.3]])  # of the mean and the log-precision
Y = np.array([-1.0, 0.3, 2.5])


def targets(cov=COV, dtype=float):
    f = jnp.asarray([[MEAN, LOG_PRECISION]], dtype)
    var, cov = jnp.asarray(np.diag(cov)[None], dtype), jnp.asarray(cov[None], dtype)
    return normal_mixture(Outputs(f, var, cov))


def given(level, cov):
    """Return mean and standard deviation of the target, given the log-precision."""
    mean = MEAN + cov[0, 1] / cov[1, 1] * (level - LOG_PRECISION)
    return mean, np.sqrt(cov[0, 0] - cov[0, 1] ** 2 / cov[1, 1] + np.exp(-level))


def expectation(fn):
    """Integrate over the log-precision, given which the mean is normal."""
    spread = np.sqrt(COV[1, 1])

    def integrand(level):
        return fn(*given(level, COV)) * stats.norm(LOG_PRECISION, spread).pdf(level)

    edges = LOG_PRECISION - 10 * spread, LOG_PRECISION + 10 * spread
    return integrate.quad(integrand, *edges, epsabs=1e-12)[0]


def test_distribution_function_integrates_the_noise_out(x64):
    expected = [expectation(lambda m, s, y=y: stats.norm(m, s).cdf(y)) for y in Y]
    found = targets()
    np.testing.assert_allclose(
        found.cdf(jnp.asarray(Y)[:, None, None])[:, 0, 0], expected, rtol=1e-9
    )
    quantiles = found.quantile(jnp.asarray(expected))
    np.testing.assert_allclose(quantiles[:, 0, 0], Y, rtol=1e-6)


COVARIANCES = {
    "correlated": COV,
    "independent": np.diag([0.5, 0.3]),
    "certain mean": np.diag([1e-8, 0.3]),
    "certain noise": np.diag([0.5, 1e-6]),
    "wide": np.array([[0.01, 0.3], [0.3, 16.0]]),
    "two modes": np.diag([1e-4, 4.0]),
}


def log_density(y, cov):
    """Sum the integrand, in units of its maximum, on a grid far denser than it varies."""
    spread = np.sqrt(cov[1, 1])
    level = LOG_PRECISION + spread * np.linspace(-60, 20, 200_001)
    logs = stats.norm(*given(level, cov)).logpdf(y) + stats.norm(LOG_PRECISION, spread).logpdf(
        level
    )
    return special.logsumexp(logs) + np.log(level[1] - level[0])


@pytest.mark.parametrize("name", COVARIANCES)
def test_density_integrates_the_noise_out(name, x64):
    y = np.array([-1.0, 0.3, 0.4, 2.5, 40.0, -300.0])  # and outliers, beyond all nodes of a normal
    cov = COVARIANCES[name]
    expected = [log_density(each, cov) for each in y]
    found = targets(cov).log_prob(jnp.asarray(y)[:, None])
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-7, atol=1e-7)
    single = targets(cov, np.float32).log_prob(jnp.asarray(y, np.float32)[:, None])
    np.testing.assert_allclose(single[:, 0], expected, rtol=2e-5, atol=2e-5)


def test_density_is_the_slope_of_the_distribution_function(x64):
    found, step = targets(), 1e-5
    low, high = (found.cdf(jnp.asarray(Y + shift)[:, None, None]) for shift in (-step, step))
    slope = (high - low)[:, 0, 0] / (2 * step)
    np.testing.assert_allclose(jnp.exp(found.log_prob(jnp.asarray(Y)[:, None]))[:, 0], slope, 1e-8)


def test_without_uncertain_noise_the_density_is_normal(x64):
    f = jnp.asarray([[MEAN, LOG_PRECISION]])
    found = normal_mixture(Outputs(f, jnp.asarray([[0.5, 0.0]]))).log_prob(jnp.asarray(Y)[:, None])
    expected = stats.norm(MEAN, np.sqrt(0.5 + np.exp(-LOG_PRECISION))).logpdf(Y)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-12)


def test_moments_are_those_of_the_mixture(x64):
    found = targets()
    mean = expectation(lambda m, s: m)
    square = expectation(lambda m, s: m**2 + s**2)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(found.variance, square - mean**2, rtol=1e-9)


def test_draws_average_the_noise(x64):
    draws = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50, 4)))
    moments = draws.mean(axis=1), draws.var(axis=1, ddof=1)
    found = normal_mixture(Outputs(*moments, draws=draws))
    expected = np.exp(-np.asarray(draws)[..., 2:]).mean(axis=1)
    np.testing.assert_allclose(found.aleatoric_var, expected, rtol=1e-12)
