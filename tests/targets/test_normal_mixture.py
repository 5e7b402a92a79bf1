"""Normal targets of predicted noise against integrals by SciPy."""

import jax.numpy as jnp
import numpy as np
from scipy import integrate, stats

from laplace_kit.targets import Outputs
from laplace_kit.targets.normal_mixture import normal_mixture

MEAN, LOG_PRECISION = 0.4, -0.3
COV = np.array([[0.5, 0.2], [0.2, 0.3]])  # of the mean and the log-precision
Y = np.array([-1.0, 0.3, 2.5])


def targets():
    f = jnp.asarray([[MEAN, LOG_PRECISION]])
    return normal_mixture(Outputs(f, jnp.asarray(np.diag(COV)[None]), jnp.asarray(COV[None])))


def expectation(fn):
    """Integrate over the log-precision, given which the mean is normal."""
    spread = np.sqrt(COV[1, 1])

    def integrand(level):
        mean = MEAN + COV[0, 1] / COV[1, 1] * (level - LOG_PRECISION)
        var = COV[0, 0] - COV[0, 1] ** 2 / COV[1, 1] + np.exp(-level)
        return fn(mean, np.sqrt(var)) * stats.norm(LOG_PRECISION, spread).pdf(level)

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
