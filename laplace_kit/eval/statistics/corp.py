r"""CORP reliability: the frequency of an event as a nondecreasing function of its probability.

Isotonic regression gives recalibrated probabilities $\hat p_n$ without bins to choose. The Brier
score of the event, $S = \mathrm{mean}\,(p - o)^2$, is then

$$
S = \underbrace{S(p) - S(\hat p)}_{\text{miscalibration}} -
    \underbrace{(S(\bar o) - S(\hat p))}_{\text{discrimination}} +
    \underbrace{S(\bar o)}_{\text{uncertainty}},
$$

exactly, and no term is negative (Dimitriadis, Gneiting and Jordan, 2021).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression

from laplace_kit.eval.statistics.weighting import Ranking, Weightings, ranked


class CorpTerms(NamedTuple):
    """The terms of the Brier score of an event, for R weightings."""

    miscalibration: Float[np.ndarray, " R"]
    discrimination: Float[np.ndarray, " R"]
    uncertainty: Float[np.ndarray, " R"]


class CorpReliability(NamedTuple):
    """The recalibrated probabilities, and the terms of the Brier score of the event.

    Attributes
    ----------
    probability
        The distinct predicted probabilities, in increasing order.
    frequency
        The recalibrated one for each: constant, the mean outcome, on each of a few ranges.
    counts
        The sum of the weights for each.
    score, miscalibration, discrimination, uncertainty
        The Brier score of the event, and its terms: miscalibration - discrimination + uncertainty.
    """

    probability: Float[np.ndarray, " G"]
    frequency: Float[np.ndarray, " G"]
    counts: Float[np.ndarray, " G"]
    score: float
    miscalibration: float
    discrimination: float
    uncertainty: float


def corp_terms(p: Ranking, outcomes: Float[np.ndarray, " N"], weights: Weightings) -> CorpTerms:
    """Return the terms of the Brier score for each weighting.

    Parameters
    ----------
    p
        The examples ranked by the probability of the event.
    outcomes
        Whether it occurred, or its probability in a soft label.
    weights
        The weightings. Cost: an isotonic regression for each.
    """
    ordered, seen = weights[:, p.order], outcomes[p.order]
    counts, hits = (_of_groups(part, p) for part in (ordered, ordered * seen))
    total = counts.sum(axis=1)
    mean = hits.sum(axis=1) / total
    squares = ordered @ np.square(seen) / total
    score = ordered @ np.square(p.values.astype(float) - seen) / total
    fitted = np.array([_mean_square(*row) for row in zip(hits, counts, strict=True)]) / total
    # Recalibrated probabilities are means of outcomes: mean (o - p)^2 = mean o^2 - mean p^2.
    recalibrated, constant = squares - fitted, squares - np.square(mean)
    return CorpTerms(
        np.maximum(score - recalibrated, 0), np.maximum(fitted - np.square(mean), 0), constant
    )


def _of_groups(values: Float[np.ndarray, "R N"], ranking: Ranking) -> Float[np.ndarray, "R G"]:
    if len(ranking.ends) == values.shape[1]:  # without ties
        return values
    starts = np.concatenate([[0], ranking.ends[:-1]])
    return np.add.reduceat(values, starts, axis=1)


def _mean_square(hits: Float[np.ndarray, " G"], counts: Float[np.ndarray, " G"]) -> float:
    """Return the weighted sum of the squares of the recalibrated probabilities."""
    used = np.flatnonzero(counts)
    counts = counts[used]
    fitted = isotonic_regression(hits[used] / counts, weights=counts)
    starts = fitted.blocks[:-1]
    return float(fitted.weights @ np.square(fitted.x[starts]))


def corp_reliability(
    p: Float[np.ndarray, " N"], outcomes: Float[np.ndarray, " N"], weights: Float[np.ndarray, " N"]
) -> CorpReliability:
    """Return the CORP reliability of valid probabilities of one event."""
    used = weights > 0
    p, outcomes, weights = p[used].astype(float), outcomes[used], weights[used]
    ranking = ranked(p)
    ordered, seen = weights[None, ranking.order], outcomes[ranking.order]
    counts, hits = (_of_groups(part, ranking)[0] for part in (ordered, ordered * seen))
    frequency = isotonic_regression(hits / counts, weights=counts).x
    terms = [float(of[0]) for of in corp_terms(ranking, outcomes, weights[None])]
    score = float(np.average(np.square(p - outcomes), weights=weights))
    return CorpReliability(ranking.values[ranking.ends - 1], frequency, counts, score, *terms)
