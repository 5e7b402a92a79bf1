"""Logarithms of probabilities at and below zero, against NumPy and SciPy."""

import jax.numpy as jnp
import numpy as np
import scipy.stats
import twins

from laplace_kit.targets.logarithms import entropy, finite_log


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
