r"""Conformal sets and intervals for inputs of another distribution than the calibration data.

With the ratios $w(x)$ of the densities of new and old inputs, known or estimated up to a factor,
the calibration scores are weighted: a new example with the ratio $w$ is compared with the smallest
score up to which the weights sum to at least $(1 - \alpha) (w + \sum_n w_n)$.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray, PyTree

from laplace_kit.errors import check_option
from laplace_kit.eval.conformal import ConformalIntervals
from laplace_kit.eval.conformal_scores import (
    INTERVAL_SCORES,
    RAPS,
    check_key,
    checked_score,
    conformity,
    interval_scores,
    labelled_probabilities,
    own_scores,
    probabilities,
)
from laplace_kit.eval.given import Predictions
from laplace_kit.eval.statistics.weighting import checked
from laplace_kit.host import fetch
from laplace_kit.targets.inversion import check_levels
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass(static=("level",))
class WeightedScores:
    """Calibration scores in increasing order, and the sums of weights up to each."""

    scores: Float[np.ndarray, " N"]
    sums: Float[np.ndarray, " N"]
    level: float

    def thresholds(self, weights: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Return the threshold of each new example; infinite where its weight is too large."""
        scores, sums = fetch((self.scores, self.sums))
        needed = self.level * (sums[-1] + weights) * (1 - 1e-12)
        place = np.searchsorted(sums, needed, side="left")
        return np.append(scores, np.inf)[place]


@pytree_dataclass(static=("score", "randomised"))
class ShiftedSets:
    """Sets with a threshold of their own for each example; made by `shifted_sets`."""

    calibration: WeightedScores
    score: str | RAPS
    randomised: bool

    def __call__(
        self, predictions: Predictions, weights: ArrayLike, *, key: PRNGKeyArray | None = None
    ) -> Bool[Array, "N C"]:
        """Return whether each class is in the set of each example.

        Parameters
        ----------
        predictions
            Predictions of the same kind as those that were calibrated, one label an example.
        weights
            The ratios of densities at their inputs, `(N,)`, on the scale of the calibration's.
        key
            For randomised scores: a fresh key.
        """
        check_key(key, self.randomised)
        probs = probabilities(predictions)
        weights = checked(weights, len(probs))
        least = -self.calibration.thresholds(weights)
        shape = (len(probs), *(1,) * (probs.ndim - 1))
        return conformity(probs, self.score, key) >= jnp.asarray(least, probs.dtype).reshape(shape)


@pytree_dataclass(static=("score",))
class ShiftedIntervals:
    """Intervals with a radius of their own for each example; made by `shifted_intervals`."""

    calibration: tuple[WeightedScores, ...]
    score: str

    def __call__(
        self, predictions: Predictions, weights: ArrayLike
    ) -> tuple[Float[Array, "N *target"], Float[Array, "N *target"]]:
        """Return the ends of the interval of each target, infinite where the weight is too large.

        Parameters
        ----------
        predictions
            Predictions of the same kind as those that were calibrated.
        weights
            The ratios of densities at their inputs, `(N,)`, on the scale of the calibration's.
        """
        level = self.calibration[0].level
        plain = ConformalIntervals(jnp.zeros(()), self.score, level)
        first, _ = plain(predictions)
        weights = checked(weights, len(first))
        radius = np.stack([of.thresholds(weights) for of in self.calibration], axis=1)
        each = jnp.asarray(radius.reshape(first.shape), first.dtype)
        return ConformalIntervals(each, self.score, level)(predictions)


def shifted_sets(
    predictions: Predictions,
    y: PyTree,
    weights: ArrayLike,
    *,
    level: float = 0.9,
    score: str | RAPS = "lac",
    key: PRNGKeyArray | None = None,
) -> ShiftedSets:
    """Return sets that hold the label with probability `level` where inputs are distributed anew.

    Parameters
    ----------
    predictions, y, level, score, key
        As for `conformal_sets`, one label an example.
    weights
        The ratio of the densities of new and of these inputs at each, `(N,)`, up to a factor: for
        example the odds $p / (1 - p)$ of a classifier that tells both kinds of inputs apart.

    Returns
    -------
    sets
        A `ShiftedSets`, a function from predictions and their ratios to sets.

    Raises
    ------
    TypeError, ValueError
        As `conformal_sets`; if weights are not valid, none is positive where a label is observed,
        or an example has several labels.

    References
    ----------
    Tibshirani, Barber, Candès and Ramdas (2019), Conformal prediction under covariate shift.
    """
    score = checked_score(score, key)
    check_levels("level", level)
    probs, labels, seen = labelled_probabilities(predictions, y)
    if seen.ndim > 1 and seen.shape[1:] != (1,) * (seen.ndim - 1):
        raise ValueError(
            f"Found labels of shape {seen.shape}, expected one label for each example; calibrate "
            "each output by itself."
        )
    weights = checked(weights, len(seen))[seen.reshape(len(seen))]
    own = own_scores(probs, labels, score, key)
    return ShiftedSets(_weighted(own, weights, level), score, key is not None)


def shifted_intervals(
    predictions: Predictions,
    y: PyTree,
    weights: ArrayLike,
    *,
    level: float = 0.9,
    score: str = "std",
) -> ShiftedIntervals:
    """Return intervals that hold the target with `level` where inputs are distributed anew.

    Parameters
    ----------
    predictions, y, level, score
        As for `conformal_intervals`.
    weights
        As for `shifted_sets`.

    Returns
    -------
    intervals
        A `ShiftedIntervals`, a function from predictions and their ratios to both ends.

    Raises
    ------
    TypeError, ValueError
        As `conformal_intervals`; if weights are not valid, or none is positive where an output is
        observed.
    """
    check_levels("level", level)
    check_option("score", score, INTERVAL_SCORES)
    scores, seen, _ = interval_scores(predictions, y, score, level)
    weights = checked(weights, len(scores))
    columns, observed = (of.reshape(len(scores), -1).T for of in (scores, seen))
    found = (
        _weighted(column[is_seen], weights[is_seen], level)
        for column, is_seen in zip(columns, observed, strict=True)
    )
    return ShiftedIntervals(tuple(found), score)


def _weighted(
    scores: Float[np.ndarray, " N"], weights: Float[np.ndarray, " N"], level: Any
) -> WeightedScores:
    if not weights.any():
        raise ValueError(
            "Found no observed target with a positive weight, expected some for every output; "
            "calibrate on other examples, or leave the output out."
        )
    order = np.argsort(scores, kind="stable")
    return WeightedScores(scores[order], np.cumsum(weights[order]), level)
