"""Memory of Jacobian rows, and the numbers of examples and directions that fit in it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from laplace_kit.curv.capture.blocks import Block, HeadRows
from laplace_kit.curv.capture.capture import capture
from laplace_kit.curv.objective import Objective
from laplace_kit.memory import Limits, readable
from laplace_kit.placement import shapes

# Arrays live at once in a captured pass, in units of one example's activations: the linearised pass
# with its inputs, and for each direction a cotangent and its image.
_LINEARISATION, _DIRECTION = 2, 2
# With fewer directions than this at a time, backward passes multiply matrices by single vectors.
_DIRECTIONS_WORTH_A_PASS = 8
# The same for examples and the forward pass.
_EXAMPLES_WORTH_A_PASS = 16


class Cost(NamedTuple):
    """Bytes of one example, `once` and for each `direction`, and the leaf that takes the most."""

    once: int
    direction: int
    leaf: str


class Held(NamedTuple):
    """Number of examples, and of directions of each, held at a time."""

    batch_size: int
    num_directions: int


def rows_cost(
    objective: Objective, block_work: Callable | None = None, *, for_outputs: bool = False
) -> Cost:
    """Estimate the bytes of the rows of one example, and of the work done with them.

    Parameters
    ----------
    objective
        The model, planned.
    block_work
        Maps a block of one direction to the additional bytes `(once, for each direction)` of the
        work with it; only the most expensive block counts, as blocks are processed one by one.
    for_outputs
        Whether the rows are those of the outputs, whose gradients examples share if a layer is a
        head, rather than rows of arbitrary directions.
    """
    found, example_bytes = objective.plan.layers, objective.plan.example_bytes
    blocks_of_one = _output_blocks_of_one if for_outputs else _blocks_of_one
    blocks = blocks_of_one.eval_shape(shapes(objective), objective.plan.one)
    heads = [isinstance(block, HeadRows) for block in blocks]
    direction = [
        _bytes(block.factors if head else block.gradients)
        for block, head in zip(blocks, heads, strict=True)
    ]
    # A parameter that enters no product is copied for each example, and as large as a gradient.
    once = [
        _bytes(jax.tree.leaves(block)[0]) if layer.product else gradient
        for layer, block, gradient in zip(found.layers, blocks, direction, strict=True)
    ]
    work = [block_work(block) if block_work else (0, 0) for block in blocks]
    totals = [sum(parts) + sum(more) for *parts, more in zip(once, direction, work, strict=True)]
    worst = totals.index(max(totals))
    leaves = (leaf for leaf in found.leaves if leaf.layer == worst)
    leaf = max(leaves, key=lambda leaf: math.prod(leaf.shape))  # the weight, not its bias
    return Cost(
        _LINEARISATION * example_bytes + 2 * sum(once) + max(w for w, _ in work),
        (0 if all(heads) else _DIRECTION * example_bytes)
        + 2 * sum(direction)
        + max(w for _, w in work),
        f"{leaf.path!r} {leaf.shape} ({leaf.kind})",
    )


def pair_bytes(objective: Objective, block_work: Callable) -> int:
    """Estimate the bytes of a pair of inputs with all outputs of both: the kernel and the work.

    Parameters
    ----------
    objective
        The model, planned.
    block_work
        As in `rows_cost`.
    """
    plan = objective.plan
    blocks = _blocks_of_one.eval_shape(shapes(objective), plan.one)
    work = max(block_work(block)[1] for block in blocks)
    return (work + plan.num_outputs * max(plan.output.dtype.itemsize, 4)) * plan.num_outputs


def choose_held(cost: Cost, num_directions: int, limits: Limits, sum_bytes: int = 0) -> Held:
    """Choose the numbers of examples and directions to hold at a time.

    Parameters
    ----------
    cost
        The cost of one example.
    num_directions
        All directions of an example.
    limits
        Bounds of the memory, and of the number of examples if it is given.
    sum_bytes
        The size of the sum to which each chunk is added.

    Raises
    ------
    ValueError
        If a single example with a single direction exceeds the memory limit.
    """
    limit, batch_size = limits.budget, limits.batch_size
    check_fits(cost, 1, limit)
    wanted = batch_size or _EXAMPLES_WORTH_A_PASS
    available = limit if batch_size else limits.working_set(sum_bytes)
    at_once = (available // wanted - cost.once) // cost.direction
    if batch_size is None:  # prefer fewer examples to fewer directions
        at_once = max(at_once, min(_DIRECTIONS_WORTH_A_PASS, (limit - cost.once) // cost.direction))
    blocks = -(-num_directions // max(at_once, 1))
    at_once = -(-num_directions // blocks)  # blocks as even as possible
    size = batch_size or max(available // (cost.once + at_once * cost.direction), 1)
    return Held(size, at_once)


def check_fits(cost: Cost, num_directions: int, limit: int, remedy: str = "") -> None:
    """Raise a `ValueError` if one example with all these directions exceeds a limit in bytes."""
    needed = cost.once + num_directions * cost.direction
    if needed > limit:
        raise ValueError(
            f"Found that the Jacobian rows of one example in {num_directions} direction(s) take "
            f"about {readable(needed)}, most of it for the parameter {cost.leaf}, expected "
            f"at most the memory limit of {readable(limit)}; {remedy}raise memory_limit=, "
            "or leave this parameter out with subset=."
        )


def multiplied_out(block: Block) -> tuple[int, int]:
    """Return the bytes of multiplying out rows with several positions."""
    if isinstance(block, HeadRows) or block.gradients.shape[2] == 1:
        return 0, 0
    return 0, 2 * block.layout.size * block.gradients.dtype.itemsize


def products_of_pairs(block: Block, num_directions: int) -> tuple[int, int]:
    """Return the bytes of products of inputs with inputs and of gradients with gradients."""
    itemsize, (_, width, out) = block.gradients.dtype.itemsize, block.layout.shape
    pairs = (width**2 + out**2) * itemsize
    rows = 2 * num_directions * width * out * itemsize
    return min(pairs, rows), multiplied_out(block)[1]


def products_with_columns(block: HeadRows) -> tuple[int, int]:
    """Return the bytes of products $L_n u$ in the outputs with the columns of a head."""
    return 0, 3 * block.layout.shape[2] * block.factors.dtype.itemsize


def projections(block: Block, num_vectors: int) -> tuple[int, int]:
    """Return the bytes of projecting rows on vectors."""
    out = block.layout.shape[2]
    if isinstance(block, HeadRows):
        return _projections_of_head(block, num_vectors)
    num = num_vectors * block.gradients.dtype.itemsize
    return num * out, num + multiplied_out(block)[1]


def _projections_of_head(block: HeadRows, num_vectors: int) -> tuple[int, int]:
    itemsize, values = block.factors.dtype.itemsize, block.inputs.shape[1] * block.layout.shape[2]
    multiplied = 0 if block.inputs.shape[1] == 1 or num_vectors == 1 else block.layout.size + values
    return 2 * values * itemsize, (num_vectors + 2 * multiplied) * itemsize


def _bytes(array: jax.ShapeDtypeStruct) -> int:
    return array.size * max(array.dtype.itemsize, 4)


@jax.jit
def _blocks_of_one(objective, x):
    captured = capture(objective, x)
    f = captured.outputs
    return captured.pull(jnp.zeros((1, 1, *f.shape[1:]), f.dtype)).blocks


@jax.jit
def _output_blocks_of_one(objective, x):
    return capture(objective, x).pull_outputs(jnp.arange(1)).blocks
