"""Factors of wide sides from sketches: bounds, exact cases, groups, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit.curv import low_rank_factor
from laplace_kit.curv.low_rank_factor import Sketch, factor_of

RNG = np.random.default_rng(0)


def factor(matrix, rank, dtype="float64"):
    matrix = jnp.asarray(matrix, dtype)
    test = low_rank_factor.test_vectors(matrix.shape[1], rank, matrix.dtype)
    sketch = Sketch(matrix @ test, jnp.diagonal(matrix, axis1=1, axis2=2))
    return jax.jit(factor_of, static_argnums=2)(sketch, test, rank)


def psd(width, rank, groups=1, decay=1.0):
    roots = RNG.normal(size=(groups, width, rank)) * decay ** np.arange(rank)
    return roots @ np.swapaxes(roots, 1, 2)


def test_vectors_are_orthonormal_and_the_same_in_every_call(x64):
    for rank, size in ((3, 6), (8, 12), (20, 12)):
        found = low_rank_factor.test_vectors(12, rank, jnp.dtype("float64"))
        assert found.shape == (12, size)
        twins.assert_close(found.T @ found, np.eye(size))
        again = low_rank_factor.test_vectors(12, rank, jnp.dtype("float64"))
        np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize(("rank", "of"), [(4, 4), (4, 2), (12, 30)])
def test_a_factor_of_that_rank_is_exact(rank, of, x64):
    matrix = psd(12, of, groups=2)
    found = factor(matrix, rank)
    np.testing.assert_allclose(found.to_dense(), matrix, atol=1e-8 * np.abs(matrix).max())
    values = np.linalg.eigvalsh(matrix)[:, ::-1][:, : min(rank, 12)]
    np.testing.assert_allclose(found.values, values, atol=1e-8 * values.max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_otherwise_it_is_below_and_keeps_the_diagonal(dtype, x64):
    matrix = psd(40, 40, groups=3, decay=0.7)
    found = factor(matrix, 5, dtype)
    assert found.vectors.dtype == dtype
    dense = np.asarray(found.to_dense(), float)
    rounding = 1e-5 if dtype == "float32" else 1e-12
    for a, b, rest, best in zip(
        matrix, dense, np.asarray(found.rest, float), np.linalg.eigvalsh(matrix), strict=True
    ):
        np.testing.assert_allclose(np.diag(b), np.diag(a), rtol=10 * rounding)
        assert rest.min() >= 0
        error = a - (b - np.diag(rest))
        assert np.linalg.eigvalsh(error).min() > -rounding * np.abs(a).max()
        # The expected error with 2 R vectors is 1 + R / (R - 1) of the best one's.
        assert np.trace(error) < 2.25 * best[:-5].sum()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_factor_of_nothing_is_nothing(dtype, x64):
    """As that of adapters whose second matrix is zero at the start."""
    found = factor(np.zeros((1, 9, 9)), 2, dtype)
    assert not found.values.any()
    assert not found.rest.any()
    twins.assert_close(found.vectors[0].T @ found.vectors[0], np.eye(2), rtol=1e-5)
