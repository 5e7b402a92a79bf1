"""Sums over the examples whose score exceeds a threshold, shared by all threshold curves."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num


class SumsAbove(NamedTuple):
    """Sums over the scores above each threshold, excluding and including equal ones."""

    above: Float[Array, " T"]
    at_or_above: Float[Array, " T"]


def sums_above(
    scores: Float[Array, " N"], values: Num[Array, " N"], thresholds: Float[Array, " T"]
) -> SumsAbove:
    r"""Return $\sum_{s_n > t} v_n$ and $\sum_{s_n \ge t} v_n$ for each threshold, by sorting."""
    order = jnp.argsort(-scores)
    descending = -scores[order]
    totals = jnp.pad(jnp.cumsum(values[order]), (1, 0)).astype(scores.dtype)
    above = jnp.searchsorted(descending, -thresholds, side="left")
    at_or_above = jnp.searchsorted(descending, -thresholds, side="right")
    return SumsAbove(totals[above], totals[at_or_above])


def ratio(part: Num[Array, "*shape"], whole: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return `part / whole`, zero where `whole` is zero."""
    return jnp.where(whole == 0, 0, part / jnp.where(whole == 0, 1, whole))
