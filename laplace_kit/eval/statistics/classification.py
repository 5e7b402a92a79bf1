"""All metrics of one classifier: what is computed once, and sums for many weightings."""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Num
from scipy import sparse, special

from laplace_kit.eval.statistics import confidence
from laplace_kit.eval.statistics.classwise import ClassGaps, class_gaps, mean_class_gap
from laplace_kit.eval.statistics.confidence import NUM_BINS, Bins
from laplace_kit.eval.statistics.corp import CorpTerms, corp_terms
from laplace_kit.eval.statistics.hypotheses import (
    cumulative_gaps,
    label_surprise,
    scores_of_labels,
)
from laplace_kit.eval.statistics.smooth import on_grid, smooth_errors
from laplace_kit.eval.statistics.weighting import Ranking, Weightings, ranked, weighted_means
from laplace_kit.host import fetch_array

_NEARLY_ONE = 0.999  # nearer, float32 has fewer than four digits of the distance from one


class ClassScores(NamedTuple):
    """The scores of each example, and the orders and sums that no weighting changes.

    Attributes
    ----------
    confidence, uncertainty
        The examples ranked by their largest probability, and by one minus it.
    hits
        Whether the most probable class is the label, or the most probable class of a soft one.
    agreement
        The probability of the predicted class in the label; for hard labels, the hits.
    losses
        The negative log-likelihood of each label.
    squares
        The squared distance of probabilities and label.
    gaps
        Labels minus probabilities, by class and bin.
    surprise, surprise_var
        `label_surprise`.
    smooth
        Agreement minus confidence, on a grid of confidences.
    """

    confidence: Ranking
    uncertainty: Ranking
    hits: Float[np.ndarray, " N"]
    agreement: Float[np.ndarray, " N"]
    losses: Float[np.ndarray, " N"]
    squares: Float[np.ndarray, " N"]
    gaps: ClassGaps
    surprise: Float[np.ndarray, " N"]
    surprise_var: Float[np.ndarray, " N"]
    smooth: sparse.csr_array


class ClassSums(NamedTuple):
    """Means and sums over the examples, for R weightings."""

    accuracy: Float[np.ndarray, " R"]
    confidence: Float[np.ndarray, " R"]
    loss: Float[np.ndarray, " R"]
    square: Float[np.ndarray, " R"]
    widths: Bins
    masses: Bins
    class_gap: Float[np.ndarray, " R"]
    mean_risk: Float[np.ndarray, " R"]
    mean_lost: Float[np.ndarray, " R"]
    standard_score: Float[np.ndarray, " R"]
    largest_sum: Float[np.ndarray, " R"]
    sum_range: Float[np.ndarray, " R"]
    smooth_error: Float[np.ndarray, " R"]
    terms: CorpTerms


def class_scores(
    probs: Float[np.ndarray, "N C"],
    y: Num[np.ndarray, "N ..."],
    log_probs: Float[np.ndarray, "N C"] | None = None,
) -> ClassScores:
    """Return the scores of valid probabilities and labels, `(N,)` or `(N, C)`.

    Parameters
    ----------
    probs, y
        In float32 or float64.
    log_probs
        The logarithms of `probs`, if known.
    """
    largest, predicted = probs.max(axis=1), probs.argmax(axis=1)
    everyone = np.arange(len(y))
    agreement = predicted == y if y.ndim == 1 else y[everyone, predicted]
    hits = agreement if y.ndim == 1 else predicted == y.argmax(axis=1)
    return ClassScores(
        ranked(largest),
        ranked(one_minus_largest(probs)),
        hits.astype(float),
        agreement.astype(float),
        label_losses(probs, y, log_probs),
        _squares(probs, y),
        class_gaps(probs, y, NUM_BINS),
        *label_surprise(probs, y),
        on_grid(np.clip(largest, 0, 1), agreement - largest.astype(float)),
    )


def class_sums(scores: ClassScores, weights: Weightings) -> ClassSums:
    """Return the sums of the scores for each weighting."""
    largest = np.empty(len(scores.hits))
    largest[scores.confidence.order] = scores.confidence.values
    columns = np.stack([scores.hits, largest, scores.losses, scores.squares], axis=1)
    means = weighted_means(weights, columns).T
    bins = confidence.binned(scores.confidence, scores.agreement, weights, NUM_BINS)
    curve = confidence.risk_curve(scores.uncertainty, 1 - scores.hits, weights)
    return ClassSums(
        *means,
        *bins,
        mean_class_gap(scores.gaps, weights),
        confidence.area_under(curve),
        confidence.area_under_lost(curve),
        scores_of_labels(weights, scores.surprise, scores.surprise_var),
        *cumulative_gaps(scores.confidence, scores.agreement - largest, weights),
        smooth_errors(scores.smooth, weights),
        corp_terms(scores.confidence, scores.agreement, weights),
    )


