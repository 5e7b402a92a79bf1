"""Counts: moments of what is drawn, and outputs with extra axes."""

import jax
import jax.numpy as jnp
import numpy as np
import output_space
import twins

from laplace_kit.likelihood import Poisson


def test_samples_are_counts_of_the_stated_rate(x64):
    f, num = jnp.asarray([-1.0, 0.3, 2.0]), 20_000
    y = jax.jit(jax.vmap(Poisson().sample, (0, None)))(jax.random.split(jax.random.key(0), num), f)
    assert jax.vmap(Poisson().is_valid, (None, 0))(f, y).all()
    rate = np.exp(f)
    assert np.abs((y.mean(axis=0) - rate) / np.sqrt(rate / num)).max() < 4
    spread = np.sqrt((rate + 2 * rate**2) / num)  # the fourth central moment is r + 3 r^2
    assert np.abs((y.var(axis=0) - rate) / spread).max() < 4


def test_counts_with_extra_axes(x64):
    rng = np.random.default_rng(0)
    f = jnp.asarray(rng.normal(size=(2, 3, 2)))
    y = jnp.asarray(rng.poisson(2.0, (2, 3, 2)))
    output_space.assert_derivatives(Poisson(), f, y, twins.poisson_loss)
