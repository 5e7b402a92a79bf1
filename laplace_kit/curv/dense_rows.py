r"""A dense curvature matrix whose rows are spread over the devices that hold the examples.

Each device sums its own rows over all examples. The Jacobian rows of a chunk are sent to all
devices in factors, which are small, and each multiplies them by its own columns of the dense rows.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.curv.capture.blocks import Block, FactoredRows, HeadRows
from laplace_kit.curv.capture.capture import capture
from laplace_kit.curv.capture.cost import choose_held, rows_cost
from laplace_kit.curv.capture.layout import to_flat
from laplace_kit.curv.capture.rows import Rows
from laplace_kit.curv.ggn import GaussNewtonOperator, sum_directions
from laplace_kit.data import Chunk
from laplace_kit.memory import evenly
from laplace_kit.placement import Placement, by_last_axis, by_rows, everywhere, rounded_up
from laplace_kit.sums import sum_over
from laplace_kit.tree import replace


def dense_rows(operator: GaussNewtonOperator) -> Float[Array, "Q Q"]:
    r"""Return the matrix in flat order, by rows, with rows and columns of zeros up to Q.

    Parameters
    ----------
    operator
        Over data that are spread over D devices.

    Returns
    -------
    matrix
        In float32 or better; Q is P, rounded up to a multiple of D. Cost: R backward passes, and
        $2 N P^2 / D$ operations for each device, or $2 N R P^2 / D$ where a weight is used at more
        positions than there are columns. The symmetry, which `to_dense` uses, saves nothing here.

    Raises
    ------
    ValueError
        If one example with one direction exceeds the memory limit.
    """
    placement, num = operator.data.placement, operator.shape[0]
    num_rows = rounded_up(num, placement)
    parts = placement.num_parts
    cost = rows_cost(operator.objective, partial(_work, parts, num_rows))
    columns = operator.num_columns(operator.plan.output.shape)
    held = choose_held(cost, columns, operator.limits, 4 * num_rows**2 // parts)
    size = operator.limits.batch_size or evenly(operator.data.num_held, held.batch_size)
    fn = _RowsOfGram(placement, num_rows, held.num_directions)
    step = replace(operator, data=None)
    total = sum_over(fn, step, operator.data, size, together=True)
    return total if operator.scale is None else operator.scale * total


def _work(parts: int, num_rows: int, block: Block) -> tuple[int, int]:
    """Return the bytes of the factors of all devices, and of the dense rows in two layouts."""
    itemsize = 4 if isinstance(block, HeadRows) else block.gradients.dtype.itemsize
    factors = sum(leaf.size for leaf in jax.tree.leaves(block))
    return 0, (parts * factors + 3 * num_rows) * itemsize


class _RowsOfGram(NamedTuple):
    """One chunk's part of all rows, each on its own device; hashable."""

    placement: Placement
    num_rows: int
    num_directions: int

    title = "dense matrix by rows"

    def __call__(self, operator: GaussNewtonOperator, chunk: Chunk) -> Float[Array, "Q Q"]:
        captured = capture(operator.objective, chunk.x)
        return sum_directions(operator, captured, chunk, self.num_directions, self.of_rows)

    def of_rows(self, rows: Rows) -> Float[Array, "Q Q"]:
        dense = by_rows(self._filled(rows.to_dense()), self.placement)
        own = by_last_axis(dense, self.placement)
        products = [self._combined(block, own) for block in rows.blocks]
        # The columns of a symmetric matrix are its rows.
        columns = by_last_axis(to_flat(rows.layouts, products), self.placement)
        return by_rows(self._filled(columns.T), self.placement)

    def _combined(self, block: Block, own: Float[Array, "B R K"]) -> Float[Array, "G I O K"]:
        several = isinstance(block, FactoredRows) and block.inputs.shape[1] > own.shape[1]
        if several:  # fewer operations multiplied out
            dense = everywhere(block.to_dense(), self.placement)
            found = jnp.einsum("brgio,brk->giok", dense, own)
        else:
            found = everywhere(block, self.placement).combine(own)
        return by_last_axis(found, self.placement)

    def _filled(self, array: Float[Array, "*any P"]) -> Float[Array, "*any Q"]:
        missing = self.num_rows - array.shape[-1]
        return jnp.pad(array, (*((0, 0),) * (array.ndim - 1), (0, missing)))
