r"""Jacobian rows $J_n^\top s_{nr}$ of a batch, held in factors, and the algebra that needs no more.

A block belongs to one parameter leaf. For a weight that enters as $z = a W$ at one position, the
row of direction r is $\operatorname{vec}(a_n g_{nr}^\top)$, of which `a` `(B, I)` and `g`
`(B, R, O)` are kept; other leaves have their rows `(B, R, P_leaf)`. Sums and products over
parameters are then contractions of the factors, R times cheaper than with the rows themselves:

$$\sum_r J_r J_r^\top = (a a^\top) \otimes \sum_r g_r g_r^\top, \qquad
J_r D J_{r'}^\top = \sum_o g_{ro}\, (a^2 D)_o\, g_{r'o}.$$
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.tree import pytree_dataclass


class Layout:
    """How a leaf becomes the matrix `(I, O)` that multiplies; compared by identity."""

    def __init__(self, to_matrix: Callable[[Array], Array], permutes: bool, leaf: Array):
        self._to_matrix, self._permutes = to_matrix, permutes
        self._leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        self.shape = jax.eval_shape(to_matrix, self._leaf).shape

    def to_matrix(self, flat: Float[Array, "*batch P"]) -> Float[Array, "*batch I O"]:
        """Turn values in the leaf's flat order to the matrix's shape, along the last axis."""
        if not self._permutes:
            return flat.reshape(*flat.shape[:-1], *self.shape)
        rows = flat.reshape(-1, *self._leaf.shape)
        return jax.vmap(self._to_matrix)(rows).reshape(*flat.shape[:-1], *self.shape)

    def to_flat(self, matrix: Float[Array, "*batch I O"]) -> Float[Array, "*batch P"]:
        """Turn matrices back to the leaf's flat order: the inverse of `to_matrix`."""
        lead = matrix.shape[:-2]
        if not self._permutes:
            return matrix.reshape(*lead, -1)
        leaf = jax.ShapeDtypeStruct(self._leaf.shape, matrix.dtype)
        back = jax.linear_transpose(self._to_matrix, leaf)  # of a permutation: its inverse
        rows = jax.vmap(lambda m: back(m)[0])(matrix.reshape(-1, *self.shape))
        return rows.reshape(*lead, -1)


@pytree_dataclass(static=("layout",))
class FactoredRows:
    """Rows of one weight in factors: `inputs` `(B, I)` and `gradients` `(B, R, O)`."""

    inputs: Float[Array, "B I"]
    gradients: Float[Array, "B R O"]
    layout: Layout

    @property
    def size(self) -> int:
        """The number of parameters."""
        return self.inputs.shape[-1] * self.gradients.shape[-1]


@pytree_dataclass()
class DenseRows:
    """Rows of one leaf as they are."""

    rows: Float[Array, "B R P"]

    @property
    def size(self) -> int:
        """The number of parameters."""
        return self.rows.shape[-1]


Block = FactoredRows | DenseRows


@pytree_dataclass()
class Rows:
    """Jacobian rows of all parameters: one block for each leaf, in flat order."""

    blocks: tuple[Block, ...]

    def to_dense(self) -> Float[Array, "B R P"]:
        """Return the rows themselves: examples x directions x parameters."""
        return jnp.concatenate([_dense(block) for block in self.blocks], axis=-1)

    def astype(self, dtype: jnp.dtype) -> "Rows":
        """Return the rows with factors of another dtype."""
        return jax.tree.map(lambda a: a.astype(dtype), self)

    def squared_sum(self) -> Float[Array, " P"]:
        r"""Return $\sum_n \sum_r J_{nr}^2$ elementwise, `(P,)`."""
        return jnp.concatenate([_squared_sum(block) for block in self.blocks])

    def gram(self) -> Float[Array, "P P"]:
        r"""Return $\sum_n \sum_r J_{nr} J_{nr}^\top$, `(P, P)`."""
        grid: list[list[Any]] = [[None] * len(self.blocks) for _ in self.blocks]
        for i, left in enumerate(self.blocks):
            for j, right in enumerate(self.blocks[i:], start=i):
                grid[i][j] = _gram(left, right)
                grid[j][i] = grid[i][j].T
        return jnp.block(grid)

    def scaled_outer(self, scale: Float[Array, " P"]) -> Float[Array, "B R R"]:
        r"""Return $J_n \operatorname{diag}(d) J_n^\top$ for every example."""
        return sum(_outer(block, d) for block, d in zip(self.blocks, self._cut(scale), strict=True))

    def scaled_squares(self, scale: Float[Array, " P"]) -> Float[Array, "B R"]:
        r"""Return the diagonal of `scaled_outer` alone."""
        return sum(
            _squares(block, d) for block, d in zip(self.blocks, self._cut(scale), strict=True)
        )

    def project(self, vectors: Float[Array, "K P"]) -> Float[Array, "B R K"]:
        """Return the products of every row with K vectors."""
        return sum(
            _project(block, v) for block, v in zip(self.blocks, self._cut(vectors), strict=True)
        )

    def _cut(self, flat: Float[Array, "*batch P"]) -> list[Array]:
        ends = [0]
        for block in self.blocks:
            ends.append(ends[-1] + block.size)
        return [flat[..., low:high] for low, high in itertools.pairwise(ends)]


