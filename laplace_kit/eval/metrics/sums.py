"""Sums over examples that stay accurate however many there are.

A float32 that counts one by one stops at 2^24: one more is less than half the distance to the next
number. Summed in blocks, and the blocks' sums in blocks again, all that is added is of about one
size, and the error grows with the logarithm of the number of examples.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Num

# Fewer than so many are summed at once: there, rounding is small and further operations cost more.
_BLOCK = 512


def over_examples(values: Num[Array, "N *rest"]) -> Num[Array, " *rest"]:
    """Return the sum over the first axis."""
    while len(values) > _BLOCK:
        padding = [(0, -len(values) % _BLOCK), *[(0, 0)] * (values.ndim - 1)]
        blocks = jnp.pad(values, padding).reshape(-1, _BLOCK, *values.shape[1:])
        values = jnp.sum(blocks, axis=1)
    return jnp.sum(values, axis=0)


def in_groups(
    values: Num[Array, " N"], groups: Int[Array, " N"], num_groups: int
) -> Num[Array, " B"]:
    """Return the sum of the values of each group; `groups` says in which each value is."""
    # As many blocks that all of their sums are no more than the values.
    block = max(_BLOCK, num_groups)
    num_blocks = -(-len(values) // block)
    places = jnp.arange(len(values)) // block * num_groups + groups
    sums = jax.ops.segment_sum(values, places, num_blocks * num_groups)
    return over_examples(sums.reshape(num_blocks, num_groups))
