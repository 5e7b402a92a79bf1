"""Lanczos against the projected matrix itself, and where a Krylov space ends."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from matrices import Diagonal, rotated, rotation

from laplace_kit.curv.matrix_free.host import on_host, product
from laplace_kit.curv.matrix_free.tridiagonal import lanczos, ritz_pairs

P = 40
SPECTRA = {
    "indefinite": np.concatenate([4 * 0.8 ** np.arange(12), -np.linspace(0.001, 0.1, 27), [-6]]),
    "one_twelvefold": np.where(np.arange(P) < 12, 2.0, 0.0),
    "zero": np.zeros(P),
}


@partial(jax.jit, static_argnums=2)
def run(operator, start, depth, locked=None):
    return lanczos(product(operator), start, depth, locked=locked)


@pytest.mark.parametrize("depth", [6, 19])
@pytest.mark.parametrize("name", ["indefinite", "one_twelvefold", "zero"])
def test_tridiagonal_form_of_the_deflated_matrix(name, depth, x64):
    """Past a breakdown too, where the recurrence goes on from a new direction.

    The deeper space is orthogonalised by blocks, of which the last one overlaps.
    """
    operator = rotated(SPECTRA[name])
    start = jnp.linspace(-1.0, 2.0, P)
    locked = jnp.asarray(rotation(P)[:3])
    krylov, alphas, betas = map(np.asarray, run(operator, start, depth, locked))
    np.testing.assert_allclose(krylov @ krylov.T, np.eye(depth), atol=1e-13)
    np.testing.assert_allclose(krylov @ locked.T, 0, atol=1e-13)
    rest = np.eye(P) - locked.T @ locked
    image = krylov @ rest @ np.asarray(operator.dense) @ rest
    matrix = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    remainder = image - matrix @ krylov
    np.testing.assert_allclose(remainder[:-1], 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(remainder[-1]), betas[-1], atol=1e-13)


def test_rows_of_zeros_follow_where_the_whole_space_is_spanned(x64):
    operator = rotated(np.arange(1.0, 7.0))
    krylov, alphas, betas = run(operator, jnp.ones(6), 6, jnp.eye(2, 6))
    np.testing.assert_allclose(krylov @ krylov.T, np.diag([1, 1, 1, 1, 0, 0]), atol=1e-13)
    np.testing.assert_array_equal(alphas[4:], 0)
    np.testing.assert_array_equal(betas[3:], 0)


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e8])
def test_without_deflation_zeros_follow_the_end_of_the_space(scale, x64):
    krylov, alphas, betas = run(Diagonal(scale * jnp.ones(P)), jnp.linspace(-1.0, 2.0, P), 4)
    np.testing.assert_allclose(krylov @ krylov.T, np.diag([1, 0, 0, 0]), atol=1e-14)
    np.testing.assert_allclose(alphas[0], scale, rtol=1e-14)
    np.testing.assert_array_equal(np.r_[betas, alphas[1:]], 0)
    values, vectors = ritz_pairs(alphas, betas)
    np.testing.assert_allclose(values, scale, rtol=1e-14)
    np.testing.assert_array_equal(np.sort(np.abs(vectors[0])), [0, 0, 0, 1])


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_values_of_an_exhausted_space_are_exact(scale, x64):
    """Three eigenvalues: whatever rounding adds after three steps has no weight."""
    spectrum = scale * np.repeat([1.0, 5.0, -2.0], [20, 15, 5])
    start = np.linspace(-1.0, 2.0, P)
    _, alphas, betas = run(rotated(spectrum), jnp.asarray(start), 7)
    assert betas[2] <= 1e-13 * scale < betas[:2].min()
    values, vectors = map(np.asarray, ritz_pairs(alphas, betas))
    weights = np.square(vectors[0])  # those of a Gauss quadrature
    shares = np.square(rotation(P) @ start / np.linalg.norm(start))
    for value in (1.0, 5.0, -2.0):
        near = np.abs(values - scale * value) <= 1e-10 * scale
        expected = shares[spectrum == scale * value].sum()
        np.testing.assert_allclose(weights[near].sum(), expected, atol=1e-12)
    assert spectrum.min() <= values.min() + 1e-10 * scale
    assert values.max() <= spectrum.max() + 1e-10 * scale


def test_many_starts_and_streams_are_no_different(x64):
    """One pass for all starts; over a stream only the products loop on the host."""
    starts = jnp.asarray(np.random.default_rng(0).normal(size=(3, P)))

    @jax.jit
    def batched(operator, starts):
        return jax.vmap(lambda start: lanczos(product(operator), start, 9))(starts)

    for in_memory in (True, False):
        operator = rotated(SPECTRA["indefinite"], in_memory=in_memory)
        found = on_host(batched, operator, starts)
        for number, start in enumerate(starts):
            expected = run(rotated(SPECTRA["indefinite"]), start, 9)
            for ours, wanted in zip(found, expected, strict=True):
                twins.assert_close(ours[number], wanted, rtol=1e-9)
        others = rotated(2 * SPECTRA["indefinite"], in_memory=in_memory), 1.5 * starts
        with twins.compilations() as programs:
            on_host(batched, *others)
        assert not programs


def test_vectors_that_are_not_finite_give_no_numbers(x64):
    krylov, alphas, _ = run(rotated(SPECTRA["zero"]), jnp.full(P, jnp.nan), 4)
    assert np.isnan(alphas[0])
    assert np.isnan(krylov[0]).all()
