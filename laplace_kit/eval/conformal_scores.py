"""How badly predictions fit targets: the scores of conformal prediction, and their order."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, PyTree

from laplace_kit.arrays import on_host
from laplace_kit.errors import check_option
from laplace_kit.eval import given
from laplace_kit.eval.evaluation import observed_entries
from laplace_kit.eval.given import Predictions
from laplace_kit.eval.grouping import codes_of
from laplace_kit.eval.observed import check_known, checked_targets, observed_targets
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.prediction_sets import class_probabilities, places, probability_after
from laplace_kit.eval.report.inputs import classified
from laplace_kit.host import fetch
from laplace_kit.likelihood.masked import targets_without_mask
from laplace_kit.targets.base import NumberTargets, no_distribution

SCORES = ("lac", "aps", "raps")
INTERVAL_SCORES = ("std", "quantiles")


@dataclass(frozen=True)
class RAPS:
    r"""The score of `"aps"` plus $\lambda \max(0, r - k)$ for a class of rank r.

    It keeps classes of high rank, whose small probabilities are noise, out of the sets, so that
    these are smaller where there are many classes.

    Parameters
    ----------
    penalty
        $\lambda$, not negative.
    num_free
        k, the number of most probable classes without a penalty.

    References
    ----------
    Angelopoulos, Bates, Malik and Jordan (2021), Uncertainty sets for image classifiers using
    conformal prediction.
    """

    penalty: float = 0.1
    num_free: int = 1

    def __post_init__(self):
        if not (self.penalty >= 0 and self.num_free >= 0):
            raise ValueError(
                f"Found penalty={self.penalty} and num_free={self.num_free}, expected numbers of "
                "at least zero."
            )


def checked_score(score: str | RAPS, key: PRNGKeyArray | None) -> str | RAPS:
    """Return the score of classes, an object for `"raps"`."""
    if not isinstance(score, RAPS):
        check_option("score", score, SCORES)
    if key is not None and score == "lac":
        raise ValueError(
            f"Found a key for score={score!r}, expected one only for 'aps' and 'raps'."
        )
    return RAPS() if score == "raps" else score


def check_key(key: PRNGKeyArray | None, randomised: bool) -> None:
    """Raise a `ValueError` unless there is a key for randomised scores, and for no others."""
    if (key is not None) != randomised:
        raise ValueError(
            "Found no key for randomised scores, expected one, such as key=jax.random.key(1)."
            if randomised
            else "Found a key for scores that were not randomised, expected none; pass "
            "one to conformal_sets(..., score='aps') too."
        )


def codes_for(groups: Any, names: tuple | None, num: int) -> tuple[Int[np.ndarray, " N"], ...]:
    """Return the numbers of the groups, in a tuple; an empty one without groups."""
    if (groups is not None) != (names is not None):
        raise ValueError(
            "Found groups for a calibration without any, expected none; pass groups= to it too."
            if names is None
            else "Found no groups for a calibration by group, expected groups=, one for each of "
            f"{num} examples, from {', '.join(map(repr, names))}."
        )
    return () if names is None else (codes_of(groups, names, num),)


def probabilities(predictions: Predictions) -> Float[Array, "N ... C"]:
    """Return the probability of every class along the last axis, on the device."""
    if isinstance(predictions, Predictive):
        return class_probabilities(predictions.targets)
    return jnp.asarray(given.as_probabilities(predictions))


def labelled_probabilities(
    predictions: Predictions, y: PyTree
) -> tuple[Float[np.ndarray, "M C"], Int[np.ndarray, " M"], Bool[np.ndarray, "N ..."]]:
    """Return probabilities and labels of all observed labels, and which are observed."""
    if isinstance(predictions, Predictive):
        probs = class_probabilities(predictions.targets)
        likelihood, y = checked_targets(predictions, y)
        seen = fetch(observed_entries(likelihood, predictions, y, probs.shape[:-1]))
        probs, labels = fetch(probs)[seen], targets_without_mask(likelihood, y)[seen]
    else:
        probs, labels = given.as_probabilities(predictions), on_host(y, "targets")
        labels = labels.astype(int) if labels.dtype.kind == "b" else labels
        probs, labels = classified(probs, labels)
        seen = np.ones(len(probs), bool)
    check_known("probabilities", probs)
    return probs, _classes(labels, probs.shape[1]), seen


def own_scores(
    probs: Float[np.ndarray, "M C"],
    labels: Int[np.ndarray, " M"],
    score: str | RAPS,
    key: PRNGKeyArray | None,
) -> Float[np.ndarray, " M"]:
    """Return the score of each label minus one."""
    all_classes = fetch(conformity(jax.device_put(probs), score, key))
    return -np.take_along_axis(all_classes, labels[:, None], axis=1)[:, 0]


def interval_scores(
    predictions: Predictions, y: PyTree, score: str, level: float
) -> tuple[Float[np.ndarray, "N *target"], Bool[np.ndarray, "N *target"], Any]:
    """Return the score of each target, which are observed, and the dtype of the predictions."""
    if isinstance(predictions, Predictive):
        if not isinstance(predictions.targets, NumberTargets):
            raise no_distribution(_likelihood_name(predictions), "interval of numbers")
        targets, seen = observed_targets(predictions, y)
        mean, var, dtype = fetch(predictions.mean), fetch(predictions.var), predictions.mean.dtype
        if score == "quantiles":
            low, high = fetch(predictions.interval(level))
        elif not np.isfinite(var).all() and not np.isnan(var).any():
            raise ValueError(
                "Found targets of infinite variance, expected finite ones, as residuals are "
                "divided by their roots; take predictive.interval(level), or more degrees of "
                "freedom than 2."
            )
    else:
        first, second = given.as_moments(predictions)
        targets, dtype = on_host(y, "targets").astype(float), None
        if not first.shape == second.shape == targets.shape or first.ndim == 0:
            raise ValueError(
                f"Found arrays of the shapes {first.shape} and {second.shape} for targets of shape "
                f"{targets.shape}, expected the same shape; reshape one of them."
            )
        if not np.isfinite(targets).all():
            raise ValueError(
                "Found targets that are not finite, expected numbers; leave their rows out."
            )
        if score == "std" and not (second > 0).all():
            raise ValueError(
                "Found std with an entry that is not positive, expected positive numbers "
                "everywhere; add the observation noise."
            )
        mean, var, seen = first, np.square(second), np.ones(targets.shape, bool)
        low, high = first, second
    if score == "quantiles":
        scores = np.maximum(low - targets, targets - high)
    else:
        scores = np.abs(targets - mean) / np.sqrt(var)
    check_known("means and variances", scores[seen])
    return scores, seen, dtype


def _likelihood_name(predictive: Predictive) -> str | None:
    likelihood = predictive.likelihood
    return None if likelihood is None else type(likelihood).__name__


def _classes(
    labels: Num[np.ndarray, "M ..."] | Bool[np.ndarray, " M"], num_classes: int
) -> Int[np.ndarray, " M"]:
    """Return labels as whole numbers, where they are not probabilities."""
    if not np.isin(labels, np.arange(num_classes)).all():
        raise ValueError(
            "Found labels that are probabilities of classes, expected one class for each; a set "
            "holds a class or does not."
        )
    return labels.astype(int) if labels.ndim == 1 else labels.argmax(axis=1)


def smallest(
    scores: Float[np.ndarray, "N C"],
    level: float,
    num: np.ndarray | None = None,
    *,
    where: str = "",
) -> Float[np.ndarray, " C"]:
    """Return the k-th smallest score of each column, with `num` calibration points in each."""
    num = np.full(scores.shape[1], len(scores)) if num is None else num
    # Rounding must not lift a product such as 10 * 0.9 above its exact integer value.
    rank = np.ceil((num + 1) * level - 1e-9).astype(int)
    if np.any(rank > num):
        found = int(num.min())
        raise ValueError(
            f"Found {found} calibration points{where} for level={level}, expected at least "
            f"{math.ceil(level / (1 - level) - 1e-9)}: with fewer only the set of everything, an "
            f"infinite interval, has this coverage; hold out more data, or lower the level to at "
            f"most {found / (found + 1):.4g}."
        )
    return np.take_along_axis(np.sort(scores, axis=0), rank[None] - 1, axis=0)[0]


def conformity(
    probs: Float[Array, "*shape C"], score: str | RAPS, key: PRNGKeyArray | None
) -> Float[Array, "*shape C"]:
    """Return one minus the score of every class, randomised if there is a key."""
    if score == "lac":
        return probs
    found = probability_after(probs)
    if key is not None:
        # One share per label: the scores of its classes are adjacent, and one is the label's.
        found += jax.random.uniform(key, (*probs.shape[:-1], 1), probs.dtype) * probs
    if isinstance(score, RAPS):
        found -= score.penalty * jnp.maximum(places(probs) + 1 - score.num_free, 0)
    # Otherwise a class of probability zero would score like the class before it.
    return jnp.where(probs > 0, found, -jnp.inf)
