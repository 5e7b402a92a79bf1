r"""Metrics of classifiers from sums over the examples in order of confidence.

The examples are sorted once. For each weighting, the sums of weights, of gaps between correctness
and confidence, and of correct predictions up to every place give all bins, of equal width or of
equal mass, and the risk-coverage curve.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

from laplace_kit.eval.statistics.weighting import (
    Ranking,
    Weightings,
    are_counts,
    checked,
    cumulated,
    effective_size,
    ranked,
    ratio,
    up_to_ends,
)
from laplace_kit.host import fetch_array

NUM_BINS = 15


class Bins(NamedTuple):
    """Sums over the examples of each of B bins, for R weightings.

    Attributes
    ----------
    counts
        Sums of the weights.
    hits
        Sums of weights times correctness.
    gaps
        Sums of weights times correctness minus confidence.
    """

    counts: Float[np.ndarray, "R B"]
    hits: Float[np.ndarray, "R B"]
    gaps: Float[np.ndarray, "R B"]


class BinnedBoth(NamedTuple):
    """Bins of equal width, and of equal mass."""

    widths: Bins
    masses: Bins


def binned(
    confidence: Ranking, correct: Float[np.ndarray, " N"], weights: Weightings, num_bins: int
) -> BinnedBoth:
    """Return the sums over bins of equal width and of equal mass.

    Parameters
    ----------
    confidence
        The examples ranked by confidence.
    correct
        The probability of the predicted class in the label of each example.
    weights
        The weightings.
    num_bins
        As for `laplace_kit.eval.metrics.equal_mass_bins`, whose bins these are.
    """
    ordered, right = weights[:, confidence.order], correct[confidence.order]
    counts, hits, gaps = (
        cumulated(part)
        for part in (ordered, ordered * right, ordered * (right - confidence.values))
    )
    sums = (counts, hits, gaps)
    fixed = width_places(confidence, num_bins)
    by_width = Bins(*(np.diff(of[:, fixed], axis=1) for of in sums))
    scale = np.ones(len(weights))
    if not are_counts(weights):
        scale = counts[:, -1] / np.square(ordered).sum(axis=1)
    moving = _mass_places(confidence, counts * scale[:, None], num_bins)
    by_mass = (np.diff(np.take_along_axis(of, moving, axis=1), axis=1) for of in sums)
    return BinnedBoth(by_width, Bins(*(scale[:, None] * part for part in by_mass)))


def width_places(confidence: Ranking, num_bins: int) -> np.ndarray:
    """Return where each bin of equal width begins in the ranking, and the number of examples."""
    values = confidence.values
    edges = np.linspace(0, 1, num_bins + 1)[1:-1].astype(values.dtype)
    return np.concatenate([[0], np.searchsorted(values, edges, side="right"), [len(values)]])


def _mass_places(
    confidence: Ranking, counts: Float[np.ndarray, "R _"], num_bins: int
) -> np.ndarray:
    """Return where each bin of equal mass begins for each weighting; ties stay in one bin."""
    num = len(confidence.values)
    size, num_larger = np.divmod(counts[:, -1], num_bins)
    groups = np.arange(1, num_bins)
    ranks = size[:, None] * groups + np.minimum(groups, num_larger[:, None])
    # The offset of 1/2 keeps rounding from moving an example up a bin: counts are integers.
    last = [np.searchsorted(row[1:], of - 0.5) for row, of in zip(counts, ranks, strict=True)]
    inner = confidence.ends[confidence.group[np.minimum(last, num - 1)]]
    return np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (0, num)))


# --- errors of binned confidence ------------------------------------------------------------------


def mean_gap(bins: Bins) -> Float[np.ndarray, " R"]:
    """Return the expected calibration error."""
    return np.abs(bins.gaps).sum(axis=1) / bins.counts.sum(axis=1)


def largest_gap(bins: Bins) -> Float[np.ndarray, " R"]:
    """Return the maximum calibration error."""
    return np.abs(ratio(bins.gaps, bins.counts)).max(axis=1)


def debiased_gap(bins: Bins) -> Float[np.ndarray, " R"]:
    """Return the root of the debiased squared calibration error, zero if that is negative."""
    counts, accuracy = bins.counts, ratio(bins.hits, bins.counts)
    variance = accuracy * (1 - accuracy) / np.maximum(counts - 1, 1)
    squares = np.square(ratio(bins.gaps, counts)) - variance
    squared = (np.where(counts > 1, counts, 0) * squares).sum(axis=1) / counts.sum(axis=1)
    return np.sqrt(np.maximum(squared, 0))


class ReliabilityBins(NamedTuple):
    """Edges, and sums of weights, mean confidence and accuracy between them; zero if empty."""

    edges: Float[np.ndarray, " B+1"]
    counts: Float[np.ndarray, " B"]
    confidence: Float[np.ndarray, " B"]
    accuracy: Float[np.ndarray, " B"]


def reliability(
    probs: ArrayLike, y: ArrayLike, num_bins: int, weights: ArrayLike | None = None
) -> ReliabilityBins:
    """Return what a reliability diagram shows, for valid probabilities and labels."""
    probs, y = fetch_array(probs), fetch_array(y)
    predicted, everyone = probs.argmax(axis=1), np.arange(len(probs))
    agreement = predicted == y if y.ndim == 1 else y[everyone, predicted]
    confidence = ranked(probs.max(axis=1))
    weights = checked(weights, len(probs))
    rows = weights[None] * (effective_size(weights) / weights.sum())
    counts, hits, gaps = (
        part[0] for part in binned(confidence, agreement.astype(float), rows, num_bins).widths
    )
    edges = np.linspace(0, 1, num_bins + 1)
    return ReliabilityBins(edges, counts, ratio(hits - gaps, counts), ratio(hits, counts))


# --- selective prediction -------------------------------------------------------------------------


class RiskCurve(NamedTuple):
    """The share of the examples kept, and their mean loss, the most confident first."""

    coverage: Float[np.ndarray, "R G"]
    risk: Float[np.ndarray, "R G"]


def risk_curve(
    uncertainty: Ranking, losses: Float[np.ndarray, " N"], weights: Weightings
) -> RiskCurve:
    """Return the risk-coverage curve, one point for each group of equal values.

    Parameters
    ----------
    uncertainty
        The examples ranked by uncertainty.
    losses
        The loss of each example.
    weights
        The weightings.
    """
    ordered = weights[:, uncertainty.order]
    kept = up_to_ends(ordered, uncertainty)
    lost = up_to_ends(ordered * losses[uncertainty.order], uncertainty)
    return RiskCurve(kept / kept[:, -1:], ratio(lost, kept))


def area_under(curve: RiskCurve) -> Float[np.ndarray, " R"]:
    """Return the mean risk over the examples, the AURC."""
    first = curve.coverage[:, 0] * curve.risk[:, 0]
    return first + np.einsum("rg,rg->r", np.diff(curve.coverage, axis=1), curve.risk[:, 1:])


def area_under_lost(curve: RiskCurve) -> Float[np.ndarray, " R"]:
    r"""Return the area under the share of all examples that are kept and wrong, the AUGRC.

    By trapezoids from the origin, so that ties count half.
    """
    lost = curve.coverage * curve.risk
    first = curve.coverage[:, 0] * lost[:, 0]
    steps, sums = np.diff(curve.coverage, axis=1), lost[:, 1:] + lost[:, :-1]
    return 0.5 * (first + np.einsum("rg,rg->r", steps, sums))
