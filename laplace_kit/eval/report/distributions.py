"""What the predictive distribution of numbers or counts implies for the observed targets."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Num

from laplace_kit.eval.report.predictions import Distributions
from laplace_kit.eval.statistics.numbers import LEVEL, normal_scores
from laplace_kit.host import fetch, fetch_array
from laplace_kit.targets.base import NumberTargets
from laplace_kit.targets.crps import crps

Rows = Callable[[Num[Array, "N ..."]], Num[Array, "M C"]]


def distributions_of(targets: NumberTargets, y: Num[ArrayLike, "N *target"]) -> Distributions:
    """Return what a report asks of the distribution of N targets.

    Parameters
    ----------
    targets
        Numbers or counts, with `log_prob`, `cdf` and `quantile`, such as
        `la.predict(x).targets`, or those of a likelihood of your own.
    y
        The targets that were observed, of their shape.

    Returns
    -------
    distributions
        One row for each example, with flattened outputs. Normal distributions, and marginals of
        jointly normal ones, have closed forms; others cost two quantiles and the distribution
        function at 112 points, up to 224 for counts.
    """
    return rows_of(targets, y, lambda values: jnp.reshape(values, (len(values), -1)))


def rows_of(targets: NumberTargets, y: Num[ArrayLike, "N *target"], rows: Rows) -> Distributions:
    """Return the distributions with rows chosen by a function, such as those with a target."""
    y = jnp.asarray(y)
    log_prob = targets.log_prob(y)
    log_prob = log_prob if targets.is_joint else rows(log_prob).sum(axis=1)
    if targets.is_normal:
        std = jnp.sqrt(targets.variance)
        moments = (fetch_array(rows(of), float) for of in (targets.mean, std, y))
        _, *others = normal_scores(*moments)
        return Distributions(fetch(log_prob), *others)
    return fetch(Distributions(log_prob, *map(rows, _scores(targets, y))))


def _scores(targets: NumberTargets, y: Num[ArrayLike, "N *target"]) -> tuple[Array, ...]:
    """Return the fields of `Distributions` after the first, of the targets' shape."""
    # Not one program: the distribution function is compiled once for all of its calls.
    dtype = targets.mean.dtype
    y, levels = jnp.asarray(y, dtype), np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    cdf = targets.cdf(y)
    low, high = (jnp.asarray(end, dtype) for end in targets.quantile(jnp.asarray(levels, dtype)))
    below, content = cdf, jnp.full_like(cdf, LEVEL)
    if targets.is_discrete:
        below, content = targets.cdf(y - 1), targets.cdf(high) - targets.cdf(low - 1)
    return cdf, below, low, high, content, crps(targets, y, low, high)
