"""How each parameter enters a model: its kind, and the layer that it belongs to.

A layer is a weight in a product, with the bias that is added to that product alone, or a single
leaf that enters in any other way. Found in the model's program, never asked for.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.tree_util import PyTreeDef
from jaxtyping import ArrayLike, PyTree

from laplace_kit import tree
from laplace_kit.curv.layout import Layout, Move, Slot
from laplace_kit.curv.objective import Objective
from laplace_kit.curv.products import Convolution, Lookup, MatrixProduct, Product, read_product
from laplace_kit.curv.uses import (
    Program,
    Step,
    Use,
    as_moves,
    find_uses,
    flatten_program,
    moves_entries,
    reached_from,
)

KINDS = {
    "dense": "a matrix product over any axes: `@`, `einsum`, linear, attention and projection "
    "layers, kernels transposed or with several axes, batches of matrices",
    "convolution": "a convolution in one to three dimensions, with stride, padding, dilation and "
    "groups, plain or transposed",
    "embedding": "a lookup of whole rows of a table",
    "bias": "added to or subtracted from activations",
    "scale": "multiplied entry by entry, as in LayerNorm",
    "shared": "used more than once",
    "unused": "not used at all",
    "other": "anything else",
}
_KIND_OF_PRODUCT: dict[type, str] = {
    MatrixProduct: "dense",
    Convolution: "convolution",
    Lookup: "embedding",
}


class Layer(NamedTuple):
    """A weight's product and its place, or a leaf by itself, without a product."""

    product: Product | None
    layout: Layout


class Leaf(NamedTuple):
    """How one leaf enters: its path and shape, its kind, and the number of its layer."""

    path: str
    shape: tuple[int, ...]
    kind: str
    layer: int


class Layers(NamedTuple):
    """A model's program for one example, its layers, and its leaves in flat order."""

    program: Program
    layers: tuple[Layer, ...]
    leaves: tuple[Leaf, ...]


def find_layers(objective: Objective, x: PyTree) -> Layers:
    """Trace the model for one example and say how each free leaf enters it.

    Parameters
    ----------
    objective
        The model and its free parameters.
    x
        Inputs with a leading axis, or their shapes: values are not read.

    Returns
    -------
    layers
        One for each leaf but for biases that are added to a product alone: these are the last row
        of inputs of that product's layer. `KINDS` describes the kinds of leaves.
    """
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), x)
    leaves, structure = jax.tree.flatten((objective, one))
    found = _find_layers(structure, tuple(map(_spec, leaves)), _context())
    if not tree.is_concrete(found.program.constants):  # a model that closes over tracers
        _find_layers.cache_clear()
    return found


@functools.lru_cache(maxsize=64)
def _find_layers(
    structure: PyTreeDef, specs: tuple[jax.ShapeDtypeStruct, ...], context: tuple
) -> Layers:
    """Do so once for each model, by structure, shapes and settings, as `jax.jit` does."""
    objective, one = jax.tree.unflatten(structure, specs)
    program = flatten_program(objective.model_fn, objective.params, one)
    uses = find_uses(program)
    active = reached_from(program, program.inputs)
    kinds, products = [], []
    for found in uses:
        kind, product = _recognise(program, active, found)
        kinds.append(kind)
        products.append(product)
    biases = _find_biases(program, kinds, uses, products)
    paired = set(biases.values())
    layers: list[Layer] = []
    number = {}
    shapes = [program.shape(value) for value in program.leaves]
    starts = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
    for leaf, product in enumerate(products):
        if leaf in paired:
            continue
        bias = biases.get(leaf)
        number[leaf] = len(layers)
        if bias is not None:
            number[bias] = len(layers)
        slots = [Slot(int(starts[i]), shapes[i]) for i in (leaf, bias) if i is not None]
        layers.append(Layer(product, _layout(product, *slots)))
    leaves = [
        Leaf(path, shape, kind, number[leaf])
        for leaf, (path, shape, kind) in enumerate(
            zip(tree.paths(objective.params), shapes, kinds, strict=True)
        )
    ]
    return Layers(program, tuple(layers), tuple(leaves))


def _spec(array: ArrayLike | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    weak_type = getattr(array, "weak_type", False)
    return jax.ShapeDtypeStruct(jnp.shape(array), jnp.result_type(array), weak_type=weak_type)


def _context() -> tuple:
    """Return the settings of JAX that a model's program depends on."""
    return jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision


def _layout(product: Product | None, weight: Slot, bias: Slot | None = None) -> Layout:
    if product is None:  # one input that is always one
        shape = (1, 1, weight.size)
        return Layout(Slot(weight.start, weight.shape, (Move("reshape", shape),)), None, shape)
    groups, width, out = product.shape
    weight = Slot(weight.start, weight.shape, product.moves)
    if bias is None:
        return Layout(weight, None, product.shape)
    bias = Slot(bias.start, bias.shape, (Move("reshape", (groups, 1, out)),))
    return Layout(weight, bias, (groups, width + 1, out))


def _recognise(
    program: Program, active: frozenset[int], uses: tuple[Use, ...]
) -> tuple[str, Product | None]:
    """Return the kind of a leaf, and its product if it has one."""
    if len(uses) != 1:
        return ("shared" if uses else "unused"), None
    (use,) = uses
    if use.step == len(program.steps):
        return "other", None
    step = program.steps[use.step]
    product = read_product(program, use)
    if product is not None and (isinstance(product, Lookup) or _is_in(product.input_value, active)):
        return _KIND_OF_PRODUCT[type(product)], product
    kind = {"add": "bias", "add_any": "bias", "sub": "bias", "mul": "scale"}.get(
        step.primitive.name, "other"
    )
    if kind == "bias" and not _is_in(step.operands[1 - use.operand], active):
        kind = "other"
    return kind, None


def _is_in(operand: int | Literal, values: frozenset[int]) -> bool:
    return not isinstance(operand, Literal) and operand in values


def _find_biases(
    program: Program,
    kinds: list[str],
    uses: tuple[tuple[Use, ...], ...],
    products: list[Product | None],
) -> dict[int, int]:
    """Return, by the weight's leaf, the leaf of the bias that is added to its product alone."""
    consumers = _consumers(program)
    added = {
        uses[leaf][0].step: leaf
        for leaf, kind in enumerate(kinds)
        if kind == "bias" and program.steps[uses[leaf][0].step].primitive.name != "sub"
    }
    biases = {}
    for leaf, product in enumerate(products):
        if product is None or isinstance(product, Lookup):
            continue
        value, moves = program.steps[product.step].results[0], []
        while len(consumers.get(value, ())) == 1:
            position = consumers[value][0]
            if position == len(program.steps):
                break
            if position in added:
                bias = added[position]
                shape = program.shape(program.leaves[bias])
                if _matches(program, product, tuple(moves), uses[bias][0].moves, shape):
                    biases[leaf] = bias
                break
            step = program.steps[position]
            if not moves_entries(step):
                break
            moves.append(step)
            value = step.results[0]
    return biases


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
    product: Product,
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
