"""Expectations under Gaussian outputs against integration, and draws against their moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from scipy import integrate, special, stats

from laplace_kit.targets.expectation import drawn_expectation, normal_expectation, positions

RNG = np.random.default_rng(0)
MEAN, STD = np.asarray([-3.0, 0.4, 2.0, 9.0]), np.asarray([0.0, 0.7, 3.0, 5.0])


def squashed(f):
    return {"sigmoid": jax.nn.sigmoid(f), "slope": jax.nn.sigmoid(f) * jax.nn.sigmoid(-f)}


def integral(fn, mean, std):
    if std == 0:
        return fn(mean)
    middle = -mean / std  # where the functions change
    return integrate.quad(
        lambda z: fn(mean + std * z) * stats.norm.pdf(z), -9, 9, points=[middle], epsabs=1e-13
    )[0]


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-9), ("float32", 1e-5)])
def test_quadrature_is_the_integral_however_steep_the_function(dtype, rtol):
    with twins.precision(dtype):
        found = jax.jit(normal_expectation, static_argnums=0)(
            squashed, jnp.asarray(MEAN, dtype), jnp.asarray(STD, dtype)
        )
        pairs = list(zip(MEAN, STD, strict=True))
        expected = [integral(special.expit, *pair) for pair in pairs]
        twins.assert_close(found["sigmoid"], expected, rtol=rtol)
        expected = [integral(lambda f: special.expit(f) * special.expit(-f), *p) for p in pairs]
        twins.assert_close(found["slope"], expected, rtol=rtol)
        assert found["slope"].dtype == dtype


def moments(f):
    return {"mean": f, "second": f[:, :, None] * f[:, None, :]}


def test_draws_have_the_covariance_singular_or_not(x64):
    mean, root = RNG.normal(size=(2, 3)), RNG.normal(size=(2, 3, 2))
    covariance = root @ root.transpose(0, 2, 1)  # of rank two
    average = jax.jit(drawn_expectation, static_argnums=(0, 4))
    num = 4000
    found = average(moments, *map(jnp.asarray, (mean, covariance)), jax.random.key(0), num)
    error = np.sqrt(np.einsum("ncc->nc", covariance) / num)
    assert np.all(np.abs(found["mean"] - mean) < 4 * error)
    second = covariance + mean[:, :, None] * mean[:, None, :]
    scale = np.abs(second).max()
    assert np.all(np.abs(found["second"] - second) < 4 * 2 * scale / np.sqrt(num))
    # Variances are a diagonal covariance, draw by draw.
    variances = jnp.asarray(np.diagonal(covariance, axis1=1, axis2=2))
    alone = average(moments, jnp.asarray(mean), variances, jax.random.key(0), num)
    assert np.all(np.abs(alone["mean"] - mean) < 4 * error)
    independent = np.stack([np.diag(v) for v in variances])
    difference = alone["second"] - mean[:, :, None] * mean[:, None, :] - independent
    assert np.all(np.abs(difference) < 4 * 2 * scale / np.sqrt(num))


def test_positions_keep_the_covariance_of_their_own_outputs(x64):
    f, f_cov = RNG.normal(size=(2, 4, 3)), RNG.normal(size=(2, 12, 12))
    rows, blocks = positions(jnp.asarray(f), jnp.ones((2, 4, 3)), jnp.asarray(f_cov))
    twins.assert_close(rows, f.reshape(8, 3))
    for n in range(2):
        for t in range(4):
            own = slice(3 * t, 3 * t + 3)
            twins.assert_close(blocks[4 * n + t], f_cov[n, own, own])
    rows, variances = positions(jnp.asarray(f), jnp.asarray(f**2), None)
    twins.assert_close(variances, (f**2).reshape(8, 3))
