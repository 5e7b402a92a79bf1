"""Sums over examples that stay accurate for any number of examples.

A float32 counter stops at 2^24, where adding one no longer changes it. Pairwise summation adds
numbers of similar size, block sums of block sums, so that the error grows only with the logarithm
of the number of examples.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Num

# Up to this many values are summed at once: rounding is small, and more blocks would cost more.
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
    """Return the sum of the values in each group; `groups` holds the group index of each value."""
    # Blocks at least as long as the number of groups: there are no more block sums than values.
    block = max(_BLOCK, num_groups)
    num_blocks = -(-len(values) // block)
    places = jnp.arange(len(values)) // block * num_groups + groups
    sums = jax.ops.segment_sum(values, places, num_blocks * num_groups)
    return over_examples(sums.reshape(num_blocks, num_groups))
