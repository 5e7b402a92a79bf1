r"""Call a model in which only some entries of a leaf are free, without changing the whole leaf.

Where a weight $W_0$ enters as $z_t = a_t W_0$ and its entries $(i_k, o_k)$ are free, with values
$v_k$, the model is called with $W_0$ itself and $a_{t i_k} (v_k - v_{0k})$ is added to $z_{t o_k}$.
Derivatives in $v$ then never form a matrix, and a copy of $v$ per example copies nothing else.
"""

import collections
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, PyTreeDef
from jaxtyping import Array, Float, Int, PyTree

from laplace_kit.curv.capture.layout import Move
from laplace_kit.curv.capture.products import Convolution, Lookup, MatrixProduct, read_product
from laplace_kit.curv.capture.uses import find_uses, flatten_program
from laplace_kit.program import Program, evaluate
from laplace_kit.selection import Selection

_Product = MatrixProduct | Convolution | Lookup


def call_with_entries(model_fn: Partial, selection: Selection, free: PyTree, x: PyTree) -> Array:
    """Return `model_fn(selection.insert(free), x)` where some leaves are partly free.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`, pure.
    selection, free
        As `laplace_kit.selection.select` returns them.
    x
        Inputs with a leading axis.

    Returns
    -------
    outputs
        `(N, *event)`. A partly free leaf that enters only products costs $T k$ more for each
        example, with T positions and k free entries. A leaf that enters in other ways, or is
        smaller than that, is assembled from its free and frozen entries, as `insert` does.
    """
    values, structure = jax.tree.flatten(free, is_leaf=lambda value: value is None)
    frozen, indices = map(structure.flatten_up_to, (selection.frozen, selection.indices))
    partly = tuple(i for i, index in enumerate(indices) if index is not None)
    known = [frozen[i] if value is None else value for i, value in enumerate(values)]
    held = Partial(_Model(structure, partly), model_fn, known)
    whole = [frozen[i] for i in partly]
    program = flatten_program(held, whole, x)
    num_examples = len(jax.tree.leaves(x)[0])
    leaves, probes = [], {}
    for i, leaf, products in zip(partly, whole, _products(program), strict=True):
        index, value = indices[i], values[i]
        if (
            products is None
            or _num_gathered(program, products, index.size) > num_examples * leaf.size
        ):
            leaves.append(jnp.ravel(leaf).at[index].set(value).reshape(leaf.shape))
            continue
        leaves.append(leaf)
        change = value - jnp.ravel(leaf)[index]
        for product in products:
            place = _moved_indices(index, leaf.shape, product.moves)
            probes[product.step] = partial(_product_change, program, product, place, change)
    read = evaluate(program, jax.tree.leaves(held), leaves, jax.tree.leaves(x), probes)
    return jnp.asarray(read(program.output))


class _Model(NamedTuple):
    """A model as a function of its partly free leaves, given by their indices; hashable."""

    structure: PyTreeDef
    partly: tuple[int, ...]

    def __call__(self, model_fn: Partial, known: list, whole: list[Array], x: PyTree) -> Array:
        leaves = list(known)
        for i, leaf in zip(self.partly, whole, strict=True):
            leaves[i] = leaf
        return model_fn(jax.tree.unflatten(self.structure, leaves), x)


def _products(program: Program) -> list[tuple[_Product, ...] | None]:
    """Return the products that each leaf enters; `None` where it also enters in another way.

    A product of two leaves, or of a leaf with itself, is not linear in them and counts as another
    way.
    """
    uses = find_uses(program)
    times = collections.Counter(use.step for found in uses for use in found)
    products = []
    for found in uses:
        read = tuple(read_product(program, use) for use in found)
        alone = all(times[use.step] == 1 and use.part is None for use in found)
        products.append(read if alone and None not in read else None)
    return products


def _num_gathered(program: Program, products: tuple[_Product, ...], num_free: int) -> int:
    """Return the number of entries gathered from the inputs of products, at all positions."""
    total = 0
    for product in products:
        groups, width, out = product.shape
        positions = math.prod(_result(program, product).shape) // (groups * out)
        patches = groups * width if isinstance(product, Convolution) else 0
        total += positions * (num_free + patches)
    return total


def _result(program: Program, product: _Product) -> jax.core.AbstractValue:
    return program.avals[program.steps[product.step].results[0]]


def _product_change(
    program: Program,
    product: _Product,
    place: tuple[Int[Array, " k"], ...],
    change: Float[Array, " k"],
    read: Callable,
) -> Array:
    """Return the change of a weight's product that a change of some of its entries makes."""
    group, row, column = place
    inputs = product.inputs(jnp.asarray(read(product.input_value)))
    lookup = isinstance(product, Lookup)
    taken = inputs[:, None] == row if lookup else inputs[:, group, row]
    result, (groups, _, out) = _result(program, product), product.shape
    total = jnp.zeros((len(taken), groups, out), result.dtype)
    total = total.at[:, group, column].add((taken * change).astype(result.dtype))
    spec = jax.ShapeDtypeStruct(result.shape, result.dtype)
    return jax.linear_transpose(product.outputs, spec)(total)[0]


def _moved_indices(
    index: Int[Array, " k"], shape: tuple[int, ...], moves: tuple[Move, ...]
) -> tuple[Int[Array, " k"], ...]:
    """Return the indices along each axis, after the moves, of entries given by flat indices."""
    place = jnp.unravel_index(index, shape)
    for move in moves:
        if move.kind == "reshape":
            flat = jnp.ravel_multi_index(place, shape, mode="clip")
            place = jnp.unravel_index(flat, move.argument)
        elif move.kind == "transpose":
            place = tuple(place[axis] for axis in move.argument)
        else:
            place = tuple(
                shape[axis] - 1 - at if axis in move.argument else at
                for axis, at in enumerate(place)
            )
        shape = move.shape_after(shape)
    return place
