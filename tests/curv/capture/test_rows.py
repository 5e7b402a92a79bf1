"""Rows of whole models: their algebra is that of the dense Jacobian, for every architecture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from architectures import NUM, ZOO
from jax.flatten_util import ravel_pytree

from laplace_kit.curv.capture.blocks import FactoredRows, LookupRows
from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.curv.capture.layout import Layout, Slot
from laplace_kit.curv.capture.rows import Rows, assemble
from laplace_kit.curv.objective import restrict
from laplace_kit.likelihood import Gaussian

HEAD = 3  # examples of the first batch; the others are the second


@jax.jit
def outputs_and_jacobian(objective, x):
    flat, unravel = ravel_pytree(objective.params)

    def outputs(vector):
        f = objective.model_fn(unravel(vector), x)
        return f.reshape(NUM, -1), f

    jac, f = jax.jacobian(outputs, has_aux=True)(flat)
    return f, jac


@jax.jit
def found_in_factors(rows, scale, vectors):
    first, second = (
        jax.tree.map(lambda leaf: leaf[part], rows)  # noqa: B023
        for part in (slice(HEAD), slice(HEAD, None))
    )
    return (
        rows.to_dense(),
        rows.squared_sum(),
        assemble(rows.gram(), rows.layouts),
        rows.outer(scale),
        rows.squares(scale),
        rows.project([layout.to_matrix(vectors) for layout in rows.layouts]),
        first.cross(second, scale),
    )


@pytest.mark.accelerator
@pytest.mark.parametrize("build", ZOO.values(), ids=ZOO)
def test_algebra_is_that_of_the_dense_jacobian(build, x64):
    model = build()
    objective, _ = restrict(model.model_fn, model.params, Gaussian())
    outputs, rows = jax.jit(jacobian)(objective, model.x)
    f, jac = map(np.asarray, outputs_and_jacobian(objective, model.x))
    num, rng = jac.shape[-1], np.random.default_rng(0)
    scale, vectors = rng.uniform(size=num), rng.normal(size=(num, 2))
    expected = (
        jac,
        np.einsum("nrp->p", jac**2),
        np.einsum("nrp,nrq->pq", jac, jac),
        np.einsum("nrp,nsp->nrs", jac * scale, jac),
        np.einsum("nrp,p->nr", jac**2, scale),
        jac @ vectors,
        np.einsum("nrp,msp->nrms", jac[:HEAD] * scale, jac[HEAD:]),
    )
    twins.assert_close(outputs, f)
    for product, twin in zip(found_in_factors(rows, scale, vectors), expected, strict=True):
        twins.assert_close(product, twin)


# --- rows by hand -------------------------------------------------------------------------------


def two_blocks(dtype="float32"):
    """Return rows of a matrix and of a table, whose parameters lie the other way round."""

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    rng = np.random.default_rng(0)
    matrix_layout = Layout(Slot(4, (1, 3, 2)), None, (1, 3, 2))
    matrix = FactoredRows(normal(2, 1, 1, 3), normal(2, 2, 1, 1, 2), matrix_layout)
    table_layout = Layout(Slot(0, (1, 2, 2)), None, (1, 2, 2))
    table = LookupRows(jnp.asarray([[0], [1]]), normal(2, 2, 1, 2), table_layout)
    return Rows((matrix, table))


def test_parameters_are_in_flat_order_whatever_the_order_of_layers(x64):
    rows = two_blocks("float64")

    @jax.jit
    def found(rows, scale):
        halves = [jax.tree.map(lambda leaf: leaf[i : i + 1], rows) for i in range(2)]  # noqa: B023
        grams = jax.tree.map(jnp.add, *(half.gram() for half in halves))  # sums of batches
        return (
            rows.to_dense(),
            rows.squared_sum(),
            assemble(grams, rows.layouts),
            rows.squared_norms(),
            rows.cross(rows, scale[0]),
        )

    matrix, table = (np.asarray(block.to_dense()).reshape(2, 2, -1) for block in rows.blocks)
    dense = np.concatenate([table, matrix], axis=-1)
    expected = (
        dense,
        np.einsum("nrp->p", dense**2),
        np.einsum("nrp,nrq->pq", dense, dense),
        np.einsum("nrp->nr", dense**2),
        0.7 * np.einsum("nrp,msp->nrms", dense, dense),
    )
    for product, twin in zip(found(rows, jnp.asarray([0.7])), expected, strict=True):
        twins.assert_close(product, twin)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_astype_changes_every_factor_and_no_index(dtype):
    matrix, table = two_blocks().astype(jnp.dtype(dtype)).blocks
    factors = (matrix.inputs, matrix.gradients, table.gradients)
    assert [leaf.dtype for leaf in factors] == [dtype] * 3
    assert table.indices.dtype == jnp.int32


def test_combining_is_the_transpose_of_projecting(x64):
    rows, rng = two_blocks("float64"), np.random.default_rng(4)
    coefficients = rng.normal(size=(2, 2, 3))
    expected = np.einsum("nrp,nrk->pk", rows.to_dense(), coefficients)
    twins.assert_close(jax.jit(Rows.combine)(rows, coefficients), expected)
