r"""Tests of calibration: of probabilities against outcomes, and of transforms against uniformity.

All take the outcomes to be independent given the probabilities. Weights that are counts repeat an
example; others weigh the outcomes of as many independent examples as there are.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from laplace_kit.eval.statistics.weighting import (
    Ranking,
    Weightings,
    are_counts,
    effective_size,
    ranked,
    up_to_ends,
)


class HypothesisTest(NamedTuple):
    """A statistic, and the probability of at least as large a one if the null hypothesis holds."""

    statistic: float
    p_value: float


class CalibrationTests(NamedTuple):
    """Tests of the hypothesis that the outcomes were drawn from the predicted probabilities."""

    spiegelhalter: HypothesisTest
    kolmogorov_smirnov: HypothesisTest
    kuiper: HypothesisTest


class UniformityTests(NamedTuple):
    """Tests of the hypothesis that values were drawn uniformly from [0, 1]."""

    kolmogorov_smirnov: HypothesisTest
    kuiper: HypothesisTest


def scores_of_labels(weights: Weightings, values: np.ndarray, var: np.ndarray) -> np.ndarray:
    r"""Return $\sum_n w_n v_n / \sqrt{\mathrm{var}}$: standard normal if the values have mean zero.

    Zero where the variance is zero.
    """
    shares = weights if are_counts(weights) else np.square(weights)
    deviation = np.sqrt(shares @ var)
    return np.divide(weights @ values, deviation, out=np.zeros(len(weights)), where=deviation > 0)


def cumulative_gaps(
    p: Ranking, gaps: Float[np.ndarray, " N"], weights: Weightings
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Return the largest absolute value, and the range, of the mean gap up to every probability.

    Parameters
    ----------
    p
        The examples ranked by probability; those of equal ones are added together.
    gaps
        Outcome minus probability of each example.
    weights
        The weightings.
    """
    ordered = weights[:, p.order]
    sums = up_to_ends(ordered * gaps[p.order], p) / ordered.sum(axis=1, keepdims=True)
    high, low = np.maximum(sums.max(axis=1), 0), np.minimum(sums.min(axis=1), 0)
    return np.maximum(high, -low), high - low


def calibration_tests(
    p: Float[np.ndarray, " N"],
    outcomes: Float[np.ndarray, " N"],
    labels: tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]],
    weights: Float[np.ndarray, " N"],
) -> CalibrationTests:
    """Return the tests of valid probabilities.

    Parameters
    ----------
    p, outcomes
        The probability of an event, and whether it occurred.
    labels
        `label_surprise` of all classes.
    weights
        The weights of the examples.
    """
    rows, p = weights[None], p.astype(float)
    z = float(scores_of_labels(rows, *labels)[0])
    largest, width = (float(of[0]) for of in cumulative_gaps(ranked(p), outcomes - p, rows))
    shares = weights if are_counts(weights) else np.square(weights)
    deviation = math.sqrt(shares @ np.maximum(p * (1 - p), 0)) / weights.sum()
    return CalibrationTests(
        HypothesisTest(z, math.erfc(abs(z) / math.sqrt(2))),
        HypothesisTest(largest, _p_value(largest, deviation, brownian_maximum_above)),
        HypothesisTest(width, _p_value(width, deviation, brownian_range_above)),
    )


def _p_value(statistic: float, deviation: float, above) -> float:
    if deviation > 0:
        return above(statistic / deviation)
    return float(statistic < 1e-9)  # certain predictions, all right or not


def label_surprise(
    probs: Float[np.ndarray, "N C"], y: np.ndarray
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    r"""Return $\sum_c p_c^2 - p_y$ of each example, and its variance if the label follows $p$.

    Up to a factor of two it is the squared distance of probabilities and label minus its
    expectation, the terms of Spiegelhalter's statistic for any number of classes.
    """
    squares = np.einsum("nc,nc->n", probs, probs, dtype=float)
    cubes = np.einsum("nc,nc,nc->n", probs, probs, probs, dtype=float)
    if y.ndim == 2:
        own = np.einsum("nc,nc->n", probs, y, dtype=float)
    else:
        own = probs[np.arange(len(y)), y].astype(float)
    return squares - own, np.maximum(cubes - np.square(squares), 0)


def uniformity_tests(
    values: Float[np.ndarray, " N"], weights: Float[np.ndarray, " N"]
) -> UniformityTests:
    """Return the Kolmogorov-Smirnov and the Kuiper test of uniform values.

    The p-values are those of the limit, with corrections for small samples (Vrbik, 2018; Stephens,
    1970).
    """
    used = weights > 0
    values, weights = values[used], weights[used]
    order, num = np.argsort(values), effective_size(weights)
    u, steps = values[order], weights[order] / weights.sum()
    above = np.cumsum(steps)
    high, low = max(np.max(above - u), 0.0), max(np.max(u - (above - steps)), 0.0)
    distance, root = max(high, low), math.sqrt(num)
    z = root * distance
    ks = float(special.kolmogorov(z + 1 / (6 * root) + (z - 1) / (4 * num)))
    kuiper = _kuiper_above((root + 0.155 + 0.24 / root) * (high + low))
    return UniformityTests(
        HypothesisTest(float(distance), ks), HypothesisTest(float(high + low), kuiper)
    )


# --- distributions of statistics ------------------------------------------------------------------


def brownian_maximum_above(x: float) -> float:
    r"""Return $P(\max_{t \le 1} |B_t| > x)$ for Brownian motion."""
    if x <= 0:
        return 1.0
    if x > 1:  # the other series cancels
        k = np.arange(12)
        terms = special.ndtr(-(2 * k + 1) * x)
        return float(np.clip(4 * np.sum((-1.0) ** k * terms), 0, 1))
    odd = 2 * np.arange(60) + 1
    signs = (-1.0) ** np.arange(60)
    below = 4 / np.pi * np.sum(signs / odd * np.exp(-np.square(odd * np.pi / x) / 8))
    return float(np.clip(1 - below, 0, 1))


def brownian_range_above(x: float) -> float:
    r"""Return $P(\max B - \min B > x)$ for Brownian motion on [0, 1] (Feller, 1951)."""
    if x < 0.2:  # the probability of so small a range is below 1e-50
        return 1.0
    k = np.arange(1, math.ceil(9 / x) + 2)
    return float(np.clip(8 * np.sum((-1.0) ** (k - 1) * k * special.ndtr(-k * x)), 0, 1))


def _kuiper_above(x: float) -> float:
    if x < 0.4:
        return 1.0
    k = np.arange(1, 60)
    return float(np.clip(2 * np.sum((4 * (k * x) ** 2 - 1) * np.exp(-2 * (k * x) ** 2)), 0, 1))
