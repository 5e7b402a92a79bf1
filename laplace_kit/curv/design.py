r"""The design matrix of the linearised model, $\Phi = S^\top J$ over all data, held in factors.

Its row (n, r) is $\sqrt{w_n} J_n^\top s_{nr}$ with $S_n$ the curvature's factor in the outputs and
$w_n$ the weight of an example, so that a Gauss-Newton matrix is $\Phi^\top \Phi$. In place of
N R rows of P entries, each layer keeps inputs and gradients (see `blocks.py`), and products go over
some examples at a time.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from laplace_kit.curv.capture.blocks import Block, FactoredRows, HeadRows, LookupRows
from laplace_kit.curv.capture.capture import capture
from laplace_kit.curv.capture.cost import check_fits, rows_cost
from laplace_kit.curv.capture.layout import to_flat
from laplace_kit.curv.capture.rows import Rows, alike
from laplace_kit.curv.ggn import GaussNewtonOperator
from laplace_kit.curv.objective import Objective, per_example, per_example_factor
from laplace_kit.data import InMemory, whole
from laplace_kit.host import fetch
from laplace_kit.memory import Limits
from laplace_kit.placement import Placement, automatic, shapes
from laplace_kit.sums import chunks, map_over, sum_over
from laplace_kit.tree import pytree_dataclass, replace


@pytree_dataclass(static=("memory_limit", "placement"))
class Design:
    r"""$\Phi$ `(M, P)` with M = N R, as `rows` of N examples with R directions each.

    `placement` tells over which devices examples are spread, if they are.
    """

    rows: Rows
    memory_limit: int | None = None
    placement: Placement | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix's shape, `(M, P)`."""
        num, columns = self.rows.blocks[0].gradients.shape[:2]
        return num * columns, sum(layout.size for layout in self.rows.layouts)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the factors."""
        return self.rows.blocks[0].gradients.dtype

    def project(self, vectors: Float[Array, "K P"]) -> Float[Array, "K M"]:
        r"""Return $\Phi v$ for K vectors."""
        total = jnp.zeros((), vectors.dtype)
        for block in self.rows.blocks:
            matrices = block.layout.to_matrix(vectors.T)
            size = self._examples(block, len(vectors))
            total += map_over(_project, matrices, block, size, self.placement)
        # Every device has the result, as triangular systems are solved by one.
        return automatic(lambda of: of.reshape(self.shape[0], len(vectors)).T, total)

    def combine(self, coefficients: Float[Array, "K M"]) -> Float[Array, "K P"]:
        r"""Return $\Phi^\top c$ for K vectors."""
        num = len(self.rows.blocks[0].gradients)
        columns = coefficients.T.reshape(num, -1, len(coefficients))
        matrices = []
        for block in self.rows.blocks:
            data = InMemory(block, columns, placement=self.placement)
            size = self._examples(block, len(coefficients))
            matrices.append(sum_over(_combine, None, data, size))
        return to_flat(self.rows.layouts, matrices).T

    def cross(self, rows: Rows, scale: Float[Array, " P"]) -> Float[Array, "B R M"]:
        r"""Return $J \operatorname{diag}(d) \Phi^\top$ for a batch of rows of the same model.

        If all entries of the scale that share a layer's input agree, as with one prior precision
        for each leaf, a pair of examples takes $I + R^2 O$ operations per layer, otherwise
        $I O + R O + R^2 O$. T positions count as T inputs, or their rows are multiplied out.
        """
        return automatic(partial(_sum_of_crosses, self._room), by_example(rows), self.rows, scale)

    def gram(self, scale: Float[Array, " P"]) -> Float[Array, "M M"]:
        r"""Return $\Phi \operatorname{diag}(d) \Phi^\top$; see `cross`."""
        return self.cross(self.rows, scale).reshape(self.shape[0], -1)

    def weighted_squares(self, weights: Float[Array, "M M"]) -> Float[Array, " P"]:
        r"""Return the diagonal of $\Phi^\top W \Phi$, at the cost of a `gram` of any scale.

        It is the transpose of `gram`, as both are linear.
        """
        return automatic(partial(_weighted_squares, self._room), self.rows, weights)

    def scaled(self, factor: float | Float[Array, ""]) -> "Design":
        r"""Return the matrix times a number."""
        blocks = [replace(b, gradients=b.gradients * factor) for b in self.rows.blocks]
        return replace(self, rows=Rows(tuple(blocks)))

    @property
    def _room(self) -> int:
        return Limits(memory=self.memory_limit).working_set()

    def _examples(self, block: Block, num_vectors: int) -> int:
        """Return the number of examples to multiply at a time with `num_vectors` vectors."""
        columns, positions = block.gradients.shape[1:3]
        hidden = math.prod(block.gradients.shape[2:]) * num_vectors
        if positions > columns:  # multiplied out
            hidden = max(hidden, block.layout.size * (columns + num_vectors))
        return max(self._room // (hidden * block.gradients.dtype.itemsize), 1)


def design_matrix(operator: GaussNewtonOperator) -> Design:
    r"""Return $\Phi$ with $\Phi^\top \Phi$ the operator's matrix, for all of its data.

    Parameters
    ----------
    operator
        A Gauss-Newton operator over data in memory or a stream, with R columns in its factor.

    Returns
    -------
    design
        In float32 or better. A layer used at T positions takes $T (I + R O)$ numbers per example, a
        parameter that enters no product R times its size. Cost: one pass over the data with R
        backward passes.

    Raises
    ------
    ValueError
        If one example with all of its columns exceeds the memory limit.
    """
    columns, limits = operator.num_columns(operator.plan.output.shape), operator.limits
    cost = rows_cost(operator.objective)
    check_fits(cost, columns, limits.budget)
    held = cost.once + columns * cost.direction
    size = limits.batch_size or max(limits.working_set() // held, 1)
    kernel = replace(operator, data=None)
    if isinstance(operator.data, InMemory):
        placement = operator.data.placement
        rows = map_over(_rows, kernel, whole(operator.data), size, placement)
        return Design(rows, limits.memory, placement)
    return Design(_gather(kernel, operator.data, size), limits.memory)


def num_entries(objective: Objective, columns: int) -> int:
    """Return the number of entries that the design matrix's factors hold for one example.

    Parameters
    ----------
    objective
        The model, planned.
    columns
        R, the number of columns of the curvature's factor in the outputs.
    """
    leaves = jax.tree.leaves(_row_of_one.eval_shape(shapes(objective), objective.plan.one, columns))
    return sum(leaf.size for leaf in leaves)


@partial(jax.jit, static_argnames="columns")
def _row_of_one(objective, x, columns):
    captured = capture(objective, x)
    f = captured.outputs
    return captured.pull(jnp.zeros((1, columns, *f.shape[1:]), f.dtype))


def _gather(operator, data, size) -> Rows:
    parts, kept = [], []
    for chunk in chunks(data, size, "rows of the design matrix"):
        parts.append(_compiled_rows(operator, chunk))
        kept.append(fetch(chunk.weight) > 0)
    rows = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    kept = np.flatnonzero(np.concatenate(kept))
    if len(kept) == len(rows.blocks[0].gradients):
        return rows
    return jax.tree.map(lambda leaf: leaf[kept], rows)


def by_example(rows: Rows) -> Rows:
    """Return the rows with an axis of examples on every factor, so that they can be cut by it."""
    blocks = (b.factored() if isinstance(b, HeadRows) else b for b in rows.blocks)
    return Rows(tuple(blocks))


def _rows(operator, chunk):
    captured = capture(operator.objective, chunk.x)
    f = captured.outputs
    factor = operator.output_factor(f, chunk, jnp.arange(operator.num_columns(f.shape[1:])))
    if operator.scale is not None:
        factor = factor * jnp.sqrt(jnp.asarray(operator.scale, factor.dtype))
    dtype = jnp.promote_types(operator.dtype, jnp.float32)
    return captured.pull(per_example_factor(factor, chunk.weight)).astype(dtype)


_compiled_rows = jax.jit(_rows)


def _sum_of_crosses(room, rows, own, scale):
    total = jnp.zeros((), scale.dtype)
    rows, own = alike(rows, own)
    for block, other in zip(rows.blocks, own.blocks, strict=True):
        total += _cross(block, other, block.layout.to_matrix(scale), room)
    return total.reshape(*total.shape[:2], -1)


def _weighted_squares(room, rows, weights):
    num = len(rows.blocks[0].gradients)
    weights = weights.reshape(num, -1, num, weights.shape[0] // num)
    matrices = []
    for block in rows.blocks:
        kernel = partial(_by_pairs, block, block, room=room)
        shape = jax.ShapeDtypeStruct(block.layout.shape, weights.dtype)
        matrices += jax.linear_transpose(kernel, shape)(weights)
    return to_flat(rows.layouts, matrices)


def _project(matrices, block):
    return block.project(matrices)


def _combine(_, chunk):
    return chunk.x.combine(per_example(chunk.y, chunk.weight))


# --- all pairs of examples ------------------------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _cross(block, other, scale, room):
    """Return the kernel of one layer, `(B, R, N, R)`, the cheaper way if the scale allows it."""
    if not _gains_by_sharing(block, other):
        return _by_pairs(block, other, scale, room)
    shared = scale[:, :, :1]
    return jax.lax.cond(
        jnp.all(scale == shared),
        lambda: _by_pairs(block, other, shared, room),
        lambda: _by_pairs(block, other, scale, room),
    )


@partial(_cross.defjvp, symbolic_zeros=True)
def _cross_jvp(room, primals, tangents):
    # Which branch is cheaper depends on values; derivatives are those of the general branch.
    block, other, scale = primals
    *row_tangents, scale_tangent = jax.tree.map(_instantiate, tangents, is_leaf=_is_zero)
    change = _by_pairs(block, other, scale_tangent, room)
    if not all(map(_is_zero, jax.tree.leaves(tangents[:2], is_leaf=_is_zero))):
        kernel = partial(_by_pairs, scale=scale, room=room)
        change += jax.jvp(kernel, (block, other), tuple(row_tangents))[1]
    return _cross(block, other, scale, room), change


def _is_zero(tangent) -> bool:
    return isinstance(tangent, SymbolicZero)


def _instantiate(tangent):
    if not _is_zero(tangent):
        return tangent
    zeros = np.zeros if tangent.dtype == jax.dtypes.float0 else jnp.zeros
    return zeros(tangent.shape, tangent.dtype)


def _gains_by_sharing(block: Block, other: Block) -> bool:
    """Return whether a scale that a layer's outputs share saves operations."""
    return (
        isinstance(block, FactoredRows)
        and block.layout.shape[1] > 1
        and not block.pairs_multiply_out(other)
    )


