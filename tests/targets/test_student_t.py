"""Student-t noise on Gaussian outputs against integration over the outputs."""

import jax.numpy as jnp
import numpy as np
import pytest
import twins
from scipy import special, stats

from laplace_kit.likelihood import StudentT
from laplace_kit.targets import Outputs


def integrated(r, s, nu, var, reach=60.0):
    """Return log density and distribution function at a distance r from the mean."""
    f = np.linspace(-reach, reach, 2_000_001) * var**0.5
    log_weights = stats.norm.logpdf(f, 0, var**0.5) + np.log(f[1] - f[0])
    density = special.logsumexp(stats.t.logpdf((r - f) / s, nu) - np.log(s) + log_weights)
    return density, np.sum(stats.t.cdf((r - f) / s, nu) * np.exp(log_weights))


def targets(s, nu, var, dtype):
    return StudentT(s, nu).targets(Outputs(jnp.zeros((1, 1), dtype), jnp.full((1, 1), var, dtype)))


@pytest.mark.slow
@pytest.mark.parametrize("nu", [0.7, 1.0, 4.0, 30.0, 1000.0])
def test_density_and_distribution_function(nu, x64):
    """With noise far narrower and far wider than the outputs, and residuals far out."""
    for s, var, r in ((1, 0.5, 2), (0.01, 1, 3), (1, 1e-6, 5), (2, 0.1, 50), (0.1, 0.01, 3)):
        found = targets(float(s), nu, var, "float64")
        log_p, at_most = integrated(r, s, nu, var)
        y = jnp.full((1, 1), float(r))
        assert float(found.log_prob(y)[0, 0]) == pytest.approx(log_p, abs=1e-8)
        assert float(found.cdf(y)[0, 0]) == pytest.approx(at_most, abs=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_known_outputs_leave_the_noise_alone(dtype):
    law, y = stats.t(4.0, 0.0, 0.5), np.asarray([[0.3], [-7.0], [400.0]])
    with twins.precision(dtype):
        outputs = Outputs(jnp.zeros((3, 1), dtype), jnp.zeros((3, 1), dtype))
        found = StudentT(0.5, 4.0).targets(outputs)
        y = y.astype(dtype)
        twins.assert_close(found.log_prob(jnp.asarray(y)), law.logpdf(y), dtype=dtype)
        twins.assert_close(found.cdf(jnp.asarray(y)), law.cdf(y), dtype=dtype)
        for q in (0.01, 0.5, 0.975):
            quantile = found.quantile(jnp.asarray(q, dtype))
            np.testing.assert_allclose(quantile, law.ppf(q), rtol=1e-4, atol=1e-6)
        twins.assert_close(found.variance, np.full((3, 1), law.var()), dtype=dtype)


def test_a_variance_that_does_not_exist_is_infinite():
    found = targets(1.0, 2.0, 0.5, "float32")
    assert np.isinf(found.variance).all()
    assert np.isfinite(found.quantile(jnp.asarray([0.05, 0.95]))).all()


def test_a_scaled_distribution_has_scaled_quantiles(x64):
    found = targets(1.0, 3.0, 0.5, "float64")
    q = jnp.asarray([0.1, 0.8])
    scaled = found.scaled(jnp.asarray(2.5))
    np.testing.assert_allclose(scaled.quantile(q), 2.5 * found.quantile(q), rtol=1e-9)
