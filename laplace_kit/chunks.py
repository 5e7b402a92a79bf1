"""Chunk sizes: the number of examples a step may hold, from the memory its program needs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from laplace_kit.data import Chunk, Data, InMemory, batch_spec
from laplace_kit.memory import Limits, held_bytes
from laplace_kit.placement import Placement, num_held, placement_of, shapes
from laplace_kit.sums import one_step
from laplace_kit.tree import num_bytes


def chunk_of_sum(
    fn: Callable, args: PyTree, data: Data, limits: Limits, num_vectors: int = 1
) -> int:
    """Return the number of examples for each device in `sum_over(fn, args, data, size)`.

    Parameters
    ----------
    fn, args, data
        As for `laplace_kit.sums.sum_over`. The step is traced for all data, or a batch, and also
        for a single example if these do not fit: no arithmetic is done.
    limits
        Bounds of the memory.
    num_vectors
        The number of vectors that share a pass through the model.
    """
    num = data.num_held
    if limits.batch_size:
        return min(limits.batch_size, num)
    prints = data.prints if isinstance(data, InMemory) else None
    weight = jax.ShapeDtypeStruct((data.num_first,), np.float32)
    step = Step(fn, args, jax.eval_shape(Chunk, *batch_spec(data), weight, prints))
    if num == 1 or step.count(num).bytes <= limits.reused:
        return num
    return limits.summed_chunk(num, step.example_bytes, step.count(1).result_bytes, num_vectors)


def chunk_of_map(
    fn: Callable, args: PyTree, x: PyTree, limits: Limits, placement: Placement | None = None
) -> int:
    """Return the number of inputs for each device in `map_over(fn, args, x, size)`.

    Parameters
    ----------
    fn, args, x, placement
        As for `laplace_kit.sums.map_over`; traced as in `chunk_of_sum`.
    limits
        Bounds of the memory.
    """
    step = Step(fn, args, x)
    num = num_held(step.num, placement or placement_of(x))
    if limits.batch_size:
        return min(limits.batch_size, num)
    if num == 1 or step.count(num).bytes <= limits.budget:
        return num
    return limits.chunk_size(step.example_bytes)


class Count(NamedTuple):
    """The bytes of a step's values, including its examples, and of its result."""

    bytes: int
    result_bytes: int


class Step(NamedTuple):
    """The computation for one chunk: a function `(args, chunk)`, and arrays or their shapes."""

    fn: Callable
    args: PyTree
    chunk: PyTree

    @property
    def num(self) -> int:
        """The number of examples in the chunk."""
        return jax.tree.leaves(self.chunk)[0].shape[0]

    @property
    def example_bytes(self) -> int:
        """The bytes that one more example adds."""
        num = max(self.num, 2)
        return max((self.count(num).bytes - self.count(1).bytes) // (num - 1), 1)

    def count(self, num: int) -> Count:
        """Return the bytes of a step with `num` examples; JAX caches the trace."""
        chunk = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((num, *a.shape[1:]), a.dtype), self.chunk
        )
        traced = one_step.trace(self.fn, shapes(self.args), chunk)
        own, result = map(num_bytes, (chunk, traced.out_info))
        return Count(held_bytes(traced.jaxpr.jaxpr) + own, result)
