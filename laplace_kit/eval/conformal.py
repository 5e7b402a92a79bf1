r"""Split-conformal sets and intervals: coverage guaranteed by held-out data, for any model.

Each of n held-out examples gets a score that measures how badly its prediction fits. If new
examples are exchangeable with these, a new score is at most the k-th smallest,

$$
k = \lceil (n + 1) (1 - \alpha) \rceil,
$$

with a probability of at least $1 - \alpha$, and of at most $1 / (n + 1)$ more without ties. Over
the choice of the n examples, the coverage of one calibration has the distribution
$\mathrm{Beta}(k, n + 1 - k)$.

With groups, or by class, there is a threshold for each, and the coverage holds in each.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import dtypes
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from laplace_kit.errors import check_option
from laplace_kit.eval import given
from laplace_kit.eval.conformal_scores import (
    INTERVAL_SCORES,
    RAPS,
    check_key,
    checked_score,
    codes_for,
    conformity,
    interval_scores,
    labelled_probabilities,
    own_scores,
    probabilities,
    smallest,
)
from laplace_kit.eval.given import Predictions
from laplace_kit.eval.grouping import as_groups
from laplace_kit.eval.outputs import Predictive
from laplace_kit.targets.inversion import check_levels
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass(static=("score", "randomised", "groups", "by_class"))
class ConformalSets:
    """Sets of the classes whose score is at most `threshold`; made by `conformal_sets`.

    `least` is one minus the threshold, with an axis of the groups and one of the classes where each
    has its own. Scores are compared by one minus the score, which keeps digits for scores near one:
    float32 has no numbers between 1 - 6e-8 and 1.
    """

    least: Float[Array, "*cells"]
    score: str | RAPS
    randomised: bool
    groups: tuple | None = None
    by_class: bool = False

    def __call__(
        self,
        predictive: Predictions,
        *,
        key: PRNGKeyArray | None = None,
        groups: Any = None,
    ) -> Bool[Array, "N ... C"]:
        """Return whether each class is in the set of each label.

        Parameters
        ----------
        predictive
            Predictions of the same kind as those that were calibrated.
        key
            For randomised scores: a fresh key, different from that of `conformal_sets`.
        groups
            The group of each example, `(N,)`, if sets were calibrated by group.

        Raises
        ------
        ValueError
            If a key is given for scores that were not randomised, or missing for randomised ones;
            likewise groups.
        """
        check_key(key, self.randomised)
        probs = probabilities(predictive)
        least = self.least
        if codes := codes_for(groups, self.groups, len(probs)):
            least = least[codes[0]]
            rest = probs.shape[:-1] if not self.by_class else probs.shape
            least = least.reshape(len(probs), *(1,) * (len(rest) - least.ndim), *least.shape[1:])
        if not self.by_class:
            least = least[..., None]
        return conformity(probs, self.score, key) >= least

    @property
    def threshold(self) -> Float[Array, "*cells"]:
        """The largest score in a set; infinite if sets hold classes of probability zero."""
        return 1 - self.least


@pytree_dataclass(static=("score", "level", "groups"))
class ConformalIntervals:
    r"""The intervals $m \pm r \sigma$, or quantiles moved by r; made by `conformal_intervals`.

    `radius` r has the shape of the targets of one example, each output having its own, and an axis
    of the groups in front where each has its own. `level` is that of the quantiles.
    """

    radius: Float[Array, "*cells"]
    score: str = "std"
    level: float = 0.9
    groups: tuple | None = None

    def __call__(
        self, predictive: Predictions, *, groups: Any = None
    ) -> tuple[Float[Array, "N *target"], Float[Array, "N *target"]]:
        """Return the ends of the interval of each target.

        Parameters
        ----------
        predictive
            Predictions of the same kind as those that were calibrated.
        groups
            The group of each example, `(N,)`, if intervals were calibrated by group.
        """
        first, second = self._ends(predictive)
        radius = self.radius
        if codes := codes_for(groups, self.groups, len(first)):
            radius = radius[codes[0]]
        if self.score == "quantiles":
            low, high = first - radius, second + radius
            crossed = low > high  # a radius below minus half the width
            return jnp.where(crossed, (low + high) / 2, low), jnp.where(
                crossed, (low + high) / 2, high
            )
        return first - radius * second, first + radius * second

    def _ends(self, predictive: Predictions) -> tuple[Array, Array]:
        if not isinstance(predictive, Predictive):
            return tuple(map(jnp.asarray, given.as_moments(predictive)))
        if self.score == "quantiles":
            return predictive.interval(self.level)
        return predictive.mean, jnp.sqrt(predictive.var)


def conformal_sets(
    predictive: Predictions,
    y: PyTree,
    *,
    level: float = 0.9,
    score: str | RAPS = "lac",
    key: PRNGKeyArray | None = None,
    groups: Any = None,
    by_class: bool = False,
) -> ConformalSets:
    r"""Return a function from predictions to sets that hold the label with probability `level`.

    Parameters
    ----------
    predictive
        At held-out inputs: a `Predictive` with classes, or probabilities `(N, C)`, or the
        probability of class 1, `(N,)`.
    y
        Their labels; with a mask, `(y, mask)`. Each label is one calibration point, also if an
        example has several.
    level
        The probability $1 - \alpha$.
    score
        `"lac"`: $1 - p_y$, the smallest sets on average, which may be empty. `"aps"`: the total
        probability of the label and of every more probable class, for sets that are larger where
        the predictive is more uncertain. `"raps"`: the same with a penalty on ranks, see `RAPS`,
        which is also taken. A class of probability zero has an infinite score: it is in no set, or
        in all if labels had such classes more often than the level allows.
    key
        For `"aps"` and `"raps"`: subtracts from each score a random share of the class's own
        probability, $u p_y$ with $u$ uniform between 0 and 1, so that sets are smaller, sometimes
        empty, and cover hardly more than the level. Without it, labels that are the least probable
        class all have the score one, and with two classes nearly every set holds both.
    groups
        The group of each example, `(N,)`: each group has its own threshold, and its coverage.
    by_class
        Whether each class has its own threshold: then labels of every class are covered with the
        level, also rare ones.

    Returns
    -------
    sets
        A `ConformalSets`, a function from predictions to sets.

    Raises
    ------
    TypeError
        If the predictive has no classes.
    ValueError
        If there are too few labels, of a group or of a class, for the level, they are probabilities
        or out of range, a probability is NaN, or an option is unknown.

    References
    ----------
    Sadinle, Lei and Wasserman (2019), Least ambiguous set-valued classifiers with bounded error
    levels, also by class. Romano, Sesia and Candès (2020), Classification with valid and adaptive
    coverage, whose scores are those with a key. Vovk (2012), Conditional validity of inductive
    conformal predictors, for groups.
    """
    score = checked_score(score, key)
    check_levels("level", level)
    probs, labels, seen = labelled_probabilities(predictive, y)
    names, codes = as_groups(groups, len(seen)) if groups is not None else (None, None)
    own = own_scores(probs, labels, score, key)
    cells = [np.ones(len(own), bool)]
    words = [""]
    if names is not None:
        codes = np.broadcast_to(codes.reshape(-1, *(1,) * (seen.ndim - 1)), seen.shape)[seen]
        cells = [codes == number for number in range(len(names))]
        words = [f" of the group {name!r}" for name in names]
    shape = () if names is None else (len(names),)
    if by_class:
        num_classes = probs.shape[1]
        cells = [cell & (labels == c) for cell in cells for c in range(num_classes)]
        words = [f"{word} with the label {c}" for word in words for c in range(num_classes)]
        shape = (*shape, num_classes)
    least = [
        -smallest(own[cell, None], level, where=word)[0]
        for cell, word in zip(cells, words, strict=True)
    ]
    least = jnp.asarray(np.reshape(least, shape), dtypes.canonicalize_dtype(probs.dtype))
    return ConformalSets(least, score, key is not None, names, by_class)


def conformal_intervals(
    predictive: Predictions,
    y: PyTree,
    *,
    level: float = 0.9,
    score: str = "std",
    groups: Any = None,
) -> ConformalIntervals:
    r"""Return a function from predictions to intervals that hold the target with a given level.

    Parameters
    ----------
    predictive
        At held-out inputs: a `Predictive` with `mean` and `var`, or a pair of arrays, means and
        standard deviations or, for the score `"quantiles"`, lower and upper ends.
    y
        Their targets; for a predictive also with a mask, `(y, mask)`.
    level
        The probability, for each output separately.
    score
        `"std"`: $|y - m| / \sigma$, the residual in standard deviations of the predictive; the
        width of the intervals is proportional to $\sigma$, by a factor that the data determine.
        `"quantiles"`: $\max(l - y, y - u)$ for the central interval $[l, u]$ of the level, whose
        ends are moved by the same amount everywhere (conformalised quantile regression).
    groups
        The group of each example, `(N,)`: each group has its own radius, and its coverage.

    Returns
    -------
    intervals
        A `ConformalIntervals`, a function from predictions to both ends.

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
    conformal prediction. Romano, Patterson and Candès (2019), Conformalized quantile regression.
    Angelopoulos and Bates (2023), Conformal prediction: a gentle introduction.
    """
    check_levels("level", level)
    check_option("score", score, INTERVAL_SCORES)
    scores, seen, dtype = interval_scores(predictive, y, score, level)
    columns = np.where(seen, scores, np.inf).reshape(len(scores), -1)
    counted = seen.reshape(columns.shape)
    if groups is None:
        radius = smallest(columns, level, counted.sum(axis=0)).reshape(scores.shape[1:])
        return ConformalIntervals(jnp.asarray(radius, dtype), score, level)
    names, codes = as_groups(groups, len(scores))
    radius = [
        smallest(
            columns[codes == number],
            level,
            counted[codes == number].sum(axis=0),
            where=f" of the group {name!r}",
        )
        for number, name in enumerate(names)
    ]
    radius = np.reshape(radius, (len(names), *scores.shape[1:]))
    return ConformalIntervals(jnp.asarray(radius, dtype), score, level, names)
