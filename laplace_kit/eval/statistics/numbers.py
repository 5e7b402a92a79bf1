r"""All metrics of one regressor: scores of each target, and their means for many weightings.

The distribution of a target y enters by its logarithm of the density, by $F(y)$ and $P(Y < y)$, by
the ends of its central 90% interval and by its continuous ranked probability score. Both values of
the distribution function are equal unless it has a step at y, as for counts.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from laplace_kit.eval.statistics.weighting import Weightings, as_columns, weighted_means

LEVEL = 0.9
_LEVELS = np.arange(1, 20) / 20  # of the quantile calibration error
_NUM_SCALARS = 8  # columns of `number_columns` before those of the levels
_HALF_WIDTH = NormalDist().inv_cdf((1 + LEVEL) / 2)


class TargetScores(NamedTuple):
    r"""What the distributions of N targets with C outputs each imply for the observed ones.

    Attributes
    ----------
    losses
        The negative log-likelihood of each example, over all its outputs.
    cdf, cdf_below
        $P(Y \le y)$ and $P(Y < y)$.
    low, high
        The ends of the central 90% interval.
    content
        $P(\mathrm{low} \le Y \le \mathrm{high})$, 0.9 or, for counts, at least that.
    crps
        The continuous ranked probability score.
    """

    losses: Float[np.ndarray, " N"]
    cdf: Float[np.ndarray, "N C"]
    cdf_below: Float[np.ndarray, "N C"]
    low: Float[np.ndarray, "N C"]
    high: Float[np.ndarray, "N C"]
    content: Float[np.ndarray, "N C"]
    crps: Float[np.ndarray, "N C"]


class NumberSums(NamedTuple):
    """Means over the examples and outputs, for R weightings; the last three for each output."""

    loss: Float[np.ndarray, " R"]
    square: Float[np.ndarray, " R"]
    standardized: Float[np.ndarray, " R"]
    crps: Float[np.ndarray, " R"]
    covered: Float[np.ndarray, " R"]
    width: Float[np.ndarray, " R"]
    absolute: Float[np.ndarray, " R"]
    variance: Float[np.ndarray, " R"]
    below: Float[np.ndarray, "R L"]
    residual_squares: Float[np.ndarray, "R C"]
    targets: Float[np.ndarray, "R C"]
    target_squares: Float[np.ndarray, "R C"]


def normal_scores(
    mean: Float[np.ndarray, "N C"], std: Float[np.ndarray, "N C"], y: Float[np.ndarray, "N C"]
) -> TargetScores:
    """Return the scores of independent normal distributions."""
    with np.errstate(over="ignore", invalid="ignore"):
        z = (y - mean) / std
        losses = 0.5 * (math.log(2 * math.pi) + np.square(z)) + np.log(std)
        cdf, pdf = special.ndtr(z), np.exp(-0.5 * np.square(z)) / math.sqrt(2 * math.pi)
        crps = std * (z * (2 * cdf - 1) + 2 * pdf - 1 / math.sqrt(math.pi))
    low, high = mean - _HALF_WIDTH * std, mean + _HALF_WIDTH * std
    content = np.full(mean.shape, LEVEL)
    return TargetScores(losses.sum(axis=1), cdf, cdf, low, high, content, crps)


def integral_transforms(scores: TargetScores, rng: np.random.Generator) -> Float[np.ndarray, "N C"]:
    """Return the probability integral transforms, randomised at steps: uniform if calibrated."""
    steps = scores.cdf - scores.cdf_below
    return scores.cdf_below + rng.uniform(size=steps.shape) * steps if steps.any() else scores.cdf


def coverage(
    transforms: Float[np.ndarray, "N C"],
    levels: Float[np.ndarray, " L"],
    weights: Weightings,
) -> Float[np.ndarray, "R L"]:
    """Return the share of targets in the central interval of each level.

    At the steps of a distribution, which ends of the interval are included is as random as the
    `integral_transforms` are: the coverage equals the level for calibrated counts too.
    """
    distances = 2 * np.abs(transforms - 0.5)
    return weighted_means(weights, np.stack([as_columns(distances <= q) for q in levels], axis=1))


def number_columns(
    mean: Float[np.ndarray, "N C"],
    std: Float[np.ndarray, "N C"],
    y: Float[np.ndarray, "N C"],
    scores: TargetScores,
    transforms: Float[np.ndarray, "N C"],
) -> Float[np.ndarray, "N K"]:
    """Return the columns whose weighted means are `NumberSums`.

    Parameters
    ----------
    mean, std, y
        Moments of the targets, and the targets.
    scores, transforms
        Their scores, and probability integral transforms.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        residuals, centred = y - mean, y - y.mean(axis=0)
        columns = [
            scores.losses,
            np.square(residuals).mean(axis=1),
            np.square(residuals / std).mean(axis=1),
            scores.crps.mean(axis=1),
            as_columns((scores.low <= y) & (y <= scores.high)),
            (scores.high - scores.low).mean(axis=1),
            np.abs(residuals).mean(axis=1),
            np.square(std).mean(axis=1),
            *(as_columns(transforms <= level) for level in _LEVELS),
        ]
        by_output = np.square(residuals), centred, np.square(centred)
    return np.concatenate([np.stack(columns, axis=1), *by_output], axis=1)


