r"""Block-diagonal curvature, with one block for each group of parameters.

Groups consist of whole leaves: each by itself, those of a layer together, or groups by name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from laplace_kit import tree
from laplace_kit.curv.linear import (
    DampedOperator,
    ScaledOperator,
    SelfAdjointOperator,
    SumOperator,
    WrappedOperator,
)
from laplace_kit.curv.operator import CurvatureOperator
from laplace_kit.curv.principal import submatrix
from laplace_kit.curv.vector import read_vectors
from laplace_kit.errors import check_option
from laplace_kit.selection import Named, Subset, select
from laplace_kit.tree import pytree_dataclass, replace

# By name: a predicate on a leaf's path, or names of layers or leaves as in `selection.Named`.
Groups = Mapping[str, Callable[[str], bool] | str | Sequence[str]]


def block_diagonal(
    operator: SelfAdjointOperator, by: Literal["leaf", "layer"] | Groups = "leaf"
) -> "BlockDiagonalOperator":
    r"""Return the operator with entries between parameters of different groups set to zero.

    Parameters
    ----------
    operator
        A curvature operator, or one composed of them.
    by
        `"leaf"`: each leaf by itself. `"layer"`: a weight together with the bias that is added only
        to its product, as layer capture finds them, named by the weight's path; other leaves by
        themselves. Or groups by name, each a predicate on the leaf's path, or names of layers or
        leaves as they appear in paths: `{"body": ["hidden/0", "hidden/1"], "head": "out"}`.

    Returns
    -------
    operator
        Block-diagonal, of the same shape.

    Raises
    ------
    ValueError
        If `by` is an unknown word, a group is empty, or a leaf is in no group or in several.
    """
    paths = tree.paths(select(operator.params)[0])
    if isinstance(by, Mapping):
        groups = _named_groups(paths, by)
    else:
        groups = paths if check_option("by", by, ("leaf", "layer")) == "leaf" else _layers(operator)
    blocks = tuple(dict.fromkeys(groups))
    return BlockDiagonalOperator(operator, blocks, tuple(map(blocks.index, groups)))


@pytree_dataclass(static=("blocks", "groups"))
class BlockDiagonalOperator(WrappedOperator):
    r"""The blocks $\sum_k E_k E_k^\top H E_k E_k^\top$ of a curvature matrix; all else is zero.

    A product is one pass over the data of each curvature operator inside. It linearises the model
    once in each chunk, and for each block goes through the model from the block to its outputs and
    back: for a network of a few layers, with a block per layer, it costs about 1.1 to 1.4 products
    of the whole matrix. The program grows with the number of blocks. The diagonal is that of the
    matrix; the dense form costs those of the blocks.

    Parameters
    ----------
    operator
        The matrix.
    blocks
        The names of the K blocks.
    groups
        For each leaf of free parameters, the index of its block.
    """

    operator: SelfAdjointOperator
    blocks: tuple[str, ...]
    groups: tuple[int, ...]

    def mv(self, v: PyTree) -> PyTree:
        """Return the product with one vector, in its form, in one pass over the data."""
        return (_compiled_mv if self.in_memory else _mv)(self, v)

    def matmat(self, vs: PyTree) -> PyTree:
        """Return the products with K vectors, along a leading axis, in one pass over the data."""
        return (_compiled_matmat if self.in_memory else _matmat)(self, vs)

    def diagonal(self):
        """Return the exact diagonal in flat order, `(P,)`."""
        return self.operator.diagonal()

    def to_dense(self):
        """Return the matrix, `(P, P)`, computed block by block, in float32 or better."""
        matrix = jnp.zeros(self.shape, jnp.promote_types(self.dtype, jnp.float32))
        for name in self.blocks:
            places = self.numbers(name)
            block = self.block(name).to_dense()
            matrix = matrix.at[np.ix_(places, places)].set(block)
        return matrix

    def block(self, name: str) -> SelfAdjointOperator:
        """Return one block as an operator of its own size; see `submatrix`.

        Raises
        ------
        ValueError
            If there is no block of this name.
        """
        return submatrix(self.operator, self.numbers(name))

    def numbers(self, name: str) -> np.ndarray:
        """Return the indices of a block's parameters in flat order, ascending.

        Raises
        ------
        ValueError
            If there is no block of this name.
        """
        block = self.blocks.index(check_option("block", name, self.blocks))
        sizes = [jnp.size(leaf) for leaf in jax.tree.leaves(select(self.params)[0])]
        return np.flatnonzero(np.repeat([group == block for group in self.groups], sizes))


@submatrix.register
def _block_submatrix(operator: BlockDiagonalOperator, subset: Subset) -> BlockDiagonalOperator:
    part = submatrix(operator.operator, subset)
    groups = dict(zip(tree.paths(select(operator.params)[0]), operator.groups, strict=True))
    kept = [groups[path] for path in tree.paths(part.params)]
    left = sorted(set(kept))
    blocks = tuple(operator.blocks[block] for block in left)
    return BlockDiagonalOperator(part, blocks, tuple(map(left.index, kept)))


# --- groups ---------------------------------------------------------------------------------------


def _named_groups(paths: tuple[str, ...], by: Groups) -> list[str]:
    """Return the name of each leaf's group."""
    rules = {name: rule if callable(rule) else _named(rule) for name, rule in by.items()}
    found = [[name for name, rule in rules.items() if rule(path)] for path in paths]
    for path, names in zip(paths, found, strict=True):
        if len(names) != 1:
            raise ValueError(
                f"Found the leaf {path!r} in the groups {names} of {list(by)}, expected every leaf "
                "in one group; name the others by a group of their own, or tell groups apart."
            )
    groups = [name for (name,) in found]
    empty = [name for name in by if name not in groups]
    if empty:
        raise ValueError(
            f"Found no leaf in the groups {empty}, expected at least one in each; the parameters' "
            f"leaves are {', '.join(paths)}."
        )
    return groups


