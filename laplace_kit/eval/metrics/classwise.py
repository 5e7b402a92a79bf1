r"""The class-wise calibration error as a function of weights, fast for many classes and resamples.

With $d_{nc} = y_{nc} - p_{nc}$ it is $\frac{1}{C} \sum_c \sum_b |\sum_{n \in b} w_n d_{nc}| /
\sum_n w_n$, where the sum over a bin is linear in the weights. As each row sums to one, few of its
probabilities lie above the lowest bin: these are summed by bin. For the lowest bins, the sums of
all classes are one matrix-vector product.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from laplace_kit.eval.metrics import bins, checks
from laplace_kit.eval.metrics.sums import over_examples

_BLOCK = 4096  # examples that can be summed in float32 without harmful rounding


class ClassGaps(NamedTuple):
    """Labels minus probabilities, for C classes and B bins of equal width of the probabilities.

    Attributes
    ----------
    lowest
        Gaps whose probability is in the lowest bin, zero elsewhere.
    others
        Gaps of the K largest probabilities of each example, zero in the lowest bin.
    places
        Flat index of class and bin of each of `others`, below C B.
    """

    lowest: Float[Array, "N C"]
    others: Float[Array, "N K"]
    places: Int[Array, "N K"]


@partial(jax.jit, static_argnames="num_bins")
def class_gaps(
    probs: Float[Array, "N C"], targets: Float[Array, "N C"], num_bins: int
) -> ClassGaps:
    """Return the gaps between labels, as distributions over classes, and probabilities, by bin."""
    edges = bins.equal_width_edges(num_bins, probs.dtype)
    gaps, indices = targets - probs, bins.bin_indices(probs, edges)
    # A bound on how many entries of a row, which sums to one within TOLERANCE, exceed 1 / num_bins.
    most = min(probs.shape[1], math.ceil(num_bins * (1 + checks.TOLERANCE)))
    classes = jax.lax.top_k(probs, most)[1]
    others = jnp.take_along_axis(jnp.where(indices == 0, 0, gaps), classes, axis=1)
    places = classes * num_bins + jnp.take_along_axis(indices, classes, axis=1)
    return ClassGaps(jnp.where(indices == 0, gaps, 0), others, places)


@partial(jax.jit, static_argnames="num_bins")
def mean_class_gap(gaps: ClassGaps, weights: Num[Array, " N"], num_bins: int) -> Float[Array, ""]:
    """Return the error from `class_gaps` and non-negative weights, one for each example."""
    num_examples, num_classes = gaps.lowest.shape
    weights = weights.astype(gaps.lowest.dtype)

    def sums(weights: Array, gaps: ClassGaps) -> tuple[Array, Array]:
        each = (weights[:, None] * gaps.others).ravel()
        in_bins = jax.ops.segment_sum(each, gaps.places.ravel(), num_classes * num_bins)
        return jnp.matmul(weights, gaps.lowest, precision="highest"), in_bins

    num_blocks = -(-num_examples // _BLOCK)
    short = -num_examples % num_blocks

    def in_blocks(part: Array) -> Array:
        padded = jnp.pad(part, [(0, short), *[(0, 0)] * (part.ndim - 1)])
        return padded.reshape(num_blocks, -1, *part.shape[1:])

    block_sums = jax.vmap(sums)(*jax.tree.map(in_blocks, (weights, gaps)))
    total = sum(jnp.sum(jnp.abs(jnp.sum(part, axis=0))) for part in block_sums)
    return total / (num_classes * over_examples(weights))
