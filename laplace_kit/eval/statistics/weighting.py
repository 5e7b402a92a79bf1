r"""Weights of examples on the host, and sums with several weightings.

Integer-valued weights are counts and all others proportions, as in
`laplace_kit.eval.metrics.weighting`. A *weighting* is one row of an array `(R, N)`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Int, Num

from laplace_kit.host import fetch_array

Weightings = Float[np.ndarray, "R N"]


def checked(weights: ArrayLike | None, num: int, name: str = "weights") -> Float[np.ndarray, " N"]:
    """Return the weights of `num` examples, one each if `weights` is `None`.

    A `ValueError` is raised for weights of another shape, or that are negative, not finite or all
    zero.
    """
    if weights is None:
        return np.ones(num)
    weights = fetch_array(weights, float)
    if weights.shape != (num,):
        raise ValueError(
            f"Found {name} of shape {weights.shape} for {num} examples, expected one number for "
            f"each, ({num},)."
        )
    bad = np.flatnonzero(~((weights >= 0) & np.isfinite(weights)))
    if len(bad):
        raise ValueError(
            f"Found {weights[bad[0]]} at {name}[{bad[0]}], expected finite numbers of at least "
            "zero; zero leaves an example out."
        )
    if not weights.any():
        raise ValueError(
            f"Found {name} that are all zero, expected a positive weight for some example; leave "
            "the weights out to count all examples alike."
        )
    return weights


def are_counts(weights: Num[np.ndarray, "..."]) -> bool:
    """Return whether weights are whole numbers, which repeat the examples."""
    return bool((weights == np.round(weights)).all())


def weighted_means(
    weights: Weightings, values: Float[np.ndarray, "N K"]
) -> Float[np.ndarray, "R K"]:
    """Return the means of the columns; infinite if an infinite value has a positive weight."""
    is_finite = np.isfinite(values)
    sums = weights @ np.where(is_finite, values, 0.0)
    if not is_finite.all():
        # Kept apart, as zero times infinity is not a number.
        for special, found in (
            (np.inf, values == np.inf),
            (-np.inf, values == -np.inf),
            (np.nan, np.isnan(values)),
        ):
            sums[weights @ found.astype(float) > 0] = special
    return sums / weights.sum(axis=1, keepdims=True)


class Ranking(NamedTuple):
    """Examples in increasing order of a value, in groups of equal values.

    Attributes
    ----------
    order
        The index of the example at each place.
    values
        The values in this order.
    ends
        The number of examples up to the end of each of G groups.
    group
        The group of each place.
    """

    order: Int[np.ndarray, " N"]
    values: Float[np.ndarray, " N"]
    ends: Int[np.ndarray, " G"]
    group: Int[np.ndarray, " N"]


def ranked(values: Float[np.ndarray, " N"]) -> Ranking:
    """Return the examples ranked by a value; ties keep their order."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    is_last = np.append(ascending[1:] != ascending[:-1], True)
    group = np.cumsum(is_last) - is_last
    return Ranking(order, ascending, np.flatnonzero(is_last) + 1, group)


def cumulated(values: Float[np.ndarray, "R N"]) -> Float[np.ndarray, "R _"]:
    """Return the sums of the first 0, 1, ..., N values of each row."""
    sums = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def up_to_ends(values: Float[np.ndarray, "R N"], ranking: Ranking) -> Float[np.ndarray, "R G"]:
    """Return the sums of each row, in the order of a ranking, up to the end of each group."""
    sums = np.cumsum(values, axis=1)
    # Without ties no copy is made.
    return sums if len(ranking.ends) == sums.shape[1] else sums[:, ranking.ends - 1]


def ratio(
    part: Float[np.ndarray, "*shape"], whole: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """Return `part / whole`, zero where `whole` is zero."""
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=whole != 0)


def effective_size(weights: Float[np.ndarray, " N"]) -> float:
    """Return the number of examples: the sum of counts, or Kish's size for proportions."""
    total = weights.sum()
    return float(total if are_counts(weights) else total**2 / np.square(weights).sum())


def as_columns(values: Bool[np.ndarray, "N *outputs"]) -> Float[np.ndarray, " N"]:
    """Return the share of true entries of each example."""
    return values.reshape(len(values), -1).mean(axis=1)