def _named(names: str | Sequence[str]) -> Named:
    return Named((names,) if isinstance(names, str) else tuple(names))


def _layers(operator: SelfAdjointOperator) -> list[str]:
    """Return for each leaf the path of its layer's weight, in the operator's first model."""
    parts = jax.tree.leaves(operator, is_leaf=_is_curvature)
    model = next(filter(_is_curvature, parts), None)
    if model is None:
        raise ValueError(
            f"Found an operator of type {type(operator).__name__} without a model, expected one "
            'with a curvature operator inside for by="layer"; name the groups, or pass by="leaf".'
        )
    leaves = model.plan.layers.leaves
    alone = {leaf.layer: leaf.path for leaf in leaves}
    weights = alone | {leaf.layer: leaf.path for leaf in leaves if leaf.kind != "bias"}
    return [weights[leaf.layer] for leaf in leaves]


def _is_curvature(node: PyTree) -> bool:
    return isinstance(node, CurvatureOperator)


# --- products -------------------------------------------------------------------------------------


def _mv(blocks: BlockDiagonalOperator, v: PyTree) -> PyTree:
    terms = _terms(blocks)
    return _products(blocks, v, ()) if terms is blocks else terms.mv(v)


def _matmat(blocks: BlockDiagonalOperator, vs: PyTree) -> PyTree:
    terms = _terms(blocks)
    first = next(iter(jax.tree.leaves(vs)), 0.0)
    leading = jnp.shape(first)[:1] or (0,)
    return _products(blocks, vs, leading) if terms is blocks else terms.matmat(vs)


# In memory a product is one program, from the vector's form and back to it.
_compiled_mv, _compiled_matmat = jax.jit(_mv), jax.jit(_matmat)


def _terms(blocks: BlockDiagonalOperator) -> SelfAdjointOperator:
    """Return a composed matrix as sums and multiples of block-diagonal terms.

    A damping has no entries outside the blocks.
    """
    operator = blocks.operator
    if isinstance(operator, SumOperator):
        return SumOperator(tuple(replace(blocks, operator=term) for term in operator.terms))
    if isinstance(operator, ScaledOperator | DampedOperator):
        return replace(operator, operator=replace(blocks, operator=operator.operator))
    return blocks


def _products(blocks: BlockDiagonalOperator, vs: PyTree, leading: tuple[int, ...]) -> PyTree:
    params = select(blocks.params)[0]
    free, restore = read_vectors(vs, blocks.params, params, leading)
    several = free if leading else jax.tree.map(lambda leaf: leaf[None], free)
    multiply = _by_chunk if _is_curvature(blocks.operator) else _by_matmat
    products = multiply(blocks.operator, blocks.groups, several)
    return restore(jax.tree.map(lambda p, like: p.reshape(like.shape), products, free))


def _by_matmat(operator: SelfAdjointOperator, groups: tuple[int, ...], vs: PyTree) -> PyTree:
    """Multiply each vector's restrictions to the blocks, all in one pass over the data."""
    leaves, structure = jax.tree.flatten(vs)
    spread = [
        jnp.zeros((max(groups) + 1, *leaf.shape), leaf.dtype).at[group].set(leaf)
        for leaf, group in zip(leaves, groups, strict=True)
    ]
    flat = tree.ravel(spread, num_leading=2)
    products = operator.matmat(flat.reshape(-1, flat.shape[-1])).reshape(flat.shape)
    like = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in leaves]
    unraveled = tree.unravel(products, like)
    kept = [product[group] for product, group in zip(unraveled, groups, strict=True)]
    return jax.tree.unflatten(structure, kept)


def _by_chunk(operator: CurvatureOperator, groups: tuple[int, ...], vs: PyTree) -> PyTree:
    """Multiply block by block in each chunk, with one linearisation and one product's memory."""
    num = len(jax.tree.leaves(vs)[0])
    sums = operator.sum_over(_ChunkProducts(groups), vs, num_vectors=num)
    return jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), sums, vs)


class _ChunkProducts(NamedTuple):
    """One chunk's part of the products; hashable, so that it is compiled once."""

    title = "products with the blocks"

    groups: tuple[int, ...]

    def __call__(self, operator_and_vectors, chunk):
        operator, vs = operator_and_vectors
        products = jax.vmap(operator.linear_map(chunk))
        leaves, structure = jax.tree.flatten(vs)
        found = {}
        # One after the other, so that the compiler sees the zeros and computes nothing with them.
        for block in range(max(self.groups) + 1):
            inside = [group == block for group in self.groups]
            only = [
                leaf if kept else jnp.zeros_like(leaf)
                for leaf, kept in zip(leaves, inside, strict=True)
            ]
            product = jax.tree.leaves(products(jax.tree.unflatten(structure, only)))
            found |= {i: product[i] for i, kept in enumerate(inside) if kept}
        return jax.tree.unflatten(structure, [found[i] for i in range(len(leaves))])
