r"""The class-wise calibration error as a function of weights, for many classes and resamples.

With $d_{nc} = y_{nc} - p_{nc}$ it is $\frac{1}{C} \sum_c \sum_b |\sum_{n \in b} w_n d_{nc}| /
\sum_n w_n$: linear in the weights within each bin. As a row sums to one, few of its probabilities
are beyond the lowest bin. These are summed one by one; all the others of a class are a product with
the weights.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from laplace_kit.eval.metrics import bins, checks
from laplace_kit.eval.metrics.sums import over_examples

_BLOCK = 4096  # examples whose sum rounding to float32 does not harm


class ClassGaps(NamedTuple):
    """Labels minus probabilities by the bins of these, of C classes and B bins of equal width.

    Attributes
    ----------
    lowest
        Those in the lowest bin of their class, zero elsewhere.
    others
        Those of the K largest probabilities of each example, zero in the lowest bin.
    places
        The number of the class and bin of each of `others`, of C B in all.
    """

    lowest: Float[Array, "N C"]
    others: Float[Array, "N K"]
    places: Int[Array, "N K"]


@partial(jax.jit, static_argnames="num_bins")
def class_gaps(
    probs: Float[Array, "N C"], targets: Float[Array, "N C"], num_bins: int
) -> ClassGaps:
    """Return what the error needs of every example.

    Parameters
    ----------
    probs, targets
        Probabilities, and labels as distributions.
    num_bins
        The number of bins of equal width between 0 and 1.
    """
    edges = bins.equal_width_edges(num_bins, probs.dtype)
    gaps, indices = targets - probs, bins.bin_indices(probs, edges)
    # So many entries of a row that sums to one, with what is tolerated, can exceed 1 / num_bins.
    most = min(probs.shape[1], math.ceil(num_bins * (1 + checks.TOLERANCE)))
    classes = jax.lax.top_k(probs, most)[1]
    others = jnp.take_along_axis(jnp.where(indices == 0, 0, gaps), classes, axis=1)
    places = classes * num_bins + jnp.take_along_axis(indices, classes, axis=1)
    return ClassGaps(jnp.where(indices == 0, gaps, 0), others, places)


@partial(jax.jit, static_argnames="num_bins")
def mean_class_gap(gaps: ClassGaps, weights: Num[Array, " N"], num_bins: int) -> Float[Array, ""]:
    """Return the error for weights of the examples, none of which is negative.

    Parameters
    ----------
    gaps, num_bins
        As `class_gaps` has them.
    weights
        One for each example.
    """
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

    of_blocks = jax.vmap(sums)(*jax.tree.map(in_blocks, (weights, gaps)))
    total = sum(jnp.sum(jnp.abs(jnp.sum(part, axis=0))) for part in of_blocks)
    return total / (num_classes * over_examples(weights))
