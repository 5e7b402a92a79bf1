"""Rows of whole models: their algebra is that of the dense Jacobian, for every architecture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from architectures import NUM, ZOO
from jax.flatten_util import ravel_pytree

from laplace_kit.curv.blocks import FactoredRows, LookupRows
from laplace_kit.curv.capture import jacobian
from laplace_kit.curv.layout import Layout, Slot
from laplace_kit.curv.objective import restrict
from laplace_kit.curv.rows import Rows, assemble
from laplace_kit.likelihood import Gaussian

HEAD = 3  # examples of the first batch; the others are the second


@jax.jit
def dense_jacobian(objective, x):
    flat, unravel = ravel_pytree(objective.params)
    jac = jax.jacobian(lambda vector: objective.model_fn(unravel(vector), x))(flat)
    return jac.reshape(NUM, -1, len(flat))


def batches(rows):
    """Cut rows into those of two batches of different sizes."""
    parts = (slice(HEAD), slice(HEAD, None))
    return [jax.tree.map(lambda leaf: leaf[part], rows) for part in parts]  # noqa: B023


def turned(block, bases):
    """Return second moments of rows in other bases; a table keeps its own of inputs."""
    left, right = bases
    return block.rotate(None if isinstance(block, LookupRows) else left, right).squared_sum()


@jax.jit
def found_in_factors(rows, scale, factor, vectors, bases):
    first, second = batches(rows)
    of_whole = (
        rows.to_dense(),
        rows.squared_sum(),
        assemble(rows.gram(), rows.layouts),
        rows.outer(scale),
        rows.squares(scale),
        rows.squared_norms(),
        rows.project([layout.to_matrix(vectors) for layout in rows.layouts]),
        first.cross(second, scale),
        second.cross(first, factor),
    )
    of_blocks = [
        (block.along_inputs(block.layout.to_matrix(scale)), turned(block, basis))
        for block, basis in zip(rows.blocks, bases, strict=True)
    ]
    return of_whole, of_blocks


def expected_of_whole(jac, scale, factor, vectors):
    return (
        jac,
        np.einsum("nrp->p", jac**2),
        np.einsum("nrp,nrq->pq", jac, jac),
        np.einsum("nrp,p,nsp->nrs", jac, scale, jac, optimize=True),
        np.einsum("nrp,p->nr", jac**2, scale),
        np.einsum("nrp->nr", jac**2),
        jac @ vectors,
        np.einsum("nrp,p,msp->nrms", jac[:HEAD], scale, jac[HEAD:], optimize=True),
        factor * np.einsum("nrp,msp->nrms", jac[HEAD:], jac[:HEAD]),
    )


def expected_of_block(matrices, scale, block, bases):
    """Return the same for one layer's entries of the dense Jacobian, `(G, I, O, N, R)`."""
    (left, right), (groups, width, _) = bases, block.layout.shape
    if isinstance(block, LookupRows):
        left = np.broadcast_to(np.eye(width), (groups, width, width))
    along = np.einsum("gionr,gio->nrgo", matrices, scale)
    return along, np.einsum(
        "gjpnr->gjp", np.einsum("gionr,gij,gop->gjpnr", matrices, left, right) ** 2
    )


@pytest.mark.parametrize("build", ZOO.values(), ids=ZOO)
def test_algebra_is_that_of_the_dense_jacobian(build, x64):
    model = build()
    objective, _ = restrict(model.model_fn, model.params, Gaussian())
    outputs, rows = jax.jit(jacobian)(objective, model.x)
    jac = dense_jacobian(objective, model.x)
    num, rng = jac.shape[-1], np.random.default_rng(0)
    scale, factor, vectors = rng.uniform(size=num), 0.7, rng.normal(size=(num, 2))
    shapes = [layout.shape for layout in rows.layouts]
    bases = [
        (rng.normal(size=(groups, width, width)), rng.normal(size=(groups, out, out)))
        for groups, width, out in shapes
    ]
    of_whole, of_blocks = found_in_factors(rows, scale, jnp.asarray(factor), vectors, bases)
    twins.assert_close(outputs, objective.outputs(model.x))
    jac = np.asarray(jac)
    for product, twin in zip(of_whole, expected_of_whole(jac, scale, factor, vectors), strict=True):
        twins.assert_close(product, twin)
    for products, block, basis in zip(of_blocks, rows.blocks, bases, strict=True):
        columns = block.layout.to_matrix(jnp.moveaxis(jnp.asarray(jac), 2, 0))
        part = block.layout.to_matrix(jnp.asarray(scale))
        expected = expected_of_block(np.asarray(columns), np.asarray(part), block, basis)
        for product, twin in zip(products, expected, strict=True):
            np.testing.assert_allclose(product, twin, rtol=0, atol=1e-10 * np.abs(jac).max() ** 2)


# --- rows by hand -------------------------------------------------------------------------------


def two_blocks(dtype=jnp.float32):
    """Return rows of a matrix and of a table, whose parameters lie the other way round."""
    rng = np.random.default_rng(0)
    normal = functools.partial(jnp.asarray, dtype=dtype)
    matrix = FactoredRows(
        normal(rng.normal(size=(2, 1, 1, 3))),
        normal(rng.normal(size=(2, 2, 1, 1, 2))),
        Layout(Slot(4, (1, 3, 2)), None, (1, 3, 2)),
    )
    table = LookupRows(
        jnp.asarray([[0], [1]]),
        normal(rng.normal(size=(2, 2, 1, 2))),
        Layout(Slot(0, (1, 2, 2)), None, (1, 2, 2)),
    )
    return Rows((matrix, table))


def test_parameters_are_in_flat_order_whatever_the_order_of_layers():
    rows = two_blocks()
    matrix, table = (np.asarray(block.to_dense()).reshape(2, 2, -1) for block in rows.blocks)
    dense = np.concatenate([table, matrix], axis=-1)
    np.testing.assert_array_equal(rows.to_dense(), dense)
    np.testing.assert_allclose(rows.squared_sum(), (dense**2).sum(axis=(0, 1)), rtol=1e-6)
    grams = assemble(rows.gram(), rows.layouts)
    np.testing.assert_allclose(grams, np.einsum("nrp,nrq->pq", dense, dense), atol=1e-6)
    np.testing.assert_array_equal(grams, grams.T)


def test_grams_of_batches_add():
    rows = two_blocks()
    halves = [jax.tree.map(lambda leaf: leaf[i : i + 1], rows).gram() for i in range(2)]  # noqa: B023
    total = assemble(jax.tree.map(jnp.add, *halves), rows.layouts)
    np.testing.assert_allclose(total, assemble(rows.gram(), rows.layouts), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_astype_changes_every_factor_and_no_index(dtype):
    rows = two_blocks(jnp.float32).astype(jnp.dtype(dtype))
    matrix, table = rows.blocks
    assert {matrix.inputs.dtype, matrix.gradients.dtype, table.gradients.dtype} == {dtype}
    assert table.indices.dtype == jnp.int32
    assert rows.layouts == two_blocks().layouts