def number_sums(columns: Float[np.ndarray, "N K"], weights: Weightings) -> NumberSums:
    """Return the means of `number_columns` for each weighting."""
    means = weighted_means(weights, columns)
    last = _NUM_SCALARS + len(_LEVELS)
    scalars, below, by_output = np.split(means, [_NUM_SCALARS, last], axis=1)
    return NumberSums(*scalars.T, below, *np.split(by_output, 3, axis=1))


# --- metrics --------------------------------------------------------------------------------------


def rmse(sums: NumberSums) -> Float[np.ndarray, " R"]:
    """Return the root of the mean squared error."""
    return np.sqrt(sums.square)


def mae(sums: NumberSums) -> Float[np.ndarray, " R"]:
    """Return the mean absolute error."""
    return sums.absolute


def r_squared(sums: NumberSums) -> Float[np.ndarray, " R"]:
    """Return one minus the squared error over the variance of the targets, averaged over outputs.

    For an output with equal targets it is one if they are predicted exactly, else zero.
    """
    spread = np.maximum(sums.target_squares - np.square(sums.targets), 0)
    is_constant = spread <= 1e-12 * sums.target_squares
    ratios = np.divide(sums.residual_squares, spread, out=np.ones(spread.shape), where=~is_constant)
    exact = is_constant & (sums.residual_squares == 0)
    return np.where(exact, 1.0, 1 - ratios).mean(axis=1)


def sharpness(sums: NumberSums) -> Float[np.ndarray, " R"]:
    """Return the root of the mean predicted variance."""
    return np.sqrt(sums.variance)


def crps(sums: NumberSums) -> Float[np.ndarray, " R"]:
    """Return the mean continuous ranked probability score."""
    return sums.crps


def interval_coverage(sums: NumberSums) -> Float[np.ndarray, " R"]:
    """Return the share of targets in the central 90% intervals."""
    return sums.covered


def interval_width(sums: NumberSums) -> Float[np.ndarray, " R"]:
    """Return the mean width of the central 90% intervals."""
    return sums.width


def chi_squared(sums: NumberSums) -> Float[np.ndarray, " R"]:
    """Return the mean squared error in units of the predicted variance."""
    return sums.standardized


def quantile_calibration_error(sums: NumberSums) -> Float[np.ndarray, " R"]:
    """Return the root mean squared gap of nominal and observed frequency, over levels."""
    return level_error(sums.below)


def shares_below(transforms: Float[np.ndarray, "N ..."]) -> Float[np.ndarray, "N L"]:
    """Return the share of each example's transforms that lie up to each level."""
    return np.stack([as_columns(transforms <= level) for level in _LEVELS], axis=1)


def level_error(below: Float[np.ndarray, "R L"]) -> Float[np.ndarray, " R"]:
    """Return the root mean squared gap of levels and the shares of transforms up to them."""
    return np.sqrt(np.square(below - _LEVELS).mean(axis=1))
