"""Factorisations of a matrix spread over eight devices, next to NumPy's, and what each holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_placement

from laplace_kit import row_blocks


@pytest.mark.slow
def test_eight_devices_find_what_numpy_finds_and_hold_an_eighth():
    test_placement.run(
        """
    from laplace_kit import row_blocks
    from laplace_kit.placement import Placement
    jax.config.update("jax_enable_x64", True)
    place = Placement(mesh_of("Auto", data=8), ("data",))
    Q, b = 64, 8
    square = rng.normal(size=(Q, Q + 3))
    matrix = square @ square.T
    vectors = rng.normal(size=(5, Q))
    spread = jax.device_put(matrix, place.by_rows)
    programs = device_work.Programs(folder.name)

    def check(fn, expected, *args):
        programs.new()
        found = jax.jit(fn)(*args)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
        assert max(map(device_work.largest_array, programs.new())) <= Q * b
        return found

    root = np.linalg.cholesky(matrix)
    factor = check(lambda m: row_blocks.cholesky(m, place), root, spread)
    assert factor.sharding.shard_shape(factor.shape) == (b, Q)
    for trans, whole in ((0, root), (1, root.T)):
        expected = np.linalg.solve(whole, vectors.T).T
        check(lambda f, v: row_blocks.solve(f, v, place, trans=trans), expected, factor, vectors)
    inverse = check(lambda f: row_blocks.inverse_root(f, place), np.linalg.inv(root).T, factor)
    assert inverse.sharding.shard_shape(inverse.shape) == (Q, b)
    # Rows and columns of zeros at the end are no part of the matrix.
    matrix[-3:] = matrix[:, -3:] = 0
    spread = jax.device_put(matrix, place.by_rows)
    expected = np.linalg.eigvalsh(matrix[:-3, :-3])
    check(lambda m: row_blocks.eigenvalues(m, Q - 3, place), expected, spread)

    def log_det(scale):
        factor = row_blocks.cholesky(spread * scale + jnp.eye(Q), place)
        return 2 * jnp.sum(jnp.log(row_blocks.diagonal_of(factor)))

    values = np.linalg.eigvalsh(matrix)
    derivative = jax.jit(jax.grad(log_det))(2.0)
    np.testing.assert_allclose(derivative, np.sum(values / (2 * values + 1)), rtol=1e-10)
        """
    )


def test_on_one_device_they_are_those_of_one_block(x64):
    square = np.random.default_rng(0).normal(size=(6, 9))
    matrix = jnp.asarray(square @ square.T)
    root = np.linalg.cholesky(matrix)
    np.testing.assert_allclose(row_blocks.cholesky(matrix, None), root, rtol=1e-12)
    for trans, whole in ((0, root), (1, root.T)):
        found = row_blocks.solve(jnp.asarray(root), jnp.eye(6), None, trans=trans)
        np.testing.assert_allclose(found.T, np.linalg.inv(whole), rtol=1e-9, atol=1e-12)
    values = row_blocks.eigenvalues(matrix, 6, None)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), rtol=1e-10)


def test_a_matrix_that_is_indefinite_has_no_factor():
    found = jax.jit(lambda m: row_blocks.cholesky(m, None))(jnp.diag(jnp.array([1.0, -1.0])))
    assert jnp.isnan(found).any()
