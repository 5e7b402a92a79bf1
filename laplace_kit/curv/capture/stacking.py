"""Many layers of one shape as one layer, with a group for each.

Programs then grow with the number of shapes and not of layers: 96 pairs of adapters are two layers
with 96 groups each. Values stay the same, as every group has a matrix of its own.
"""

import dataclasses

from jax.extend.core import Literal

from laplace_kit.curv.capture.heads import find_head
from laplace_kit.curv.capture.layers import Layer, Layers
from laplace_kit.curv.capture.layout import together
from laplace_kit.curv.capture.products import Convolution, MatrixProduct, Product, Stack
from laplace_kit.program import Program

# A few layers compile quickly by themselves, and one product after another is faster.
LAYERS_WORTH_STACKING = 8
# Arithmetic with larger layers takes longer than their compilation, and a stack holds all at once.
MOST_ENTRIES = 2**20


def stacked(found: Layers) -> Layers:
    """Return the layers of a model, those of one shape as one where they are many and small.

    Heads, lookups, and parameters that enter no product stay by themselves, and so do layers whose
    weights are stacked already, as those of a scan are.
    """
    alike: dict[tuple, list[int]] = {}
    for index, layer in enumerate(found.layers):
        alike.setdefault(_kind(found.program, layer) or (index,), []).append(index)
    few = [group for group in alike.values() if len(group) < LAYERS_WORTH_STACKING]
    many = [group for group in alike.values() if len(group) >= LAYERS_WORTH_STACKING]
    if not many:
        return found
    groups = sorted([*many, *([index] for group in few for index in group)])
    places = {index: place for place, group in enumerate(groups) for index in group}
    layers = tuple(_as_one([found.layers[index] for index in group]) for group in groups)
    leaves = tuple(leaf._replace(layer=places[leaf.layer]) for leaf in found.leaves)
    return Layers(found.program, layers, leaves)


def _kind(program: Program, layer: Layer) -> tuple | None:
    """Return what layers that can be one have in common, or `None` if this one is to stay."""
    product, layout = layer
    is_single = isinstance(product, MatrixProduct | Convolution)
    if not is_single or layout.size > MOST_ENTRIES or find_head(program, product):
        return None
    result = program.avals[program.steps[product.step].results[0]]
    slots = tuple(
        slot and dataclasses.replace(slot, start=0) for slot in (layout.weight, layout.bias)
    )
    return slots, product.shape, result.size, result.dtype, _input_dtype(program, product)


def _input_dtype(program: Program, product: Product) -> object:
    value = product.input_value
    return (value.aval if isinstance(value, Literal) else program.avals[value]).dtype


def _as_one(layers: list[Layer]) -> Layer:
    if len(layers) == 1:
        return layers[0]
    products, layouts = zip(*layers, strict=True)
    return Layer(Stack(products), together(layouts))
