"""Metrics of detection: how well a score separates two samples, for many weightings of both."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from laplace_kit.eval.statistics.weighting import Ranking, cumulated, ranked, ratio

_RECALL = 0.95


class DetectionScores(NamedTuple):
    """The scores of both samples ranked together, the highest first; `is_outside` by place."""

    ranking: Ranking
    is_outside: Bool[np.ndarray, " _"]


class DetectionSums(NamedTuple):
    """Sums of the weights that score at least each of G thresholds, for R weightings."""

    inside: Float[np.ndarray, "R G"]
    outside: Float[np.ndarray, "R G"]


def detection_scores(
    inside: Float[np.ndarray, " N"], outside: Float[np.ndarray, " M"]
) -> DetectionScores:
    """Return the ranking of the scores of in-distribution and out-of-distribution inputs."""
    ranking = ranked(-np.concatenate([inside, outside]))
    return DetectionScores(ranking, ranking.order >= len(inside))


def detection_sums(
    scores: DetectionScores,
    in_weights: Float[np.ndarray, "R N"],
    out_weights: Float[np.ndarray, "R M"],
) -> DetectionSums:
    """Return the sums for weightings of both samples."""
    ranking, is_outside = scores
    # Each sample alone, in the order of its scores: half the additions.
    return DetectionSums(
        *(
            cumulated(weights[:, ranking.order[chosen] - first])[
                :, np.searchsorted(np.flatnonzero(chosen), ranking.ends)
            ]
            for weights, chosen, first in (
                (in_weights, ~is_outside, 0),
                (out_weights, is_outside, in_weights.shape[1]),
            )
        )
    )


def auroc(sums: DetectionSums) -> Float[np.ndarray, " R"]:
    """Return the share of correctly ordered pairs, ties counting half."""
    false, true = sums
    steps = np.diff(false, axis=1, prepend=0.0)
    above = true - np.diff(true, axis=1, prepend=0.0)
    return ((above + true) / 2 * steps).sum(axis=1) / (true[:, -1] * false[:, -1])


def aupr(sums: DetectionSums) -> Float[np.ndarray, " R"]:
    """Return the mean precision over the out-of-distribution inputs."""
    false, true = sums
    steps = np.diff(true, axis=1, prepend=0.0)
    return (steps * ratio(true, true + false)).sum(axis=1) / true[:, -1]


def fpr95(sums: DetectionSums) -> Float[np.ndarray, " R"]:
    """Return the false positive rate at the highest threshold with a recall of 95%."""
    false, true = sums
    # With a tolerance, so that 19 of 20 count as 95% however the quotient is rounded.
    enough = true >= _RECALL * true[:, -1:] * (1 - 4 * np.finfo(float).eps)
    first = enough.argmax(axis=1)[:, None]
    return np.take_along_axis(false, first, axis=1)[:, 0] / false[:, -1]


def roc_curve(sums: DetectionSums) -> tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]:
    """Return false and true positive rates from (0, 0) to (1, 1), for the first weighting."""
    false, true = (np.concatenate([[0.0], part[0]]) / part[0, -1] for part in sums)
    return false, true
