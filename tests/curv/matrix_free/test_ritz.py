"""Eigenpairs of a subspace: exact where it is invariant, the best of it otherwise."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import twins
from matrices import Matrix

from laplace_kit.curv.matrix_free.ritz import check_rank, dense_eigenpairs, rayleigh_ritz, take

VALUES = np.array([5.0, 3.0, 0.5, 0.0, -2.0])


@pytest.fixture
def matrix(x64):
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    return Matrix(jnp.asarray(vectors * VALUES @ vectors.T)), vectors


def test_an_invariant_subspace_gives_eigenpairs(matrix):
    operator, vectors = matrix
    rows = jnp.asarray(np.array([[1.0, 2.0], [3.0, -1.0]]) @ vectors[:, [1, 4]].T)
    pairs = rayleigh_ritz(operator, rows, 1e-12, 7)
    twins.assert_close(pairs.values, VALUES[[1, 4]])
    twins.assert_close(np.abs(pairs.vectors @ vectors[:, [1, 4]]), np.eye(2))
    assert pairs.converged.all()
    assert pairs.num_products == 9


def test_any_subspace_gives_the_eigenvalues_of_the_projection_and_honest_residuals(matrix):
    operator, _ = matrix
    rows = np.random.default_rng(1).normal(size=(3, 5))
    pairs = rayleigh_ritz(operator, jnp.asarray(rows), 1e-12, 0)
    projected = scipy.linalg.eigh(rows @ operator.dense @ rows.T, rows @ rows.T, eigvals_only=True)
    twins.assert_close(pairs.values, projected[::-1])
    twins.assert_close(pairs.vectors @ pairs.vectors.T, np.eye(3))
    gaps = pairs.vectors @ operator.dense - pairs.values[:, None] * pairs.vectors
    twins.assert_close(pairs.residuals, np.linalg.norm(gaps, axis=1))
    assert not pairs.converged.any()
    nearest = np.abs(np.asarray(pairs.values)[:, None] - VALUES).min(axis=1)
    assert (nearest <= np.asarray(pairs.residuals)).all()


def test_the_dense_matrix_gives_all_of_them(matrix):
    operator, vectors = matrix
    pairs = dense_eigenpairs(operator)
    twins.assert_close(pairs.values, VALUES)
    twins.assert_close(np.abs(pairs.vectors @ vectors), np.eye(5))
    assert pairs.converged.all()
    ends = take(pairs, np.array([0, 4]))
    twins.assert_close(ends.values, VALUES[[0, 4]])
    assert ends.vectors.shape == (2, 5)


@pytest.mark.parametrize("rank", [0, 6])
def test_an_impossible_rank_is_refused(rank):
    with pytest.raises(ValueError, match=rf"rank={rank}, expected a number from 1 to P=5"):
        check_rank(rank, 5)
    assert check_rank(5, 5) == 5
