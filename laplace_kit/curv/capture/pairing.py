"""Pairing of weights and biases: a bias belongs to the only product that it is added to."""

import math

import numpy as np
from jax.extend.core import Literal

from laplace_kit.curv.capture.products import Convolution, Lookup, MatrixProduct, Product, parts_of
from laplace_kit.curv.capture.uses import Use, as_moves, moves_entries
from laplace_kit.program import Program, Step


def find_biases(
    program: Program,
    kinds: list[str],
    uses: tuple[tuple[Use, ...], ...],
    products: list[Product | None],
) -> dict[int, int]:
    """Return, for a weight's leaf, the leaf of the bias that is added only to its product.

    Parameters
    ----------
    program
        The program of one example.
    kinds, uses, products
        The kind, uses and product of every leaf, in flat order.
    """
    consumers = _consumers(program)
    added = {
        use.step: (leaf, use)
        for leaf, kind in enumerate(kinds)
        for use in uses[leaf]
        if kind == "bias" and program.steps[use.step].primitive.name != "sub"
    }
    biases = {}
    for leaf, product in enumerate(products):
        if product is None or isinstance(product, Lookup):
            continue
        met = [_added_to(program, consumers, added, part) for part in parts_of(product)]
        bias = met[0][0]
        if bias is None or any(other != bias for other, _ in met):
            continue
        # Each slice of a stacked weight needs its own slice of a stacked bias, and none is left.
        own = [part for _, part in met] == sorted(use.part for use in uses[leaf])
        if own and len(uses[bias]) == len(met):
            biases[leaf] = bias
    return biases


def _added_to(
    program: Program,
    consumers: dict[int, list[int]],
    added: dict[int, tuple[int, Use]],
    product: MatrixProduct | Convolution,
) -> tuple[int | None, int | None]:
    """Return the leaf of the bias added to a product's value, and the index of its slice."""
    value, moves = program.steps[product.step].results[0], []
    while len(consumers.get(value, ())) == 1:
        (position,) = consumers[value]
        if position in added:
            leaf, use = added[position]
            shape = program.shape(program.leaves[leaf])
            shape = shape if use.part is None else (1, *shape[1:])
            matches = _matches(program, product, tuple(moves), use.moves, shape)
            return (leaf, use.part) if matches else (None, None)
        if position == len(program.steps) or not moves_entries(program.steps[position]):
            break
        moves.append(program.steps[position])
        value = program.steps[position].results[0]
    return None, None


def _consumers(program: Program) -> dict[int, list[int]]:
    """Return for each value the steps that read it; the end of the program reads the output."""
    consumers: dict[int, list[int]] = {}
    for position, step in enumerate(program.steps):
        for operand in step.operands:
            if not isinstance(operand, Literal):
                consumers.setdefault(operand, []).append(position)
    if not isinstance(program.output, Literal):
        consumers.setdefault(program.output, []).append(len(program.steps))
    return consumers


def _matches(
    program: Program,
    product: MatrixProduct | Convolution,
    moves: tuple[Step, ...],
    bias_moves: tuple[Step, ...],
    bias_shape: tuple[int, ...],
) -> bool:
    """Return whether every output of the product gets its own entry of the bias, in order.

    The indices of entries are moved as the model moves the entries.
    """
    groups, _, out = product.shape
    if math.prod(bias_shape) != groups * out:
        return False
    shape = program.shape(program.steps[product.step].results[0])
    entries = np.arange(math.prod(shape)).reshape(shape)
    units = np.empty(shape, int)
    units.reshape(-1)[product.outputs(entries).reshape(-1, groups * out)] = np.arange(groups * out)
    numbers = np.arange(groups * out).reshape(bias_shape)
    met, moved = _replay(program, moves, units), _replay(program, bias_moves, numbers)
    # The addition repeats axes of length one of the bias; it must not repeat those of the product.
    if np.broadcast_shapes(met.shape, moved.shape) != met.shape:
        return False
    return np.array_equal(met, np.broadcast_to(moved, met.shape))


def _replay(program: Program, steps: tuple[Step, ...], array: np.ndarray) -> np.ndarray:
    """Apply steps that move or repeat entries to an array of indices."""
    for step in steps:
        if step.primitive.name == "broadcast_in_dim":
            shape, places = step.params["shape"], step.params["broadcast_dimensions"]
            grown = [1] * len(shape)
            for axis, place in enumerate(places):
                grown[place] = array.shape[axis]
            array = np.broadcast_to(array.reshape(grown), shape)
        else:
            for move in as_moves((step,), program):
                array = move.apply(array, array.ndim)
    return array
