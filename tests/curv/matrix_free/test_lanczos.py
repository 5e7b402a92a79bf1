"""Leading eigenpairs against the dense decomposition, for spectra that Lanczos finds hard."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit import curv
from laplace_kit.curv.linearized import LinearizedOperator
from laplace_kit.curv.matrix_free import lanczos as module
from laplace_kit.curv.matrix_free.lanczos import leading_eigenpairs, tridiagonalize
from laplace_kit.likelihood import FromLoss
from laplace_kit.tree import replace

P, RANK = 40, 8  # the Krylov space, 2 * 8 + 10, stays below P: nothing is decomposed densely

SPECTRA = {
    "decaying": 10.0 ** -np.linspace(0, 6, P),
    "triples": np.repeat(np.linspace(3, 1, 14), 3)[:P],
    "identity": np.ones(P),
    "clusters": np.concatenate([5 + 1e-6 * np.arange(4), 2 + 1e-9 * np.arange(4), np.ones(32)]),
    "rank_five": np.where(np.arange(P) < 5, np.arange(P, 0, -1), 0.0),
    "one_twelvefold": np.where(np.arange(P) < 12, 2.0, 0.0),
    "zero": np.zeros(P),
    "indefinite": np.concatenate([4 * 0.8 ** np.arange(12), -np.linspace(0.001, 0.1, 27), [-6]]),
    "mostly_negative": np.concatenate([[3.0, 1.0], -np.linspace(1, 2, P - 2)]),
}


def linear(params, x):
    return x @ params


def weighted_square(f, y):
    return 0.5 * jnp.sum(y * f**2)


@functools.cache
def rotation() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).normal(size=(P, P)))[0]


def operator_of(spectrum, dtype="float64", *, batches: tuple[int, ...] = ()):
    """Return the curvature of linear outputs under a quadratic loss: R^T diag(spectrum) R."""
    x, y = jnp.asarray(rotation(), dtype), jnp.asarray(spectrum, dtype)[:, None]
    data = twins.batches(x, y, *batches) if batches else (x, y)
    params = jnp.zeros((P, 1), dtype)
    kind = curv.HessianOperator if spectrum.min() < 0 else curv.GGNOperator
    return kind(linear, params, data, FromLoss(weighted_square))


def check(pairs, spectrum, *, rtol=1e-9, rank=RANK):
    """Check eigenpairs against the matrix itself."""
    matrix = rotation().T @ (spectrum[:, None] * rotation())
    size = max(np.abs(spectrum).max(), 1e-30)
    values, vectors, residuals = (np.asarray(a, np.float64) for a in jax.tree.leaves(pairs)[:3])
    expected = np.sort(spectrum)[::-1][: len(values)]
    np.testing.assert_allclose(values, expected, atol=rtol * size)
    if len(values) < rank:  # whatever is left out is not positive
        assert np.sort(spectrum)[::-1][len(values)] <= rtol * size
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(values)), atol=rtol * 10)
    actual = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(residuals, actual, atol=rtol * size)
    assert min(spectrum.min(), 0) <= pairs.smallest + rtol * size
    assert pairs.smallest <= values[-1]


@pytest.mark.parametrize("name", SPECTRA)
def test_equals_the_dense_decomposition(name, x64):
    spectrum = SPECTRA[name]
    check(leading_eigenpairs(operator_of(spectrum), RANK), spectrum, rtol=1e-7)


@pytest.mark.parametrize("name", ["decaying", "triples", "rank_five", "zero", "indefinite"])
def test_over_a_stream_with_a_ragged_last_batch(name, x64):
    spectrum = SPECTRA[name]
    pairs = leading_eigenpairs(operator_of(spectrum, batches=(15, 15, 10)), RANK)
    check(pairs, spectrum, rtol=1e-7)


def test_what_has_not_converged_says_so(x64):
    """An evenly spaced spectrum is the slowest: each value is still within its residual."""
    spectrum = np.linspace(4, 1, P)
    pairs = leading_eigenpairs(operator_of(spectrum), RANK)
    check(pairs, spectrum, rtol=1e-5)
    error = np.abs(np.asarray(pairs.values)[:, None] - spectrum).min(axis=1)
    assert np.all(error <= pairs.residuals + 1e-12)
    assert np.all(pairs.values <= spectrum[:RANK] + 1e-12)  # as Ritz values are


def test_negative_curvature_is_met(x64):
    """The smallest Ritz value need not be exact, but its sign must not be missed."""
    pairs = leading_eigenpairs(operator_of(SPECTRA["indefinite"]), RANK)
    assert pairs.smallest == pytest.approx(-6, rel=2e-2)
    pairs = leading_eigenpairs(operator_of(SPECTRA["mostly_negative"]), RANK)
    assert -2 - 1e-9 <= pairs.smallest < -1.9


def test_a_key_chooses_the_start_and_not_the_answer(x64):
    spectrum = SPECTRA["decaying"]
    operator = operator_of(spectrum)
    first, second = (leading_eigenpairs(operator, RANK, key=jax.random.key(i)) for i in (0, 1))
    assert not np.array_equal(first.vectors, second.vectors)
    for pairs in (first, second):
        check(pairs, spectrum, rtol=1e-7)
    again = leading_eigenpairs(operator, RANK, key=jax.random.key(0))
    np.testing.assert_array_equal(first.vectors, again.vectors)


@pytest.mark.parametrize("rank", [20, P])
def test_large_ranks_are_decomposed_densely(rank, x64):
    spectrum = SPECTRA["indefinite"]
    pairs = leading_eigenpairs(operator_of(spectrum), rank)
    assert pairs.values.shape == (rank,)
    np.testing.assert_allclose(pairs.values, np.sort(spectrum)[::-1][:rank], atol=1e-12)
    np.testing.assert_allclose(pairs.smallest, -6)


@pytest.mark.parametrize("name", ["decaying", "triples"])
def test_single_precision(name):
    pairs = leading_eigenpairs(operator_of(SPECTRA[name], "float32"), RANK)
    assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(pairs))
    check(pairs, SPECTRA[name], rtol=2e-5)


@pytest.mark.parametrize("batches", [(), (20, 20)])
def test_half_precision_parameters_give_single_precision_pairs(batches):
    spectrum = SPECTRA["rank_five"]
    pairs = leading_eigenpairs(operator_of(spectrum, "bfloat16", batches=batches), 5)
    assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(pairs))
    np.testing.assert_allclose(pairs.values, spectrum[:5], rtol=2e-2)


def test_every_product_reads_one_linearisation(monkeypatch):
    """And new values of the same shapes compile nothing."""
    seen = []

    def spy(operator, *args):
        seen.append(operator)
        return tridiagonalize(operator, *args)

    monkeypatch.setattr(module, "tridiagonalize", spy)
    leading_eigenpairs(operator_of(SPECTRA["triples"], "float32"), RANK)
    assert len(seen) > 1
    assert isinstance(seen[0], LinearizedOperator)
    assert all(operator is seen[0] for operator in seen)
    with twins.compilations() as names:
        leading_eigenpairs(operator_of(2 * SPECTRA["triples"], "float32"), RANK)
    assert not names


def test_tridiagonal_form_of_the_deflated_matrix(x64):
    spectrum = SPECTRA["indefinite"]
    start = jnp.linspace(-1.0, 2.0, P)
    locked = jnp.asarray(rotation()[:3])
    krylov, alphas, betas = map(
        np.asarray, tridiagonalize(operator_of(spectrum), start, locked, depth=6)
    )
    np.testing.assert_allclose(krylov @ krylov.T, np.eye(6), atol=1e-13)
    np.testing.assert_allclose(krylov @ locked.T, 0, atol=1e-13)
    rest = np.eye(P) - locked.T @ locked
    image = krylov @ rest @ rotation().T @ (spectrum[:, None] * rotation()) @ rest
    matrix = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    remainder = image - matrix @ krylov
    np.testing.assert_allclose(remainder[:-1], 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(remainder[-1]), betas[-1])


def test_where_no_linearisation_fits_the_memory_limit(x64):
    operator = replace(operator_of(SPECTRA["decaying"]), memory_limit=1)
    check(leading_eigenpairs(operator, RANK), SPECTRA["decaying"], rtol=1e-7)


def test_of_a_sum_of_operators(x64):
    spectrum = SPECTRA["indefinite"]
    operator = operator_of(np.abs(spectrum)) - operator_of(np.abs(spectrum) - spectrum)
    check(leading_eigenpairs(operator, RANK), spectrum, rtol=1e-7)


@pytest.mark.parametrize("rank", [0, -1, P + 1])
def test_impossible_rank(rank):
    with pytest.raises(ValueError, match=rf"rank={rank}, expected a number from 1 to P=40.*lower"):
        leading_eigenpairs(operator_of(np.ones(P), "float32"), rank)
