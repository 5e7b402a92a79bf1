"""The full posterior: the operator's own dense matrix, exact for every prior."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import twins

from laplace_kit.approx.full import FullStructure


def test_is_the_dense_curvature(x64):
    twins.assert_close(exact.fitted("full", "float64").structure.matrix, exact.curvature("full"))


def test_spectrum_of_a_singular_matrix_has_no_rounding_below_zero():
    structure = exact.fitted("full", "float32").structure
    values = structure.spectrum().values
    assert structure.spectrum().smallest == values[0] == 0  # 14 of 31 directions are determined
    twins.assert_close(values, np.linalg.eigvalsh(exact.curvature("full")), dtype="float32")


def test_spectrum_is_decomposed_once_and_never_leaks_a_tracer(x64):
    structure = FullStructure(jnp.diag(jnp.arange(1.0, 4.0)))
    traced = jax.jit(lambda s: s.spectrum().values)(structure)
    np.testing.assert_array_equal(traced, [1, 2, 3])
    assert structure.spectrum() is structure.spectrum()
    np.testing.assert_array_equal(structure.spectrum().values, [1, 2, 3])
    doubled = jax.tree.map(lambda a: 2 * a, structure)
    np.testing.assert_array_equal(doubled.spectrum().values, [2, 4, 6])


def test_a_matrix_of_wide_range_in_single_precision():
    """A weak prior under a strong curvature: the factor is exact where the matrix is diagonal."""
    curvature = np.zeros(31, np.float32)
    curvature[:5] = np.logspace(8, -8, 5)

    @jax.jit
    def variance(structure):
        return structure.posterior(jnp.full(31, 1e-6)).variance()

    expected = 1 / (curvature.astype(np.float64) + 1e-6)
    np.testing.assert_allclose(variance(FullStructure(jnp.diag(curvature))), expected, rtol=1e-5)
