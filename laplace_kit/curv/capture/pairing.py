"""Which bias belongs to which weight: the one that is added to its product, and to nothing else."""

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
    """Return, by the weight's leaf, the leaf of the bias that is added to its product alone.

    Parameters
    ----------
    program
        Of one example.
    kinds, uses, products
        Of every leaf, in flat order.
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
        # Slices of a stacked weight must meet the slices of a stacked bias, each its own, and all.
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
    """Return the leaf of the bias that a product's value meets next, and which slice of it."""
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
    """Return by value the steps that read it; the end of the program reads the output."""
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
    """Tell whether every output of the product meets its own entry of the bias, in order.

    Decided by moving the numbers of entries as the model moves the entries themselves.
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
    # An axis of one is repeated by the addition itself; the product's own must not be.
    if np.broadcast_shapes(met.shape, moved.shape) != met.shape:
        return False
    return np.array_equal(met, np.broadcast_to(moved, met.shape))


def _replay(program: Program, steps: tuple[Step, ...], array: np.ndarray) -> np.ndarray:
    """Apply steps that move entries, or repeat them, to numbers."""
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