class _Sizes(NamedTuple):
    """Numbers of examples held at a time on either side."""

    num: int
    num_other: int


def _by_pairs(block: Block, other: Block, scale: Array, room: int) -> Float[Array, "B R D S"]:
    """Return `block.cross(other, scale)`, computed for a chunk of pairs at a time."""
    num, num_other = len(block.gradients), len(other.gradients)
    sizes = _sizes(block, other, scale.shape[2] == 1, room)
    if sizes == (num, num_other):
        return block.cross(other, scale)
    block, other = _in_chunks(block, sizes.num), _in_chunks(other, sizes.num_other)

    # Derivatives keep only the inputs, and recompute the intermediates of each pair.
    @partial(jax.checkpoint, prevent_cse=False)
    def pair_kernel(pair):
        left = jax.tree.map(lambda leaf: leaf[pair[0]], block)
        right = jax.tree.map(lambda leaf: leaf[pair[1]], other)
        return left.cross(right, scale)

    steps, steps_other = len(block.gradients), len(other.gradients)
    pairs = jnp.unravel_index(jnp.arange(steps * steps_other), (steps, steps_other))
    kernel = jax.lax.map(pair_kernel, pairs)
    columns, columns_other = kernel.shape[2], kernel.shape[4]
    kernel = kernel.reshape(steps, steps_other, sizes.num, columns, sizes.num_other, columns_other)
    kernel = jnp.transpose(kernel, (0, 2, 3, 1, 4, 5))
    kernel = kernel.reshape(
        steps * sizes.num, columns, steps_other * sizes.num_other, columns_other
    )
    return kernel[:num, :, :num_other]