def label_losses(
    probs: Float[np.ndarray, "N C"],
    y: Num[np.ndarray, "N ..."],
    log_probs: Float[np.ndarray, "N C"] | None,
) -> Float[np.ndarray, " N"]:
    """Return the negative log-likelihoods; infinite for labels of probability zero."""
    with np.errstate(divide="ignore"):
        if y.ndim == 1:
            everyone = np.arange(len(y))
            if log_probs is not None:
                return -log_probs[everyone, y].astype(float)
            return -np.log(np.maximum(probs[everyone, y], 0).astype(float))
        logs = np.log(np.maximum(probs, 0)) if log_probs is None else log_probs
        return -np.where(y == 0, 0.0, y * np.where(y == 0, 0.0, logs)).sum(axis=1)


def entropy(probs: Float[ArrayLike, "N C"]) -> Float[np.ndarray, " N"]:
    """Return the entropy of each row of probabilities in nats."""
    return special.entr(np.maximum(fetch_array(probs), 0)).sum(axis=1, dtype=float)


def one_minus_largest(probs: Float[np.ndarray, "N C"]) -> Float[np.ndarray, " N"]:
    """Return one minus the largest probability, without cancellation near one."""
    largest = probs.max(axis=1)
    uncertainty, near = 1 - largest, np.flatnonzero(largest > _NEARLY_ONE)
    rows = probs[near]
    rows[np.arange(len(near)), rows.argmax(axis=1)] = 0
    uncertainty[near] = rows.sum(axis=1)
    return uncertainty


def _squares(
    probs: Float[np.ndarray, "N C"], y: Num[np.ndarray, "N ..."]
) -> Float[np.ndarray, " N"]:
    """Return the squared distances, without one-hot labels for the integer ones."""
    if y.ndim == 2:
        return np.square(probs.astype(float) - y).sum(axis=1)
    of_label = probs[np.arange(len(y)), y].astype(float)
    all_squares = np.einsum("nc,nc->n", probs, probs, dtype=float)
    return np.maximum(all_squares - of_label**2, 0) + (1 - of_label) ** 2


# --- metrics --------------------------------------------------------------------------------------


def accuracy(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the share of correct predictions."""
    return sums.accuracy


def mean_confidence(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the mean of the largest probability."""
    return sums.confidence


def brier_score(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the mean squared distance, from 0 to 2."""
    return sums.square


def expected_calibration_error(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the mean gap in bins of equal width."""
    return confidence.mean_gap(sums.widths)


def maximum_calibration_error(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the largest gap in bins of equal width."""
    return confidence.largest_gap(sums.widths)


def adaptive_calibration_error(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the mean gap in bins of equal mass."""
    return confidence.mean_gap(sums.masses)


def debiased_calibration_error(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the root of the mean squared gap in bins of equal mass, without sampling noise."""
    return confidence.debiased_gap(sums.masses)


def classwise_calibration_error(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the mean gap of the probability of each class."""
    return sums.class_gap


def aurc(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the area under the risk-coverage curve."""
    return sums.mean_risk


def augrc(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the area under the generalised risk-coverage curve."""
    return sums.mean_lost


def overconfidence(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the mean confidence minus the accuracy."""
    return sums.confidence - sums.accuracy


def spiegelhalter_z(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return Spiegelhalter's statistic, standard normal if the labels follow the probabilities."""
    return sums.standard_score


def kolmogorov_smirnov_error(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the largest mean gap up to any confidence."""
    return sums.largest_sum


def kuiper_error(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the largest mean gap between any two confidences."""
    return sums.sum_range


def smooth_calibration_error(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return the calibration error smoothed by a kernel of its own bandwidth."""
    return sums.smooth_error


def miscalibration(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return what isotonic recalibration takes off the Brier score of being right."""
    return sums.terms.miscalibration


def discrimination(sums: ClassSums) -> Float[np.ndarray, " R"]:
    """Return how much better recalibrated confidences are than a constant, by Brier score."""
    return sums.terms.discrimination
