"""Multivariate normal targets against SciPy: the outputs of an example together."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import laplace_kit as lk
from laplace_kit.targets import Outputs

MEAN = np.array([[0.0, 1.0], [-2.0, 3.0]])
COV = np.array([[[0.5, 0.3], [0.3, 2.0]], [[1.0, -0.2], [-0.2, 0.1]]])
NOISE = np.array([[1.0, 0.6], [0.6, 0.5]])
Y = np.array([[0.2, 4.0], [-2.0, 2.5]])


def targets(cov):
    var = jnp.asarray(np.einsum("ncc->nc", COV))
    outputs = Outputs(jnp.asarray(MEAN), var, None if cov is None else jnp.asarray(cov))
    return lk.MultivariateGaussian(jnp.asarray(NOISE)).targets(outputs)


@pytest.mark.parametrize("is_full", [True, False])
def test_density_is_that_of_all_outputs_together(is_full, x64):
    found = targets(COV if is_full else None)
    covs = COV if is_full else [np.diag(np.diag(c)) for c in COV]
    expected = [
        stats.multivariate_normal(m, c + NOISE).logpdf(y)
        for m, c, y in zip(MEAN, covs, Y, strict=True)
    ]
    np.testing.assert_allclose(found.log_prob(jnp.asarray(Y)), expected, rtol=1e-12)


def test_whitened_residuals_have_the_mahalanobis_length(x64):
    white = np.asarray(targets(COV).whitened(jnp.asarray(Y)))
    for w, c, r in zip(white, COV, Y - MEAN, strict=True):
        np.testing.assert_allclose(w @ w, r @ np.linalg.solve(c + NOISE, r), rtol=1e-12)


def test_quantiles_are_those_of_each_output_by_itself(x64):
    found = targets(COV)
    std = np.sqrt(np.einsum("ncc->nc", COV) + np.diag(NOISE))
    expected = stats.norm(MEAN, std).ppf(0.8)
    np.testing.assert_allclose(found.quantile(jnp.asarray(0.8)), expected, rtol=1e-12)
    np.testing.assert_allclose(found.cdf(jnp.asarray(expected)), 0.8, rtol=1e-12)
