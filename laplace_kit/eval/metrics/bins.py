"""Calibration bins: counts, mean confidence and accuracy of binned predictions."""

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

    Bin `b` holds the `counts[b]` examples whose confidence is in `(edges[b], edges[b + 1]]`, with
    mean confidence `confidence[b]`. `accuracy[b]` is the fraction whose most probable class is the
    label; for soft labels, it is the mean label probability of that class. Both are zero in empty
    bins. With weights, counts are sums of weights.
    """

    edges: Float[Array, " B+1"]
    counts: Num[Array, " B"]
    confidence: Float[Array, " B"]
    accuracy: Float[Array, " B"]


@metric
def reliability_bins(
    probs: ArrayLike, y: ArrayLike, num_bins: int = 15, *, weights: ArrayLike | None = None
) -> ReliabilityBins:
    """Return mean confidence and accuracy in `num_bins` bins of equal width.

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
    """Return mean confidence and accuracy in `num_bins` bins with equal numbers of examples.

    The sorted confidences are split into `num_bins` groups whose sizes differ by at most one, the
    larger groups first. Equal confidences stay together in the lower bin, so that the order of the
    examples does not matter.

    Parameters
    ----------
    probs, y, num_bins, weights
        As for `reliability_bins`, with the same errors. Weights that are not integer-valued are
        scaled to sum to the effective number of examples.
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
    """Return 0, the largest confidence of each group except the last, and 1."""
    values = jnp.max(probs, axis=1)
    order = jnp.argsort(values)
    before = jnp.cumsum(weights[order])
    size, num_larger = jnp.divmod(sums.over_examples(weights), num_bins)
    groups = jnp.arange(1, num_bins)
    ranks = groups * size + jnp.minimum(groups, num_larger)
    if jnp.issubdtype(weights.dtype, jnp.floating):
        # Counts are integers: the offset of 1/2 keeps rounding from moving an example up a group.
        ranks = ranks - 0.5
    last = jnp.searchsorted(before, ranks, side="left")
    inner = values[order][jnp.clip(last, 0, values.size - 1)]
    return jnp.pad(inner, 1, constant_values=(0, 1))


def bin_indices(values: Float[Array, "*shape"], edges: Float[Array, " E"]) -> Int[Array, "*shape"]:
    """Return the index `b` of the bin `(edges[b], edges[b + 1]]` that holds each value."""
    return jnp.searchsorted(edges[1:-1], values, side="left")


@jax.jit
def averages(
    predicted: Float[Array, " N"],
    observed: Float[Array, " N"],
    weights: Num[Array, " N"],
    edges: Float[Array, " E"],
) -> ReliabilityBins:
    """Return the counts and the means of predicted and observed values, binned by prediction."""
    num_bins = edges.shape[0] - 1
    indices = bin_indices(predicted, edges)
    counts = sums.in_groups(weights, indices, num_bins)

    def means(values: Float[Array, " N"]) -> Float[Array, " B"]:
        return ratio(sums.in_groups(weights * values, indices, num_bins), counts)

    # Averaging deviations from the bin centres loses less to rounding than averaging the values.
    centres = (edges[1:] + edges[:-1]) / 2
    confidence = jnp.where(counts == 0, 0, centres + means(predicted - centres[indices]))
    return ReliabilityBins(edges, counts, confidence, means(observed))
