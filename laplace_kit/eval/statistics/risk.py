r"""Thresholds with a guarantee: the risk is at most $a$ with probability at least $1 - \delta$.

The hypothesis that the risk of a threshold exceeds $a$ is rejected if so few losses would be
unlikely: Learn-then-Test. Given the threshold, which is an order statistic of the scores, examples
with larger scores are independent draws from those with larger scores, so that the number of errors
among them is binomial.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

from laplace_kit.eval.statistics.weighting import effective_size, ranked

_NUM_THRESHOLDS = 20


class Controlled(NamedTuple):
    """A threshold; examples with larger scores are kept.

    Attributes
    ----------
    threshold
        Infinite if nothing may be kept, minus infinite if everything may.
    share
        The share of the examples that are kept.
    risk
        The risk observed on them, zero if there are none.
    """

    threshold: float
    share: float
    risk: float


def binomial_p_values(
    lost: Float[np.ndarray, " T"], num: Float[np.ndarray, " T"], at_most: float
) -> Float[np.ndarray, " T"]:
    r"""Return $P(\mathrm{Bin}(n, a) \le k)$, also for numbers k and n that are not whole."""
    some = num > lost
    safe = np.where(some, num - lost, 1.0)
    return np.where(some, special.betainc(safe, lost + 1, 1 - at_most), 1.0)


def bounded_p_values(
    risk: Float[np.ndarray, " T"], num: Float[np.ndarray, " T"] | float, at_most: float
) -> Float[np.ndarray, " T"]:
    """Return the Hoeffding-Bentkus p-values of mean losses between 0 and 1."""
    num = np.broadcast_to(num, risk.shape).astype(float)
    below = np.minimum(risk, at_most)
    gap = special.rel_entr(below, at_most) + special.rel_entr(1 - below, 1 - at_most)
    bentkus = math.e * binomial_p_values(np.ceil(num * risk - 1e-9), num, at_most)
    return np.minimum(np.minimum(np.exp(-num * gap), bentkus), 1.0)


def rejected(
    p_values: Float[np.ndarray, " T"], delta: float, *, in_order: bool
) -> Bool[np.ndarray, " T"]:
    """Return which hypotheses are rejected, with any false rejection of probability `delta`.

    Parameters
    ----------
    p_values
        One for each threshold, in an order that was fixed before looking at the losses.
    delta
        The probability.
    in_order
        Whether to test them one by one until the first that is not rejected, rather than all of
        them at a level divided by their number.
    """
    if in_order:
        return np.logical_and.accumulate(p_values <= delta)
    return p_values <= delta / max(len(p_values), 1)


def control_kept_losses(
    scores: Float[np.ndarray, " N"],
    lost: Float[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"],
    at_most: float,
    delta: float,
    *,
    in_order: bool,
) -> Controlled:
    """Return the threshold that keeps most, with a mean loss of those kept of at most `at_most`.

    Parameters
    ----------
    scores, lost
        The score of each example, and its loss, between 0 and 1.
    weights
        The weights; proportions count as many examples as they are worth.
    at_most, delta
        The bound, and the probability that it may fail.
    in_order
        Whether to test all thresholds from large ones on, which is valid if examples with larger
        scores are not lost more often. Otherwise those that keep one of 20 shares are tested, which
        is always valid.
    """
    values, kept, losses, total = _cumulated(scores, lost, weights)
    if len(values) == 0:
        return Controlled(math.inf, 0.0, 0.0)
    exact = np.isin(lost, (0, 1)).all()
    p_values_of = binomial_p_values if exact else _bounded_of_sums
    if in_order:
        passed = _passed_in_order(kept, losses, p_values_of, delta, at_most, total)
    else:
        fewest = min(_fewest(at_most, delta / _NUM_THRESHOLDS), total)
        shares = np.linspace(fewest, total, _NUM_THRESHOLDS)
        # The last place that keeps at most so many; the number of tests stays that of the shares.
        places = np.searchsorted(kept, shares * (1 + 1e-12), side="right") - 1
        at = np.maximum(places, 0)
        p_values = p_values_of(losses[at], kept[at], at_most)
        passed = places[rejected(p_values, delta, in_order=False) & (places >= 0)]
    if not len(passed):
        return Controlled(math.inf, 0.0, 0.0)
    best = int(passed.max())
    return Controlled(_below(values, best), float(kept[best] / total), losses[best] / kept[best])


def _passed_in_order(kept, losses, p_values_of, delta, at_most, total) -> np.ndarray:
    """Return the places that pass one by one from any of several starts, which share `delta`.

    A single start at the fewest examples that can pass would fail by one error among them.
    """
    num_starts = 1
    while _fewest(at_most, delta / (num_starts + 1)) * 2**num_starts <= total:
        num_starts += 1
    fewest, passed = _fewest(at_most, delta / num_starts), []
    for doubled in range(num_starts):
        places = np.flatnonzero(kept >= fewest * 2**doubled)
        p_values = p_values_of(losses[places], kept[places], at_most)
        passed.append(places[rejected(p_values, delta / num_starts, in_order=True)])
    return np.concatenate(passed)


def _fewest(at_most: float, delta: float) -> float:
    """Return the number of examples of which none may be lost for a p-value of `delta`."""
    return math.log(delta) / math.log1p(-at_most)


def _bounded_of_sums(lost, num, at_most) -> np.ndarray:
    return bounded_p_values(lost / num, num, at_most)


def control_left_out(
    scores: Float[np.ndarray, " N"], weights: Float[np.ndarray, " N"], at_most: float, delta: float
) -> Controlled:
    r"""Return the largest threshold that leaves out at most a share of `at_most`.

    The share of the distribution below the k-th smallest of n scores is at most that of
    $\mathrm{Beta}(k, n + 1 - k)$.
    """
    values, kept, _, total = _cumulated(scores, 0 * scores, weights)
    # Places in decreasing order of the score: below value i are total - kept[i].
    rank = np.maximum(total - kept, 0) + 1
    chance = special.betainc(rank, np.maximum(total - rank + 1, 1e-12), at_most)
    passed = np.flatnonzero((chance >= 1 - delta) & (rank <= total))
    if not len(passed):
        return Controlled(-math.inf, 1.0, 0.0)
    best = int(passed.min())
    share = float(kept[best] / total)
    return Controlled(float(np.nextafter(values[best], -np.inf)), share, 1 - share)


def _cumulated(scores, lost, weights):
    """Return distinct scores from the largest on, examples and losses up to each, and the total."""
    used = weights > 0
    scores, lost, weights = scores[used].astype(float), lost[used], weights[used]
    if not len(scores):
        return scores, scores, scores, 0.0
    total = effective_size(weights)
    weights = weights * (total / weights.sum())
    ranking = ranked(-scores)
    last = ranking.ends - 1
    kept = np.cumsum(weights[ranking.order])[last]
    losses = np.cumsum((weights * lost)[ranking.order])[last]
    return -ranking.values[last], kept, losses, total


def _below(values: Float[np.ndarray, " G"], place: int) -> float:
    """Return the threshold above which the scores up to a place lie: the next smaller one."""
    return float(values[place + 1]) if place + 1 < len(values) else -math.inf


def conformal_column(
    losses: Float[np.ndarray, "N T"], at_most: float, largest: float
) -> int | None:
    r"""Return the first column with $(\sum_n l_n + B) / (N + 1) \le a$, `None` if there is none."""
    bound = (losses.sum(axis=0) + largest) / (len(losses) + 1)
    passed = np.flatnonzero(bound <= at_most * (1 + 1e-12))
    return int(passed[0]) if len(passed) else None
