"""The eigenbasis of Kronecker factors against NumPy's, for every kind of factor."""

import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit.curv.eigenbasis import eigenbasis, from_basis, to_basis

G, NUM_IN, NUM_OUT = 2, 3, 4
RNG = np.random.default_rng(0)
ROOTS = {n: RNG.normal(size=(G, n, n)) for n in (NUM_IN, NUM_OUT)}


def factor(n: int) -> np.ndarray:
    return ROOTS[n] @ ROOTS[n].transpose(0, 2, 1)


def test_eigenvalues_are_those_of_numpy_and_never_negative(x64):
    singular = factor(NUM_IN)
    singular[1] = np.outer([1.0, 2, 3], [1.0, 2, 3])
    values, vectors = eigenbasis(jnp.asarray(singular))
    twins.assert_close(values, np.maximum(np.linalg.eigvalsh(singular), 0))
    assert values.min() >= 0
    rebuilt = np.einsum("gij,gj,gkj->gik", vectors, values, vectors)
    twins.assert_close(rebuilt, singular)


def test_what_is_diagonal_has_no_vectors(x64):
    diagonal = np.abs(ROOTS[NUM_IN][:, 0])
    for given, expected in ((diagonal, diagonal), (diagonal[:, :1, None], diagonal[:, :1])):
        values, vectors = eigenbasis(jnp.asarray(given))
        np.testing.assert_array_equal(values, expected)
        assert vectors is None


@pytest.mark.parametrize("trailing", [(), (5,)])
@pytest.mark.parametrize("rotated", [(True, True), (True, False), (False, True), (False, False)])
def test_to_the_basis_and_back(rotated, trailing, x64):
    """With flat indices that run over outputs fastest, as in a Kronecker product."""
    bases = [
        jnp.asarray(np.linalg.qr(ROOTS[n])[0]) if turn else None
        for n, turn in zip((NUM_IN, NUM_OUT), rotated, strict=True)
    ]
    matrix = RNG.normal(size=(G, NUM_IN, NUM_OUT, *trailing))
    dense = [
        np.broadcast_to(np.eye(n), (G, n, n)) if basis is None else np.asarray(basis)
        for n, basis in zip((NUM_IN, NUM_OUT), bases, strict=True)
    ]
    for group, found in enumerate(to_basis(*bases, jnp.asarray(matrix))):
        whole = np.kron(dense[0][group], dense[1][group])
        expected = whole.T @ matrix[group].reshape(NUM_IN * NUM_OUT, -1)
        twins.assert_close(found, expected.reshape(NUM_IN, NUM_OUT, *trailing))
    twins.assert_close(from_basis(*bases, to_basis(*bases, jnp.asarray(matrix))), matrix)
