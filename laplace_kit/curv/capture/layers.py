"""How each parameter enters a model: its kind, and the layer that it belongs to.

A layer is a weight in a product, with the bias that is added only to that product, or a single leaf
that enters in any other way. Layers are found in the model's program; none are registered.
"""

import math
from typing import NamedTuple

import numpy as np
from jax.extend.core import Literal
from jax.tree_util import Partial
from jaxtyping import PyTree

from laplace_kit import tree
from laplace_kit.curv.capture.layout import Layout, Move, Slot
from laplace_kit.curv.capture.pairing import find_biases
from laplace_kit.curv.capture.products import (
    Convolution,
    Lookup,
    MatrixProduct,
    Product,
    Stack,
    read_product,
)
from laplace_kit.curv.capture.uses import Use, find_uses, flatten_program
from laplace_kit.program import Program, reached_from

KINDS = {
    "dense": "a matrix product over any axes: `@`, `einsum`, linear, attention and projection "
    "layers, kernels transposed or with several axes, batches of matrices",
    "convolution": "a convolution in one to three dimensions, with stride, padding, dilation and "
    "groups, plain or transposed",
    "embedding": "a lookup of whole rows of a table",
    "bias": "added to or subtracted from activations",
    "scale": "multiplied entry by entry, as in LayerNorm",
    "shared": "used more than once",
    "unused": "not used",
    "other": "anything else",
}
_KIND_OF_PRODUCT: dict[type, str] = {
    MatrixProduct: "dense",
    Convolution: "convolution",
    Lookup: "embedding",
}


class Layer(NamedTuple):
    """A weight's product and its layout, or a leaf by itself, without a product."""

    product: Product | None
    layout: Layout


class Leaf(NamedTuple):
    """One leaf: its path and shape, its kind, and the index of its layer.

    `weight` is the path of the weight that it is used with: of the product to which a bias is
    added, otherwise its own.
    """

    path: str
    shape: tuple[int, ...]
    kind: str
    layer: int
    weight: str


class Layers(NamedTuple):
    """A model's program for one example, its layers, and its leaves in flat order."""

    program: Program
    layers: tuple[Layer, ...]
    leaves: tuple[Leaf, ...]

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts of the layers' matrices in flat vectors."""
        return tuple(layer.layout for layer in self.layers)


def find_layers(model_fn: Partial, params: PyTree, one: PyTree) -> Layers:
    """Trace the model for one example and find how each free leaf enters it.

    Parameters
    ----------
    model_fn, params
        The model and its free parameters; values are not read.
    one
        An input with a leading axis of length one, or its shapes.

    Returns
    -------
    layers
        One for each leaf, except for a bias that is added only to one product: it is the last row
        of inputs of that product's layer. `KINDS` describes the kinds of leaves.
    """
    program = flatten_program(model_fn, params, one)
    uses = find_uses(program)
    active = reached_from(program, program.inputs)
    shapes = [program.shape(value) for value in program.leaves]
    kinds, products = [], []
    for found, shape in zip(uses, shapes, strict=True):
        kind, product = _recognise(program, active, found, shape)
        kinds.append(kind)
        products.append(product)
    biases = find_biases(program, kinds, uses, products)
    paired = set(biases.values())
    layers: list[Layer] = []
    number = {}
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
    paths, weight_of = tree.paths(params), {bias: weight for weight, bias in biases.items()}
    leaves = [
        Leaf(path, shape, kind, number[leaf], paths[weight_of.get(leaf, leaf)])
        for leaf, (path, shape, kind) in enumerate(zip(paths, shapes, kinds, strict=True))
    ]
    return Layers(program, tuple(layers), tuple(leaves))


def _layout(product: Product | None, weight: Slot, bias: Slot | None = None) -> Layout:
    if product is None:  # the constant input 1
        shape = (1, 1, weight.size)
        return Layout(Slot(weight.start, weight.shape, (Move("reshape", shape),)), None, shape)
    groups, width, out = product.shape
    is_stack = isinstance(product, Stack)
    moves = product.moves_of_slices(weight.shape) if is_stack else product.moves
    weight = Slot(weight.start, weight.shape, moves)
    if bias is None:
        return Layout(weight, None, product.shape)
    bias = Slot(bias.start, bias.shape, (Move("reshape", (groups, 1, out)),))
    return Layout(weight, bias, (groups, width + 1, out))


def _recognise(
    program: Program, active: frozenset[int], uses: tuple[Use, ...], shape: tuple[int, ...]
) -> tuple[str, Product | None]:
    """Return the kind of a leaf, and its product if it has one."""
    if not uses:
        return "unused", None
    num_parts = None if uses[0].part is None else shape[0]
    parts = sorted(uses, key=lambda use: -1 if use.part is None else use.part)
    places = [use.part for use in parts]
    if places != ([None] if num_parts is None else list(range(num_parts))):
        twice = len(set(places)) < len(places) or None in places
        return ("shared" if twice else "other"), None
    found = [_recognise_one(program, active, use) for use in parts]
    kinds, products = {kind for kind, _ in found}, [product for _, product in found]
    if len(kinds) > 1:
        return "other", None
    if num_parts is None or products[0] is None:
        return kinds.pop(), products[0]
    alike = {(p.shape, p.moves, math.prod(_result(program, p))) for p in products}
    if len(alike) > 1 or isinstance(products[0], Lookup):
        return "other", None
    return kinds.pop(), Stack(tuple(products))


def _result(program: Program, product: Product) -> tuple[int, ...]:
    return program.shape(program.steps[product.step].results[0])


def _recognise_one(
    program: Program, active: frozenset[int], use: Use
) -> tuple[str, Product | None]:
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