def _in_chunks(block: Block, size: int) -> Block:
    """Cut the leading axis, filled up with rows of zeros, into chunks."""
    steps = -(-len(block.gradients) // size)

    def cut(leaf):
        rest = [(0, 0)] * (leaf.ndim - 1)
        padded = jnp.pad(leaf, [(0, steps * size - len(leaf)), *rest])
        return padded.reshape(steps, size, *leaf.shape[1:])

    return jax.tree.map(cut, block)


def _sizes(block: Block, other: Block, shares: bool, room: int) -> _Sizes:
    """Choose chunks so that pairs, and rows that are multiplied out, fit."""
    num, num_other = len(block.gradients), len(other.gradients)
    pair, multiplied = _bytes(block, other, shares)
    most = max(room // (4 * multiplied), 1) if multiplied else max(num, num_other)
    both = min(max(int((room // (2 * pair)) ** 0.5), 1), most)
    held = min(num, both)
    held_other = min(num_other, max(room // (2 * pair * held), 1), most)
    return _Sizes(min(num, max(room // (2 * pair * held_other), 1), most), held_other)


def _bytes(block: Block, other: Block, shares: bool) -> tuple[int, int]:
    """Return the bytes of a pair of examples, and of one example that is multiplied out."""
    (columns, positions), (columns_other, positions_other) = (
        rows.gradients.shape[1:3] for rows in (block, other)
    )
    itemsize, (groups, width, out) = block.gradients.dtype.itemsize, block.layout.shape
    pairs, places = columns * columns_other, positions * positions_other
    if isinstance(block, LookupRows):
        return 2 * pairs * places * itemsize, 0
    if block.pairs_multiply_out(other) or (places > 1 and not shares):
        return pairs * itemsize, 2 * max(columns, columns_other) * block.layout.size * itemsize
    if shares:
        return 2 * groups * max(pairs * places, columns * positions_other * out) * itemsize, 0
    if width == 1:
        return 2 * groups * pairs * itemsize, 0
    return (groups * (width + (1 + columns) * out) + pairs) * itemsize, 0
