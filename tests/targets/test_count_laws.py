"""Overdispersed counts whose mean is uncertain, against sums over a fine grid of the mean."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from laplace_kit.likelihood import NegativeBinomial
from laplace_kit.targets import Outputs

MEAN, VAR = np.asarray([[0.3, 5.0, 8.0]]), np.asarray([[0.5, 0.25, 1.0]])
COUNTS = np.asarray([[3, 148, 200]])


def targets(dispersion):
    return NegativeBinomial(dispersion).targets(Outputs(jnp.asarray(MEAN), jnp.asarray(VAR)))


def law(dispersion, f):
    return stats.nbinom(1 / dispersion, special.expit(-f - np.log(dispersion)))


@pytest.mark.parametrize("dispersion", [1e-3, 0.3, 5.0])
def test_the_mean_is_integrated_out(dispersion, x64):
    found = targets(dispersion)
    log_p, at_most = found.log_prob(jnp.asarray(COUNTS)), found.cdf(jnp.asarray(COUNTS))
    for c in range(3):
        mean, std, y = MEAN[0, c], VAR[0, c] ** 0.5, COUNTS[0, c]
        f = np.linspace(mean - 9 * std, mean + 9 * std, 20_001)
        log_weights = stats.norm.logpdf(f, mean, std) + np.log(f[1] - f[0])
        expected = special.logsumexp(law(dispersion, f).logpmf(y) + log_weights)
        assert float(log_p[0, c]) == pytest.approx(expected, abs=1e-8)
        distribution = np.sum(law(dispersion, f).cdf(y) * np.exp(log_weights))
        # As a function of the mean the last is steeper than the nodes are close.
        assert float(at_most[0, c]) == pytest.approx(distribution, abs=1e-8 if c < 2 else 1e-6)


def test_parts_of_the_variance_are_those_of_the_log_normal_mean(x64):
    found, mean = targets(0.3), np.exp(MEAN + VAR / 2)
    np.testing.assert_allclose(found.mean, mean)
    np.testing.assert_allclose(found.epistemic_var, mean**2 * np.expm1(VAR))
    square = np.exp(2 * MEAN + 2 * VAR)
    np.testing.assert_allclose(found.aleatoric_var, mean + 0.3 * square)


def test_quantiles_are_the_smallest_counts_that_reach_the_level(x64):
    found = targets(0.3)
    counts = np.asarray(found.quantile(jnp.asarray([0.05, 0.5, 0.95])))
    for q, values in zip((0.05, 0.5, 0.95), counts, strict=True):
        assert np.all(found.cdf(jnp.asarray(values)) >= q)
        assert np.all((np.asarray(found.cdf(jnp.asarray(values - 1))) < q) | (values == 0))
    np.testing.assert_array_equal(found.cdf(jnp.full((1, 3), -1.0)), 0)


def test_little_dispersion_is_poisson():
    outputs = Outputs(jnp.asarray([[1.0, 3.0]]), jnp.zeros((1, 2)))
    found = NegativeBinomial(1e-6).targets(outputs).log_prob(jnp.asarray([[2, 25]]))
    np.testing.assert_allclose(found, stats.poisson.logpmf([[2, 25]], np.exp([[1, 3]])), rtol=1e-4)
