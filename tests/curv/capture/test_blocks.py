"""Rows of one layer in factors: every contraction is that of the rows multiplied out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit.curv.capture.blocks import FactoredRows, HeadRows, LookupRows
from laplace_kit.curv.capture.gram import gram
from laplace_kit.curv.capture.layout import Layout, Move, Slot

# Positions T, groups G, inputs I and outputs O. With T^2 against I O two ways to norms are chosen.
SHAPES = {
    "single": (1, 1, 4, 3),
    "lone": (1, 1, 1, 5),
    "positions": (4, 1, 2, 3),
    "few_positions": (2, 1, 3, 4),
    "groups": (1, 2, 3, 2),
    "groups_at_positions": (3, 2, 2, 2),
}
LOOKUP = (4, 5, 3)  # positions, entries, outputs
HEADS = {"head": 1, "head_at_positions": 3, "turned_head": 1, "turned_at_positions": 3}
KINDS = (*SHAPES, "lookup", *HEADS)


def layout_of(*shape):
    return Layout(Slot(0, shape, (Move("reshape", shape),)), None, shape)


def make(kind, num, directions, seed=0):
    """Return random rows; a lookup finds entries twice, and none."""
    rng = np.random.default_rng(seed)
    if kind == "lookup":
        positions, entries, out = LOOKUP
        indices = rng.integers(0, entries + 1, (num, positions))
        indices[0] = (2, entries, 2, 0)
        gradients = jnp.asarray(rng.normal(size=(num, directions, positions, out)))
        return LookupRows(jnp.asarray(indices), gradients, layout_of(1, entries, out))
    if kind in HEADS:
        positions, width, out = HEADS[kind], 2, 4
        inputs = jnp.asarray(rng.normal(size=(num, positions, 1, width)))
        places = jnp.asarray(rng.integers(0, positions * out, directions))
        basis = jnp.asarray(rng.normal(size=(out, out))) if kind.startswith("turned") else None
        factors = jnp.asarray(rng.normal(size=directions))
        return HeadRows(inputs, places, factors, basis, layout_of(1, width, out))
    positions, groups, width, out = SHAPES[kind]
    inputs = jnp.asarray(rng.normal(size=(num, positions, groups, width)))
    gradients = jnp.asarray(rng.normal(size=(num, directions, positions, groups, out)))
    return FactoredRows(inputs, gradients, layout_of(groups, width, out))


def by_hand(block):
    """Return the rows `(B, R, G, I, O)`."""
    if isinstance(block, HeadRows):
        out = block.layout.shape[2]
        units = np.eye(out) if block.basis is None else np.asarray(block.basis)
        g = np.asarray(block.factors)[:, None] * units[np.asarray(block.places) % out]
        a = np.asarray(block.inputs)[:, np.asarray(block.places) // out, 0]
        return np.einsum("bri,ro->brio", a, g)[:, :, None]
    g = np.asarray(block.gradients)
    if isinstance(block, FactoredRows):
        return np.einsum("btgi,brtgo->brgio", block.inputs, g)
    num, directions, positions, out = g.shape
    rows = np.zeros((num, directions, 1, block.layout.shape[1] + 1, out))
    for n in range(num):
        for t in range(positions):
            rows[n, :, 0, block.indices[n, t]] += g[n, :, t]
    return rows[:, :, :, :-1]


@pytest.mark.parametrize("kind", KINDS)
def test_contractions_are_those_of_the_rows_multiplied_out(kind, x64):
    block, other = make(kind, 3, 2), make(kind, 2, 3, seed=1)
    rows, others = by_hand(block), by_hand(other)
    rng = np.random.default_rng(2)
    shape = block.layout.shape
    vector, scale, factor = rng.normal(size=shape), rng.uniform(size=shape), jnp.asarray(0.7)
    vectors = rng.normal(size=(*shape, 2))

    @jax.jit
    def found(block, other, vector, scale, factor, vectors):
        gain = scale[:, 0]
        return (
            block.to_dense(),
            block.squared_sum(),
            block.outer(scale),
            block.squares(scale),
            block.squared_norms(),
            block.cross(other, scale),
            block.cross(other, factor),
            block.project(vectors),
            block.along_inputs(vector),
            block.squares_along(vector, gain),
            gram(block, block),
        )

    flat = rows.reshape(-1, block.layout.size)
    expected = (
        rows,
        np.einsum("brgio->gio", rows**2),
        np.einsum("brgio,gio,bsgio->brs", rows, scale, rows),
        np.einsum("brgio,gio->br", rows**2, scale),
        np.einsum("brgio->br", rows**2),
        np.einsum("brgio,gio,dsgio->brds", rows, scale, others),
        0.7 * np.einsum("brgio,dsgio->brds", rows, others),
        np.einsum("brgio,giok->brk", rows, vectors),
        np.einsum("brgio,gio->brgo", rows, vector),
        np.einsum("brgo,go->br", np.einsum("brgio,gio->brgo", rows, vector) ** 2, scale[:, 0]),
        flat.T @ flat,
    )
    products = found(block, other, vector, scale, factor, vectors)
    for product, twin in zip(products, expected, strict=True):
        twins.assert_close(product, twin)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_turned_into_other_bases(kind, x64):
    block = make(kind, 2, 2)
    groups, width, out = block.layout.shape
    rng = np.random.default_rng(3)
    left = None if kind == "lookup" else jnp.asarray(rng.normal(size=(groups, width, width)))
    right = jnp.asarray(rng.normal(size=(groups, out, out)))

    @jax.jit
    def found(block, left, right):
        bases = ((None, None), (left, None), (None, right), (left, right))
        turned = [block.rotate(*basis) for basis in bases]
        return [rows.to_dense() for rows in turned], [rows.squared_sum() for rows in turned]

    rows, eye = by_hand(block), np.broadcast_to(np.eye(width), (groups, width, width))
    left_or_eye = eye if left is None else left
    expected = [
        rows,
        np.einsum("brgio,gij->brgjo", rows, left_or_eye),
        np.einsum("brgio,gop->brgip", rows, right),
        np.einsum("brgio,gij,gop->brgjp", rows, left_or_eye, right),
    ]
    dense, squared = found(block, left, right)
    for turned, sums, twin in zip(dense, squared, expected, strict=True):
        twins.assert_close(turned, twin)
        twins.assert_close(sums, (twin**2).sum(axis=(0, 1)))


@pytest.mark.parametrize("kind", ["positions", "groups_at_positions", "lookup"])
def test_batches_may_have_other_numbers_of_positions(kind, x64):
    block, other = make(kind, 2, 2), make(kind, 3, 1, seed=1)
    if kind == "lookup":
        fewer = LookupRows(other.indices[:, :1], other.gradients[:, :, :1], other.layout)
    else:
        fewer = FactoredRows(other.inputs[:, :1], other.gradients[:, :, :1], other.layout)
    scale = jnp.asarray(np.random.default_rng(2).uniform(size=block.layout.shape))
    found = jax.jit(lambda a, b: (a.cross(b, scale), b.cross(a, scale)))(block, fewer)
    expected = np.einsum("brgio,gio,dsgio->brds", by_hand(block), scale, by_hand(fewer))
    twins.assert_close(found[0], expected)
    twins.assert_close(found[1], expected.transpose(2, 3, 0, 1))


@pytest.mark.parametrize("directions", [1, 7])  # so that both orders of contraction are taken
def test_gram_between_any_two_layers(directions, x64):
    blocks = [make(kind, 2, directions, seed) for seed, kind in enumerate(KINDS)]
    found = jax.jit(lambda blocks: [[gram(a, b) for b in blocks] for a in blocks])(blocks)
    rows = [by_hand(block).reshape(2 * directions, -1) for block in blocks]
    for left, of_left in zip(rows, found, strict=True):
        for right, product in zip(rows, of_left, strict=True):
            twins.assert_close(product, left.T @ right)


def test_layers_with_one_position_are_never_multiplied_out():
    """With 500 inputs and outputs, rows of 1,000 examples would take 1,000,000,000 bytes."""
    num, directions, size = 1000, 2, 500

    def all_of_them(inputs, gradients, scale):
        block = FactoredRows(inputs, gradients, layout_of(1, size, size))
        products = block.squared_sum(), block.outer(scale), block.squares(scale)
        return products, block.squared_norms(), block.along_inputs(scale)

    shapes = ((num, 1, 1, size), (num, directions, 1, 1, size), (1, size, size))
    program = jax.make_jaxpr(all_of_them)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    sizes = [variable.aval.size for step in program.eqns for variable in step.outvars]
    assert max(sizes) <= num * directions * size


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_that_outputs_share_and_sums_of_rows(kind, x64):
    block, other = make(kind, 3, 5), make(kind, 2, 3, seed=1)  # as many directions as positions
    rows, others = by_hand(block), by_hand(other)
    groups, width, out = block.layout.shape
    rng = np.random.default_rng(2)
    scale, coefficients = rng.uniform(size=(groups, width, 1)), rng.normal(size=(3, 5, 2))
    vectors = rng.normal(size=(groups, width, out, 2))

    @jax.jit
    def found(block, other, scale, coefficients, vectors):
        return block.cross(other, scale), block.combine(coefficients), block.project(vectors)

    expected = (
        np.einsum("brgio,gil,dsgio->brds", rows, scale, others),
        np.einsum("brgio,brk->giok", rows, coefficients),
        np.einsum("brgio,giok->brk", rows, vectors),
    )
    products = found(block, other, scale, coefficients, vectors)
    for product, twin in zip(products, expected, strict=True):
        twins.assert_close(product, twin)
