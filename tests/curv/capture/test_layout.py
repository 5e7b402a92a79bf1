"""Layouts: moves and their inverses, and matrices cut from flat vectors and joined again."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laplace_kit.curv.capture.layout import Layout, Move, Slot, to_flat, together

SHAPES = st.lists(st.integers(1, 3), max_size=4).map(tuple)


@st.composite
def moves_of(draw, shape):
    """Draw kind and argument of a move, and the shape that it leaves."""
    kind = draw(st.sampled_from(("reshape", "transpose", "flip") if shape else ("reshape",)))
    if kind == "transpose":
        order = tuple(draw(st.permutations(range(len(shape)))))
        return kind, order, tuple(shape[axis] for axis in order)
    if kind == "flip":
        return kind, tuple(axis for axis in range(len(shape)) if draw(st.booleans())), shape
    axes = draw(st.permutations([*shape, 1]))
    num = draw(st.integers(0, len(shape)))
    after = (*axes[:num], math.prod(axes[num:]))
    return kind, after, after


@st.composite
def slots(draw):
    """Draw start and shape of a slot, and up to four moves."""
    start, shape = draw(st.integers(0, 5)), draw(SHAPES)
    moves, moved = [], shape
    for _ in range(draw(st.integers(0, 4))):
        *move, moved = draw(moves_of(moved))
        moves.append(move)
    return start, shape, moves


def by_numpy(kind, argument, array):
    if kind == "reshape":
        return np.reshape(array, argument)
    return np.transpose(array, argument) if kind == "transpose" else np.flip(array, argument)


# --- moves --------------------------------------------------------------------------------------


@given(data=st.data(), shape=SHAPES, rest=SHAPES)
def test_a_move_is_numpys_and_its_inverse_undoes_it(data, shape, rest):
    kind, argument, after = data.draw(moves_of(shape))
    move = Move(kind, argument)
    array = np.arange(math.prod(shape + rest)).reshape(shape + rest)
    moved = move.apply(array, len(shape))
    assert move.shape_after(shape) == after
    assert moved.shape == after + rest
    for index in itertools.islice(np.ndindex(rest), 3):
        expected = by_numpy(kind, argument, array[(..., *index)])
        np.testing.assert_array_equal(moved[(..., *index)], expected)
    inverse = move.inverse(shape)
    np.testing.assert_array_equal(inverse.apply(moved, len(after)), array)
    assert inverse.shape_after(after) == shape


# --- slots --------------------------------------------------------------------------------------


@given(numbers=slots(), rest=st.sampled_from([(), (2,), (2, 3)]))
def test_a_slot_reads_its_leaf_moved_and_writes_it_back(numbers, rest):
    start, shape, moves = numbers
    slot = Slot(start, shape, tuple(Move(*move) for move in moves))
    flat = np.arange((slot.start + slot.size + 2) * math.prod(rest), dtype=np.float32)
    flat = flat.reshape(-1, *rest)
    part = flat[slot.start : slot.start + slot.size]

    @jax.jit
    def read_and_write(flat):
        moved = slot.read(flat)
        return moved, slot.write(moved)

    moved, written = read_and_write(flat)
    np.testing.assert_array_equal(written, part)
    assert slot.size == math.prod(shape)
    expected = part.reshape(*shape, -1)
    expected = [expected[..., i] for i in range(expected.shape[-1])]
    for move in moves:
        expected = [by_numpy(*move, array) for array in expected]
    expected = np.stack(expected, axis=-1)
    np.testing.assert_array_equal(np.reshape(moved, expected.shape), expected)
    np.testing.assert_array_equal(slot.read(flat), moved)  # by NumPy


def test_numpy_too_reads_a_scalar():
    assert Slot(2, ()).read(np.arange(5.0)) == 2.0
    np.testing.assert_array_equal(Slot(2, ()).read(np.arange(10.0).reshape(5, 2)), [4.0, 5.0])


# --- layouts ------------------------------------------------------------------------------------

# A transposed kernel with a bias, a grouped one whose bias lies before it, and a lone leaf.
TRANSPOSED = Layout(
    Slot(3, (4, 2), (Move("transpose", (1, 0)), Move("reshape", (1, 2, 4)))),
    Slot(11, (2, 2), (Move("reshape", (1, 1, 4)),)),
    (1, 3, 4),
)
GROUPED = Layout(
    Slot(21, (6, 2), (Move("reshape", (2, 3, 2)), Move("transpose", (0, 2, 1)))),
    Slot(15, (6,), (Move("reshape", (2, 1, 3)),)),
    (2, 3, 3),
)
LONE = Layout(Slot(0, (3,), (Move("reshape", (1, 1, 3)),)), None, (1, 1, 3))
LAYOUTS = (TRANSPOSED, LONE, GROUPED)
SIZE = 33


def test_matrices_hold_the_leaves_and_the_bias_as_their_last_row_of_inputs():
    flat = jnp.arange(float(SIZE))
    matrix = TRANSPOSED.to_matrix(flat)
    np.testing.assert_array_equal(matrix[0, :2], np.arange(3, 11).reshape(4, 2).T)
    np.testing.assert_array_equal(matrix[0, 2], np.arange(11, 15))
    matrix = GROUPED.to_matrix(flat)
    kernel = np.arange(21, 33).reshape(2, 3, 2)
    np.testing.assert_array_equal(matrix[:, :2], kernel.transpose(0, 2, 1))
    np.testing.assert_array_equal(matrix[:, 2], np.arange(15, 21).reshape(2, 3))
    np.testing.assert_array_equal(LONE.to_matrix(flat), [[[0, 1, 2]]])
    assert [layout.size for layout in LAYOUTS] == [12, 3, 18]
    assert [len(layout.slots) for layout in LAYOUTS] == [2, 1, 2]


@pytest.mark.parametrize("rest", [(), (2,), (2, 3)])
def test_matrices_of_all_layers_join_to_the_flat_vectors_they_were_cut_from(rest):
    flat = jnp.arange(float(SIZE * math.prod(rest))).reshape(SIZE, *rest)

    @jax.jit
    def cut_and_join(flat):
        matrices = [layout.to_matrix(flat) for layout in LAYOUTS]
        return matrices, to_flat(LAYOUTS, matrices)

    matrices, joined = cut_and_join(flat)
    assert [m.shape for m in matrices] == [layout.shape + rest for layout in LAYOUTS]
    np.testing.assert_array_equal(joined, flat)


@pytest.mark.parametrize("rest", [(), (2,)])
def test_layers_that_are_laid_out_alike_are_groups_of_one(rest, x64):
    """Weights 2 x 3 with biases, at distances that differ, next to another layer."""

    def layer(start):
        weight = Slot(start, (2, 3), (Move("transpose", (1, 0)), Move("reshape", (1, 3, 2))))
        return Layout(weight, Slot(start + 6, (2,), (Move("reshape", (1, 1, 2)),)), (1, 4, 2))

    singles = [layer(start) for start in (0, 13, 21)]
    other = Layout(Slot(8, (5,), (Move("reshape", (1, 1, 5)),)), None, (1, 1, 5))
    stack = together(singles)
    assert stack.shape == (3, 4, 2)
    assert stack.size == 24
    assert stack.parts == tuple(singles)
    flat = np.random.default_rng(0).normal(size=(29, *rest))
    matrices = [single.to_matrix(jnp.asarray(flat)) for single in singles]
    for array in (flat, jnp.asarray(flat)):
        np.testing.assert_array_equal(stack.weight.read(array)[1:2], singles[1].weight.read(flat))
    found = stack.to_matrix(jnp.asarray(flat))
    np.testing.assert_array_equal(found, np.concatenate(matrices))
    joined = to_flat((stack, other), (found, other.to_matrix(jnp.asarray(flat))))
    np.testing.assert_array_equal(joined, flat)


def test_layouts_are_compared_and_hashed_by_value():
    same = Layout(
        Slot(3, (4, 2), (Move("transpose", (1, 0)), Move("reshape", (1, 2, 4)))),
        Slot(11, (2, 2), (Move("reshape", (1, 1, 4)),)),
        (1, 3, 4),
    )
    assert same == TRANSPOSED
    assert hash(same) == hash(TRANSPOSED)
    others = (
        Layout(same.weight, None, (1, 2, 4)),
        Layout(Slot(4, (4, 2), same.weight.moves), same.bias, same.shape),
        Layout(Slot(3, (4, 2), same.weight.moves[::-1]), same.bias, same.shape),
    )
    assert len({TRANSPOSED, same, *others}) == 1 + len(others)
