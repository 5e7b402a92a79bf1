"""Distributions of outputs: expectations, moments and draws against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from laplace_kit.targets import Outputs
from laplace_kit.targets.outputs import outputs_of_draws

MEAN, VAR = np.array([[0.2, -1.0]]), np.array([[0.5, 2.0]])
COV = np.array([[[0.5, 0.7], [0.7, 2.0]]])
DRAWS = np.random.default_rng(0).normal(size=(3, 30, 2))


def test_gaussian_expectations_are_integrals(x64):
    outputs = Outputs(jnp.asarray(MEAN), jnp.asarray(VAR))
    log_normal = np.exp(MEAN + VAR / 2)
    np.testing.assert_allclose(outputs.expectation(jnp.exp), log_normal, rtol=1e-9)
    mean, var = outputs.moments(jnp.exp)
    np.testing.assert_allclose(mean, log_normal, rtol=1e-9)
    np.testing.assert_allclose(var, np.expm1(VAR) * log_normal**2, rtol=1e-6)


def test_with_draws_moments_are_those_of_the_sample(x64):
    outputs = outputs_of_draws(jnp.asarray(DRAWS), full=True)
    np.testing.assert_allclose(outputs.mean, DRAWS.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(outputs.var, DRAWS.var(axis=1, ddof=1), rtol=1e-12)
    expected = [np.cov(draws, rowvar=False) for draws in DRAWS]
    np.testing.assert_allclose(outputs.cov, expected, rtol=1e-12)
    mean, var = outputs.moments(jnp.exp)
    np.testing.assert_allclose(mean, np.exp(DRAWS).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(var, np.exp(DRAWS).var(axis=1, ddof=1), rtol=1e-12)
    assert outputs_of_draws(jnp.asarray(DRAWS), full=False).cov is None
    assert outputs.without_draws().draws is None


def test_draws_have_the_covariance_of_each_input(x64):
    outputs = Outputs(*map(jnp.asarray, (MEAN, VAR, COV)))
    num = 20_000
    drawn = np.asarray(outputs.sample(jax.random.key(0), num))[:, 0]
    error = np.sqrt(np.outer(VAR[0], VAR[0]) * 2 / num)
    assert np.all(np.abs(np.cov(drawn, rowvar=False) - COV[0]) < 5 * error)
    assert np.all(np.abs(drawn.mean(axis=0) - MEAN[0]) < 5 * np.sqrt(VAR[0] / num))


def test_scaling_keeps_the_mean(x64):
    outputs = Outputs(*map(jnp.asarray, (MEAN, VAR, COV)))
    scaled = outputs.scaled(jnp.asarray([2.0, 3.0]))
    np.testing.assert_allclose(scaled.var, VAR * [4.0, 9.0], rtol=1e-14)
    np.testing.assert_allclose(scaled.cov, COV * [[4.0, 6.0], [6.0, 9.0]], rtol=1e-14)
    assert np.array_equal(scaled.mean, MEAN)
