r"""Jacobian rows $J_n^\top s_{nr}$ of a batch for all parameters, held in factors.

One block belongs to one layer (see `blocks.py`); sums and products over parameters are sums over
blocks.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.curv.capture.blocks import Block, FactoredRows
from laplace_kit.curv.capture.gram import gram
from laplace_kit.curv.capture.layout import Layout, to_flat
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class Rows:
    """Jacobian rows of all parameters: one block for each layer."""

    blocks: tuple[Block, ...]

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts of the blocks' parameters in flat vectors."""
        return tuple(block.layout for block in self.blocks)

    def split(self) -> "Rows":
        """Return the rows with one block for each single layer, in the order of flat vectors."""
        parts = (
            block.split() if isinstance(block, FactoredRows) else (block,) for block in self.blocks
        )
        single = itertools.chain.from_iterable(parts)
        return Rows(tuple(sorted(single, key=lambda block: block.layout.weight.start)))

    def to_dense(self) -> Float[Array, "B R P"]:
        """Return the rows themselves: examples x directions x parameters."""
        dense = [jnp.moveaxis(block.to_dense(), (0, 1), (3, 4)) for block in self.blocks]
        return jnp.moveaxis(to_flat(self.layouts, dense), 0, 2)

    def astype(self, dtype: jnp.dtype) -> "Rows":
        """Return the rows with factors of another floating-point dtype."""

        def convert(leaf):
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        return jax.tree.map(convert, self)

    def squared_sum(self) -> Float[Array, " P"]:
        r"""Return $\sum_n \sum_r J_{nr}^2$ elementwise, `(P,)`."""
        return to_flat(self.layouts, [block.squared_sum() for block in self.blocks])

    def gram(self) -> tuple[tuple[Array, ...], ...]:
        r"""Return $\sum_n \sum_r J_{nr} J_{nr}^\top$ for every unordered pair of layers.

        `assemble` turns it into a matrix; summing over batches of rows first is cheaper.
        """
        pairs = enumerate(self.blocks)
        return tuple(tuple(gram(left, right) for right in self.blocks[i:]) for i, left in pairs)

    def outer(self, scale: Float[Array, " P"]) -> Float[Array, "B R R"]:
        r"""Return $J_n \operatorname{diag}(d) J_n^\top$ for every example."""
        return self._sum(lambda block: block.outer(block.layout.to_matrix(scale)))

    def squares(self, scale: Float[Array, " P"]) -> Float[Array, "B R"]:
        r"""Return the diagonal of `outer`."""
        return self._sum(lambda block: block.squares(block.layout.to_matrix(scale)))

    def squared_norms(self) -> Float[Array, "B R"]:
        r"""Return $\|J_{nr}\|^2$."""
        return self._sum(lambda block: block.squared_norms())

    def cross(
        self, other: "Rows", scale: Float[Array, ""] | Float[Array, " P"]
    ) -> Float[Array, "B R D S"]:
        r"""Return $J_n \operatorname{diag}(d) J_m'^\top$ between two batches of the same model."""
        total = jnp.zeros((), scale.dtype)
        rows, other = alike(self, other)
        for a, b in zip(rows.blocks, other.blocks, strict=True):
            total += a.cross(b, a.layout.to_matrix(scale) if scale.ndim else scale)
        return total

    def project(self, vectors: Sequence[Float[Array, "_ _ _ K"]]) -> Float[Array, "B R K"]:
        """Return the products of every row with K vectors, given as the matrices of each block."""
        pairs = zip(self.blocks, vectors, strict=True)
        return sum(block.project(part) for block, part in pairs)

    def combine(self, coefficients: Float[Array, "B R K"]) -> Float[Array, "P K"]:
        r"""Return $\sum_n \sum_r c_{nrk} J_{nr}$ over all rows: the transpose of `project`."""
        return to_flat(self.layouts, [block.combine(coefficients) for block in self.blocks])

    def _sum(self, fn: Callable[[Block], Array]) -> Array:
        return sum(fn(block) for block in self.blocks)


def alike(rows: Rows, other: Rows) -> tuple[Rows, Rows]:
    """Return two batches of rows of a model by the same layers.

    Which layers are one may depend on the shapes of the inputs.
    """
    return (rows, other) if rows.layouts == other.layouts else (rows.split(), other.split())


@partial(jax.jit, static_argnames="layouts")
def assemble(
    grams: tuple[tuple[Array, ...], ...], layouts: tuple[Layout, ...]
) -> Float[Array, "P P"]:
    """Return the symmetric matrix with these blocks for pairs of layers, in flat order."""
    num = len(layouts)
    columns = [
        [grams[i][j - i] if j >= i else grams[j][i - j].T for i in range(num)] for j in range(num)
    ]
    # First to flat order along rows, with each layer's columns together, then along columns.
    halves = [_rows_to_flat(column, layouts).T for column in columns]
    return _rows_to_flat(halves, layouts)


def _rows_to_flat(
    matrices: list[Float[Array, "_ K"]], layouts: tuple[Layout, ...]
) -> Float[Array, "P K"]:
    pairs = zip(layouts, matrices, strict=True)
    return to_flat(
        layouts, [matrix.reshape(*layout.shape, matrix.shape[-1]) for layout, matrix in pairs]
    )
