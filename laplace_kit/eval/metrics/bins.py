"""Predictions sorted into bins, and what happened in each."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Num

from laplace_kit.eval.metrics import checks, sums, weighting
from laplace_kit.eval.metrics.classification import agreement
from laplace_kit.eval.metrics.inputs import metric
from laplace_kit.eval.metrics.ranking import ratio


class ReliabilityBins(NamedTuple):
    """Predictions grouped by confidence, the largest probability of an example.

    Bin `b` holds the `counts[b]` examples with a confidence in `(edges[b], edges[b + 1]]`; of these
    `confidence[b]` is the mean and `accuracy[b]` the fraction whose most probable class is the
    label, or the mean of what soft labels give to that class. Both are zero where the bin is empty.
    With weights, counts are their sums.
    """

    edges: Float[Array, " B+1"]
    counts: Num[Array, " B"]
    confidence: Float[Array, " B"]
    accuracy: Float[Array, " B"]


@metric
def reliability_bins(
    probs: ArrayLike, y: ArrayLike, num_bins: int = 15, *, weights: ArrayLike | None = None
) -> ReliabilityBins:
    """Compare confidence with accuracy in `num_bins` bins of equal width.

    Parameters
    ----------
    probs, y, weights
        Probabilities `(N, C)`, labels `(N,)` or `(N, C)` and weights `(N,)`, as for `accuracy`.
    num_bins
        Number of bins between 0 and 1.

    Raises
    ------
    ValueError
        If probabilities, labels or weights are not valid, or `num_bins` is not positive.
    """
    checks.check_num_bins(num_bins)
    probs, targets = checks.labelled(probs, y)
    weights = weighting.checked(weights, len(probs), probs.dtype)
    edges = equal_width_edges(num_bins, probs.dtype)
    return _averages_of_most_probable(probs, targets, weights, edges)


@metric
def equal_mass_bins(
    probs: ArrayLike, y: ArrayLike, num_bins: int = 15, *, weights: ArrayLike | None = None
) -> ReliabilityBins:
    """Compare confidence with accuracy in `num_bins` bins of equally many examples.

    The confidences, sorted, are cut into `num_bins` groups whose sizes differ by one at most, the
    larger ones first. Equal confidences stay together, in the lower bin, so that the examples'
    order does not matter.

    Parameters
    ----------
    probs, y, num_bins, weights
        As for `reliability_bins`, with the same errors. Weights that are no whole numbers are
        scaled to sum to the number of examples that tell as much.
    """
    checks.check_num_bins(num_bins)
    probs, targets = checks.labelled(probs, y)
    weights = weighting.as_counts(weighting.checked(weights, len(probs), probs.dtype))
    edges = _equal_mass_edges(probs, weights, num_bins)
    return _averages_of_most_probable(probs, targets, weights, edges)


@jax.jit
def _averages_of_most_probable(probs, targets, weights, edges) -> ReliabilityBins:
    return averages(jnp.max(probs, axis=1), agreement(probs, targets), weights, edges)


def equal_width_edges(num_bins: int, dtype: jnp.dtype) -> Float[Array, " E"]:
    """Return the edges of bins of equal width between 0 and 1."""
    return jnp.linspace(0, 1, num_bins + 1, dtype=dtype)


@partial(jax.jit, static_argnames="num_bins")
def _equal_mass_edges(
    probs: Float[Array, "N C"], weights: Num[Array, " N"], num_bins: int
) -> Float[Array, " E"]:
    """Return 0, the largest confidence of every group but the last, and 1."""
    values = jnp.max(probs, axis=1)
    order = jnp.argsort(values)
    before = jnp.cumsum(weights[order])
    size, num_larger = jnp.divmod(sums.over_examples(weights), num_bins)
    groups = jnp.arange(1, num_bins)
    ranks = groups * size + jnp.minimum(groups, num_larger)
    if jnp.issubdtype(weights.dtype, jnp.floating):
        # Counts are whole: half of one keeps rounding from moving an example to the next group.
        ranks = ranks - 0.5
    last = jnp.searchsorted(before, ranks, side="left")
    inner = values[order][jnp.clip(last, 0, values.size - 1)]
    return jnp.pad(inner, 1, constant_values=(0, 1))


def bin_indices(values: Float[Array, "*shape"], edges: Float[Array, " E"]) -> Int[Array, "*shape"]:
    """Return for each value the bin `(edges[b], edges[b + 1]]` that it is in."""
    return jnp.searchsorted(edges[1:-1], values, side="left")


@jax.jit
def averages(
    predicted: Float[Array, " N"],
    observed: Float[Array, " N"],
    weights: Num[Array, " N"],
    edges: Float[Array, " E"],
) -> ReliabilityBins:
    """Return counts and means of what was predicted and observed in the bins of the predicted."""
    num_bins = edges.shape[0] - 1
    indices = bin_indices(predicted, edges)
    counts = sums.in_groups(weights, indices, num_bins)

    def means(values: Float[Array, " N"]) -> Float[Array, " B"]:
        return ratio(sums.in_groups(weights * values, indices, num_bins), counts)

    # Means of small deviations are rounded less than those of what they deviate from.
    centres = (edges[1:] + edges[:-1]) / 2
    confidence = jnp.where(counts == 0, 0, centres + means(predicted - centres[indices]))
    return ReliabilityBins(edges, counts, confidence, means(observed))
