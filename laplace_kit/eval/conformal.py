r"""Split-conformal sets and intervals: coverage guaranteed by held-out data, for any model.

Each of n held-out examples gets a score that measures how badly its prediction fits. If new
examples are exchangeable with these, a new score is at most the k-th smallest,

$$
k = \lceil (n + 1) (1 - \alpha) \rceil,
$$

with a probability of at least $1 - \alpha$, and of at most $1 / (n + 1)$ more without ties. Over
the choice of the n examples, the coverage of one calibration has the distribution
$\mathrm{Beta}(k, n + 1 - k)$.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, PyTree

from laplace_kit.errors import check_option
from laplace_kit.eval.evaluation import observed_entries
from laplace_kit.eval.observed import check_known, checked_targets, observed_targets
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.prediction_sets import class_probabilities, probability_after
from laplace_kit.host import fetch
from laplace_kit.likelihood.masked import targets_without_mask
from laplace_kit.targets.base import NumberTargets, no_distribution
from laplace_kit.targets.inversion import check_levels
from laplace_kit.tree import pytree_dataclass

SCORES = ("lac", "aps")


@pytree_dataclass(static=("score", "randomised"))
class ConformalSets:
    """Sets of the classes whose score is at most `threshold`; made by `conformal_sets`.

    `least` is one minus the threshold. Scores are compared by one minus the score, which keeps
    digits for scores near one: float32 has no numbers between 1 - 6e-8 and 1.
    """

    least: Float[Array, ""]
    score: str
    randomised: bool

    def __call__(
        self, predictive: Predictive, *, key: PRNGKeyArray | None = None
    ) -> Bool[Array, "N ... C"]:
        """Return whether each class is in the set of each label.

        Parameters
        ----------
        predictive
            One of the same kind as the one that was calibrated.
        key
            For randomised scores: a fresh key, different from that of `conformal_sets`.

        Raises
        ------
        ValueError
            If a key is given for scores that were not randomised, or missing for randomised ones.
        """
        if (key is not None) != self.randomised:
            raise ValueError(
                "Found no key for randomised scores, expected one, such as key=jax.random.key(1)."
                if self.randomised
                else "Found a key for scores that were not randomised, expected none; pass "
                "one to conformal_sets(..., score='aps') too."
            )
        probs = class_probabilities(predictive.targets)
        return _conformity(probs, self.score, key) >= self.least

    @property
    def threshold(self) -> Float[Array, ""]:
        """The largest score in a set; infinite if sets hold classes of probability zero."""
        return 1 - self.least


@pytree_dataclass()
class ConformalIntervals:
    r"""The intervals $m \pm r \sigma$; made by `conformal_intervals`.

    `radius` r has the shape of the targets of one example, each output having its own.
    """

    radius: Float[Array, "*target"]

    def __call__(
        self, predictive: Predictive
    ) -> tuple[Float[Array, "N *target"], Float[Array, "N *target"]]:
        """Return the ends of the interval of each target.

        Parameters
        ----------
        predictive
            One of the same kind as the one that was calibrated.
        """
        half = self.radius * jnp.sqrt(predictive.var)
        return predictive.mean - half, predictive.mean + half


def conformal_sets(
    predictive: Predictive,
    y: PyTree,
    *,
    level: float = 0.9,
    score: str = "lac",
    key: PRNGKeyArray | None = None,
) -> ConformalSets:
    r"""Return a function from predictives to sets that hold the label with probability `level`.

    Parameters
    ----------
    predictive
        At held-out inputs, with classes.
    y
        Their labels; with a mask, `(y, mask)`. Each label is one calibration point, also if an
        example has several.
    level
        The probability $1 - \alpha$.
    score
        `"lac"`: $1 - p_y$, the smallest sets on average, which may be empty. `"aps"`: the total
        probability of the label and of every more probable class, for sets that are larger where
        the predictive is more uncertain. A class of probability zero has an infinite score: it is
        in no set, or in all if labels had such classes more often than the level allows.
    key
        For `"aps"`: subtracts from each score a random share of the class's own probability,
        $u p_y$ with $u$ uniform between 0 and 1, so that sets are smaller, sometimes empty, and
        cover hardly more than the level. Without it, labels that are the least probable class all
        have the score one, and with two classes nearly every set holds both.

    Returns
    -------
    sets
        A `ConformalSets`, a function from predictives to sets.

    Raises
    ------
    TypeError
        If the predictive has no classes.
    ValueError
        If there are too few labels for the level, they are probabilities or out of range, a
        probability is NaN, or an option is unknown.

    References
    ----------
    Sadinle, Lei and Wasserman (2019), Least ambiguous set-valued classifiers with bounded error
    levels. Romano, Sesia and Candès (2020), Classification with valid and adaptive coverage, whose
    scores are those with a key.
    """
    check_option("score", score, SCORES)
    if key is not None and score != "aps":
        raise ValueError(f"Found a key for score={score!r}, expected one only for 'aps'.")
    check_levels("level", level)
    probs = class_probabilities(predictive.targets)
    likelihood, y = checked_targets(predictive, y)
    seen = fetch(observed_entries(likelihood, predictive, y, probs.shape[:-1]))
    probs, labels = fetch(probs)[seen], targets_without_mask(likelihood, y)
    check_known("probabilities", probs)
    labels = _classes(labels[seen], probs.shape[1])
    conformity = fetch(_conformity(jax.device_put(probs), score, key))
    own = np.take_along_axis(conformity, labels[:, None], axis=1)
    least = jnp.asarray(-_smallest(-own, level)[0], probs.dtype)
    return ConformalSets(least, score, randomised=key is not None)


def conformal_intervals(
    predictive: Predictive, y: PyTree, *, level: float = 0.9
) -> ConformalIntervals:
    r"""Return a function from predictives to intervals that hold the target with a given level.

    The score is $|y - m| / \sigma$, the residual in standard deviations of the predictive: the
    width of the intervals is proportional to $\sigma$, by a factor that the data determine.

    Parameters
    ----------
    predictive
        At held-out inputs, with `mean` and `var`.
    y
        Their targets; with a mask, `(y, mask)`.
    level
        The probability, for each output separately.

    Returns
    -------
    intervals
        A `ConformalIntervals`, a function from predictives to both ends.

    Raises
    ------
    TypeError
        If the predictive has no mean.
    ValueError
        If there are too few targets of an output for the level, a variance is infinite, or a target
        is not finite; leave missing targets out by a mask.

    References
    ----------
    Papadopoulos, Gammerman and Vovk (2008), Normalized nonconformity measures for regression
    conformal prediction. Angelopoulos and Bates (2023), Conformal prediction: a gentle
    introduction.
    """
    check_levels("level", level)
    if not isinstance(predictive.targets, NumberTargets):
        raise no_distribution(_likelihood_name(predictive), "interval of numbers")
    targets, seen = observed_targets(predictive, y)
    scores = np.abs(targets - fetch(predictive.mean)) / np.sqrt(fetch(predictive.var))
    check_known("means and variances", scores[seen])
    if not np.isfinite(fetch(predictive.var)).all():
        raise ValueError(
            "Found targets of infinite variance, expected finite ones, as residuals are divided "
            "by their roots; take predictive.interval(level), or more degrees of freedom than 2."
        )
    columns = np.where(seen, scores, np.inf).reshape(len(scores), -1)
    radius = _smallest(columns, level, seen.reshape(columns.shape).sum(axis=0))
    return ConformalIntervals(jnp.asarray(radius.reshape(scores.shape[1:]), predictive.mean.dtype))


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


def _smallest(
    scores: Float[np.ndarray, "N C"], level: float, num: np.ndarray | None = None
) -> Float[np.ndarray, " C"]:
    """Return the k-th smallest score of each column, with `num` calibration points in each."""
    num = np.full(scores.shape[1], len(scores)) if num is None else num
    # Rounding must not lift a product such as 10 * 0.9 above its exact integer value.
    rank = np.ceil((num + 1) * level - 1e-9).astype(int)
    if np.any(rank > num):
        found = int(num.min())
        raise ValueError(
            f"Found {found} calibration points for level={level}, expected at least "
            f"{math.ceil(level / (1 - level) - 1e-9)}: with fewer only the set of everything, an "
            f"infinite interval, has this coverage; hold out more data, or lower the level to at "
            f"most {found / (found + 1):.4g}."
        )
    return np.take_along_axis(np.sort(scores, axis=0), rank[None] - 1, axis=0)[0]


def _conformity(
    probs: Float[Array, "*shape C"], score: str, key: PRNGKeyArray | None
) -> Float[Array, "*shape C"]:
    """Return one minus the score of every class, randomised if there is a key."""
    if score == "lac":
        return probs
    conformity = probability_after(probs)
    if key is not None:
        # One share per label: the scores of its classes are adjacent, and one is the label's.
        conformity += jax.random.uniform(key, (*probs.shape[:-1], 1), probs.dtype) * probs
    # Otherwise a class of probability zero would score like the class before it.
    return jnp.where(probs > 0, conformity, -jnp.inf)