def _dense(block: Block) -> Float[Array, "B R P"]:
    if isinstance(block, DenseRows):
        return block.rows
    outer = jnp.einsum("bi,bro->brio", block.inputs, block.gradients)
    return block.layout.to_flat(outer)


def _squared_sum(block: Block) -> Float[Array, " P"]:
    if isinstance(block, DenseRows):
        return jnp.sum(block.rows**2, axis=(0, 1))
    total = jnp.einsum("bi,bo->io", block.inputs**2, jnp.sum(block.gradients**2, axis=1))
    return block.layout.to_flat(total)


def _gram(left: Block, right: Block) -> Float[Array, "P Q"]:
    if isinstance(left, DenseRows) and isinstance(right, DenseRows):
        flat = [block.rows.reshape(-1, block.size) for block in (left, right)]
        return flat[0].T @ flat[1]
    if isinstance(left, DenseRows):
        return _gram(right, left).T
    if isinstance(right, DenseRows):
        inner = jnp.einsum("bro,brp->bop", left.gradients, right.rows)
        total = jnp.einsum("bi,bop->iop", left.inputs, inner)
        return left.layout.to_flat(jnp.moveaxis(total, -1, 0)).T
    num = len(left.inputs)
    inputs = jnp.einsum("bi,bj->bij", left.inputs, right.inputs).reshape(num, -1)
    outputs = jnp.einsum("bro,brp->bop", left.gradients, right.gradients).reshape(num, -1)
    total = (inputs.T @ outputs).reshape(
        left.inputs.shape[-1],
        right.inputs.shape[-1],
        left.gradients.shape[-1],
        right.gradients.shape[-1],
    )
    rows = right.layout.to_flat(jnp.transpose(total, (0, 2, 1, 3)))  # (I, O, Q)
    return left.layout.to_flat(jnp.moveaxis(rows, -1, 0)).T


def _weighted(block: FactoredRows, scale: Float[Array, " P"]) -> Float[Array, "B O"]:
    return block.inputs**2 @ block.layout.to_matrix(scale)


def _outer(block: Block, scale: Float[Array, " P"]) -> Float[Array, "B R R"]:
    if isinstance(block, DenseRows):
        return jnp.einsum("brp,bsp->brs", block.rows * scale, block.rows)
    weighted = block.gradients * _weighted(block, scale)[:, None]
    return jnp.einsum("bro,bso->brs", weighted, block.gradients)


def _squares(block: Block, scale: Float[Array, " P"]) -> Float[Array, "B R"]:
    if isinstance(block, DenseRows):
        return block.rows**2 @ scale
    return jnp.einsum("bro,bo->br", block.gradients**2, _weighted(block, scale))


def _project(block: Block, vectors: Float[Array, "K P"]) -> Float[Array, "B R K"]:
    if isinstance(block, DenseRows):
        return block.rows @ vectors.T
    hidden = jnp.einsum("bi,kio->bko", block.inputs, block.layout.to_matrix(vectors))
    return jnp.einsum("bro,bko->brk", block.gradients, hidden)
