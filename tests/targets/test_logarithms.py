"""Logarithms of probabilities at and below zero, against NumPy and SciPy."""

import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
import twins

from laplace_kit.targets.logarithms import entropy, finite_log, log_gamma_ratio


def test_logarithms_are_finite_at_zero(x64):
    probs = jnp.asarray([0.0, 1e-300, 0.25, 1.0])
    tiny = np.finfo(np.float64).tiny
    twins.assert_close(finite_log(probs), np.log([tiny, 1e-300, 0.25, 1.0]))
    assert np.isfinite(finite_log(jnp.zeros(1, jnp.bfloat16))).all()


def test_entropies_of_distributions(x64):
    probs = np.random.default_rng(0).dirichlet(np.ones(4), size=(3, 2))
    probs[0, 0] = [1, 0, 0, 0]
    twins.assert_close(entropy(jnp.asarray(probs)), scipy.stats.entropy(probs, axis=-1))


def test_rounding_below_zero_is_zero(x64):
    twins.assert_close(entropy(jnp.asarray([1.0, -1e-17])), 0.0)


def test_ratios_of_gamma_functions(x64):
    x, d = np.meshgrid([1e-3, 0.7, 19.9, 20.1, 300.0], [0.0, 0.5, 7.0, 4e3])
    expected = scipy.special.gammaln(x + d) - scipy.special.gammaln(x)
    np.testing.assert_allclose(
        log_gamma_ratio(jnp.asarray(x), jnp.asarray(d)), expected, rtol=1e-11, atol=1e-11
    )
    # log(x (x + 1) (x + 2)), whose difference of logarithms has lost six digits.
    found = log_gamma_ratio(jnp.asarray(1e8, jnp.float32), jnp.asarray(3.0, jnp.float32))
    np.testing.assert_allclose(found, 3 * np.log(1e8), rtol=1e-6)
