"""Rows in factors: blocks of factored and exact leaves, and weights stored in another order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from hypothesis import given
from hypothesis import strategies as st

from laplace_kit.curv.rows import DenseRows, FactoredRows, Layout, Rows


def block(rng, kind, num, directions):
    if kind == "dense":
        return DenseRows(jnp.asarray(rng.normal(size=(num, directions, 3))))
    inputs, outputs = 2, 4
    shape = (inputs, outputs) if kind == "factored" else (outputs, inputs)
    leaf = jnp.zeros(shape)
    to_matrix = (lambda w: w) if kind == "factored" else jnp.transpose
    layout = Layout(to_matrix, kind != "factored", leaf)
    return FactoredRows(
        jnp.asarray(rng.normal(size=(num, inputs))),
        jnp.asarray(rng.normal(size=(num, directions, outputs))),
        layout,
    )


KINDS = st.lists(st.sampled_from(["dense", "factored", "transposed"]), min_size=1, max_size=3)


@given(kinds=KINDS, num=st.integers(1, 3), directions=st.integers(1, 3), seed=st.integers(0, 99))
def test_algebra_of_random_blocks_is_that_of_the_dense_rows(kinds, num, directions, seed):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        rows = Rows(tuple(block(rng, kind, num, directions) for kind in kinds))
        dense = np.concatenate([np.asarray(_by_hand(b)) for b in rows.blocks], axis=-1)
        scale = jnp.asarray(rng.uniform(size=dense.shape[-1]))
        vectors = jnp.asarray(rng.normal(size=(2, dense.shape[-1])))
        twins.assert_close(rows.to_dense(), dense)
        twins.assert_close(rows.squared_sum(), (dense**2).sum(axis=(0, 1)))
        twins.assert_close(rows.gram(), np.einsum("nrp,nrq->pq", dense, dense))
        outer = np.einsum("nrp,p,nsp->nrs", dense, scale, dense)
        twins.assert_close(rows.scaled_outer(scale), outer)
        twins.assert_close(rows.scaled_squares(scale), np.einsum("nrr->nr", outer))
        twins.assert_close(rows.project(vectors), np.einsum("nrp,kp->nrk", dense, vectors))


def _by_hand(rows):
    if isinstance(rows, DenseRows):
        return rows.rows
    outer = np.einsum("bi,bro->brio", rows.inputs, rows.gradients)
    if rows.layout._leaf.shape == (4, 2):
        outer = np.swapaxes(outer, -1, -2)
    return outer.reshape(*outer.shape[:2], -1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_astype_changes_every_factor(dtype):
    rng = np.random.default_rng(0)
    rows = Rows((block(rng, "factored", 2, 2), block(rng, "dense", 2, 2))).astype(jnp.dtype(dtype))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(rows)} == {dtype}
