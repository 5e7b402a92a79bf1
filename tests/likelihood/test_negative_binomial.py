"""Overdispersed counts against SciPy's distribution, and derivatives of its logarithm."""

import jax
import jax.numpy as jnp
import numpy as np
import output_space
import pytest
from jax.scipy.special import gammaln
from scipy import stats

from laplace_kit.likelihood import NegativeBinomial, as_likelihood
from laplace_kit.likelihood.base import check_targets

F = np.asarray([[-1.0, 0.3, 2.0], [4.0, 0.0, -3.0]])
Y = np.asarray([[0, 1, 12], [90, 7, 0]])


def loss_by_definition(f, y, dispersion=0.7):
    """Write the probability with gamma functions and the mean, as textbooks do."""
    size, mean = 1 / dispersion, jnp.exp(f)
    log_p = gammaln(y + size) - gammaln(size) - gammaln(y + 1)
    return -jnp.sum(
        log_p + size * jnp.log(size / (size + mean)) + y * jnp.log(mean / (size + mean))
    )


@pytest.mark.parametrize("dispersion", [1e-3, 0.7, 20.0])
def test_loss_is_the_density_of_scipy(dispersion, x64):
    found = NegativeBinomial(dispersion).entry_losses(jnp.asarray(F), jnp.asarray(Y))
    law = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * np.exp(F)))
    np.testing.assert_allclose(found, -law.logpmf(Y), rtol=1e-9)
    np.testing.assert_allclose(law.var(), np.exp(F) + dispersion * np.exp(2 * F), rtol=1e-9)


def test_derivatives_and_the_root(x64):
    output_space.assert_derivatives(
        NegativeBinomial(0.7), jnp.asarray(F), jnp.asarray(Y), loss_by_definition
    )


def test_the_mean_of_the_curvature_is_the_fisher_information(x64):
    likelihood, f = NegativeBinomial(0.7), jnp.asarray([0.5])
    counts = np.arange(400)
    law = stats.nbinom(1 / 0.7, 1 / (1 + 0.7 * np.exp(0.5)))
    ones = jnp.ones(1)
    curvature = jax.vmap(lambda y: likelihood.hessian_mv(f, y[None], ones)[0])(counts)
    mean = np.exp(0.5)
    assert np.sum(law.pmf(counts) * curvature) == pytest.approx(mean / (1 + 0.7 * mean), rel=1e-9)


def test_samples_have_the_stated_moments(x64):
    f, num = jnp.asarray([-1.0, 0.3, 2.0]), 20_000
    likelihood = NegativeBinomial(0.5)
    y = jax.jit(jax.vmap(likelihood.sample, (0, None)))(jax.random.split(jax.random.key(0), num), f)
    assert jax.vmap(likelihood.is_valid, (None, 0))(f, y).all()
    mean = np.exp(f)
    law = stats.nbinom(2, 1 / (1 + 0.5 * mean))
    variance, kurtosis = law.var(), law.stats(moments="k")
    assert np.abs((y.mean(axis=0) - mean) / np.sqrt(variance / num)).max() < 4
    spread = variance * np.sqrt((kurtosis + 2) / num)
    assert np.abs((y.var(axis=0) - variance) / spread).max() < 4


def test_what_is_wrong_is_named():
    for dispersion in (0.0, -1.0, np.inf, np.ones(2)):
        with pytest.raises(ValueError, match=r"Found dispersion=.*lk\.Poisson\(\)"):
            NegativeBinomial(dispersion)
    likelihood = as_likelihood("negative_binomial")
    assert isinstance(likelihood, NegativeBinomial)
    with pytest.raises(ValueError, match=r"NegativeBinomial: found targets of shape \(5, 1\)"):
        check_targets(likelihood, jnp.zeros((5,)), jnp.zeros((5, 1)))
    valid = jax.vmap(likelihood.is_valid)(jnp.zeros(4), jnp.asarray([0.0, 2.0, -1.0, 0.5]))
    np.testing.assert_array_equal(valid, [True, True, False, False])
