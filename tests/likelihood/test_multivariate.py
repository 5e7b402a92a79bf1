"""Noise that is correlated between outputs: against SciPy's density and matrix algebra."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import output_space
import pytest
import scipy.stats
import twins

from laplace_kit import curv
from laplace_kit.likelihood import Gaussian, MultivariateGaussian
from laplace_kit.likelihood.base import check_targets

RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(4, 4))
COVARIANCE = ROOT @ ROOT.T + 0.1 * np.eye(4)
F, Y = RNG.normal(size=(2, 2)), RNG.normal(size=(2, 2))


def loss(f, y):
    density = jax.scipy.stats.multivariate_normal.logpdf
    return -density(jnp.ravel(y), jnp.ravel(f), np.asarray(COVARIANCE.tolist(), f.dtype))


def test_log_probability_is_that_of_scipy(x64):
    found = MultivariateGaussian(jnp.asarray(COVARIANCE)).negative_log_prob(
        jnp.asarray(F), jnp.asarray(Y)
    )
    expected = -scipy.stats.multivariate_normal.logpdf(Y.ravel(), F.ravel(), COVARIANCE)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_curvature_in_the_outputs(dtype):
    with twins.precision(dtype):
        f, y = jnp.asarray(F, dtype), jnp.asarray(Y, dtype)
        likelihood = MultivariateGaussian(jnp.asarray(COVARIANCE, dtype))
        output_space.assert_derivatives(likelihood, f, y, loss, dtype=dtype)
        product = output_space.matrix(likelihood, "hessian_mv", f, y)
        twins.assert_close(product, np.linalg.inv(COVARIANCE), dtype=dtype)


def test_without_correlations_it_is_one_noise_for_each_output(x64):
    f, y, std = jnp.asarray(F), jnp.asarray(Y), np.asarray([[0.3, 1.0], [2.0, 0.7]])
    full = output_space.forms(MultivariateGaussian(np.diag(std.ravel() ** 2)), f, y)
    each = output_space.forms(Gaussian(std), f, y)
    for found, expected in zip(full, each, strict=True):
        twins.assert_close(found, expected)


def test_samples_have_the_covariance(x64):
    likelihood, f, num = MultivariateGaussian(jnp.asarray(COVARIANCE)), jnp.asarray(F), 20_000
    keys = jax.random.split(jax.random.key(0), num)
    y = np.asarray(jax.jit(jax.vmap(likelihood.sample, (0, None)))(keys, f)).reshape(num, 4)
    variance = np.diag(COVARIANCE)
    assert np.abs((y.mean(axis=0) - F.ravel()) / np.sqrt(variance / num)).max() < 4
    wishart = np.sqrt((COVARIANCE**2 + np.outer(variance, variance)) / num)
    assert np.abs((np.cov(y.T) - COVARIANCE) / wishart).max() < 4
    output_space.assert_scores(likelihood, f, f)


def test_low_precision_outputs_are_whitened_in_single_precision():
    """There is no Cholesky factorisation in bfloat16."""
    likelihood = MultivariateGaussian(jnp.asarray(COVARIANCE, jnp.bfloat16))
    f, y = jnp.asarray(F, jnp.bfloat16), jnp.asarray(Y, jnp.bfloat16)
    assert likelihood.negative_log_prob(f, y).dtype == jnp.bfloat16
    root = likelihood.hessian_sqrt_mv(f, y, f)
    assert root.dtype == jnp.bfloat16
    expected = np.linalg.inv(np.linalg.cholesky(COVARIANCE)).T @ F.ravel()
    np.testing.assert_allclose(np.asarray(root, float).ravel(), expected, rtol=0.2, atol=0.1)


def test_covariance_is_a_leaf_to_differentiate(x64):
    f, y = jnp.asarray(F), jnp.asarray(Y)

    def of_covariance(covariance):
        return MultivariateGaussian(covariance).negative_log_prob(f, y)

    found = jax.jit(jax.grad(of_covariance))(jnp.asarray(COVARIANCE))
    precision, residual = np.linalg.inv(COVARIANCE), (Y - F).ravel()
    white = precision @ residual
    twins.assert_close((found + found.T) / 2, (precision - np.outer(white, white)) / 2)


def test_as_the_likelihood_of_a_model(x64):
    """The GGN of a linear model is X^T (Sigma^-1) X, in every form."""
    rng = np.random.default_rng(1)
    x, y = jnp.asarray(rng.normal(size=(6, 3))), jnp.asarray(rng.normal(size=(6, 2)))
    cov = np.asarray([[0.5, 0.3], [0.3, 0.9]])
    params = jnp.asarray(rng.normal(size=(3, 2)))
    args = (lambda p, x: x @ p, params, (x, y), MultivariateGaussian(jnp.asarray(cov)))
    twins.assert_is(
        curv.GGNOperator(*args), np.kron(np.asarray(x.T @ x), np.linalg.inv(cov)), "float64"
    )


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (np.ones((2, 3)), r"shape \(2, 3\), expected \(C, C\)"),
        (np.ones(3), r"shape \(3,\), expected \(C, C\) .*lk\.Gaussian\(noise_std\)"),
        (np.asarray([[1.0, np.nan], [np.nan, 1.0]]), "expected finite covariances"),
        (np.diag([1.0, -1.0]), "positive variances; check how they were estimated"),
        (np.asarray([[1.0, 0.5], [0.4, 1.0]]), r"not symmetric: 0\.5 at \(0, 1\), 0\.4 at \(1, 0"),
        (
            np.asarray([[1.0, 2.0], [2.0, 1.0]]),
            r"not positive definite: the smallest .* correlations is -1",
        ),
        (np.ones((2, 2)), r"not positive definite.*add a multiple of the identity"),
    ],
)
def test_what_is_no_covariance(covariance, message):
    with exact.as_users_call(), pytest.raises(ValueError, match=message):
        MultivariateGaussian(covariance)


def test_outputs_of_different_units():
    """Positive definite or not does not depend on them."""
    std = np.asarray([1e-6, 1.0, 1e6])
    correlation = np.asarray([[1.0, 0.9, 0.1], [0.9, 1.0, 0.4], [0.1, 0.4, 1.0]])
    likelihood = MultivariateGaussian((std[:, None] * correlation * std).astype(np.float32))
    y = jnp.asarray(std, jnp.float32)
    whole = likelihood.negative_log_prob(jnp.zeros(3), y) - np.log(std).sum()
    expected = -scipy.stats.multivariate_normal.logpdf(np.ones(3), np.zeros(3), correlation)
    np.testing.assert_allclose(whole, expected, rtol=1e-4)


def test_sizes_must_go_together():
    f = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    likelihood = MultivariateGaussian(np.eye(2))
    message = r"covariance of shape \(2, 2\) for outputs \(5, 3\), expected \(3, 3\)"
    with pytest.raises(ValueError, match=message):
        check_targets(likelihood, f, f)
    with pytest.raises(ValueError, match="expected the same shape"):
        check_targets(likelihood, f, jax.ShapeDtypeStruct((5, 2), jnp.float32))
    four = jax.ShapeDtypeStruct((5, 2, 2), jnp.float32)
    check_targets(MultivariateGaussian(np.eye(4)), four, four)


def test_targets_must_be_finite():
    likelihood, f = MultivariateGaussian(np.eye(2)), jnp.zeros(2)
    assert likelihood.is_valid(f, f)
    assert not likelihood.is_valid(f, f.at[0].set(jnp.nan))
    assert likelihood.support == "finite numbers"
