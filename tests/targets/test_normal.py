"""Normal targets against SciPy: Gaussian outputs plus known noise."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from laplace_kit.targets import NormalTargets, Outputs

MEAN, VAR = np.array([[0.0, 1.0], [-2.0, 3.0]]), np.array([[0.5, 2.0], [1.0, 0.1]])
NOISE = np.array([[0.3, 0.3], [1.0, 2.0]])
Y = np.array([[0.2, 4.0], [-2.0, 2.5]])
COV = np.array([[[0.5, 0.3], [0.3, 2.0]], [[1.0, -0.2], [-0.2, 0.1]]])


@pytest.fixture
def found(x64):
    outputs = Outputs(*map(jnp.asarray, (MEAN, VAR, COV)))
    return NormalTargets(outputs, jnp.asarray(NOISE))


def test_is_the_normal_distribution_of_both_variances(found):
    law = stats.norm(MEAN, np.sqrt(VAR + NOISE))
    np.testing.assert_allclose(found.variance, VAR + NOISE, rtol=1e-14)
    np.testing.assert_allclose(found.log_prob(jnp.asarray(Y)), law.logpdf(Y), rtol=1e-12)
    np.testing.assert_allclose(found.cdf(jnp.asarray(Y)), law.cdf(Y), rtol=1e-12)
    q = np.array([0.1, 0.5, 0.99])
    np.testing.assert_allclose(
        found.quantile(jnp.asarray(q)), law.ppf(q[:, None, None]), rtol=1e-12
    )


def test_noise_stands_on_the_diagonal_of_the_covariance(found):
    np.testing.assert_allclose(found.covariance, COV + [np.diag(row) for row in NOISE], rtol=1e-14)


def test_scaling_multiplies_all_deviations(found):
    factor = np.array([2.0, 0.5])
    scaled = found.scaled(jnp.asarray(factor))
    np.testing.assert_allclose(scaled.variance, (VAR + NOISE) * factor**2, rtol=1e-14)
    expected = found.covariance * factor[:, None] * factor
    np.testing.assert_allclose(scaled.covariance, expected, rtol=1e-14)
    assert np.array_equal(scaled.mean, MEAN)
