"""Quantiles of numbers and counts, by bisection of a distribution function."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from laplace_kit import tree
from laplace_kit.host import fetch_array

Cdf = Callable[[Float[Array, "N *target"]], Float[Array, "N *target"]]


def check_levels(name: str, levels: ArrayLike | Sequence[float]) -> None:
    """Raise a `ValueError` if levels are not strictly between 0 and 1."""
    if tree.is_concrete(levels) and not _within(fetch_array(levels)):
        raise ValueError(
            f"Found {name}={levels}, expected numbers between 0 and 1, both excluded, such as 0.9."
        )


def inverted(
    cdf: Cdf,
    q: Float[Array, "*levels"],
    *,
    centre: Float[Array, "N *target"],
    width: Float[Array, "N *target"],
) -> Float[Array, "..."]:
    r"""Return the quantiles of a continuous distribution, $F(y) = q$.

    A bracket around `centre` is doubled until it holds the quantile, then bisected to
    floating-point precision.

    Parameters
    ----------
    cdf
        The distribution function of all targets, for arrays of their shape.
    q
        One level between 0 and 1, or several.
    centre, width
        A point in the bulk of each distribution and a rough scale of it, finite and positive.

    Returns
    -------
    quantiles
        The axes of `q` before the targets' shape. Cost: about 40 calls for each level.
    """
    largest = jnp.finfo(centre.dtype).max / 4

    def solve(level):
        def doubled(end, sign):
            def is_inside(reach):
                outside = sign * (cdf(centre + sign * reach) - level) < 0
                return outside & (reach < largest)

            return jax.lax.while_loop(
                lambda reach: jnp.any(is_inside(reach)),
                lambda reach: jnp.where(is_inside(reach), 2 * reach, reach),
                end,
            )

        return bisected(cdf, level, centre - doubled(width, -1), centre + doubled(width, 1))

    return for_each_level(solve, q)


def bisected(
    cdf: Cdf,
    level: Float[Array, ""],
    low: Float[Array, "N *target"],
    high: Float[Array, "N *target"],
) -> Float[Array, "N *target"]:
    """Bisect a bracket of the quantile to floating-point precision."""

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        is_below = cdf(middle) < level
        return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

    return jax.lax.fori_loop(0, jnp.finfo(low.dtype).nmant + 10, halve, (low, high))[1]


def inverted_counts(
    cdf: Cdf, q: Float[Array, "*levels"], like: Float[Array, "N *target"]
) -> Float[Array, "..."]:
    r"""Return the smallest count with $F(y) \ge q$ for each target.

    A candidate is doubled until it is an upper bound; then a bracket of integers, its lower end
    excluded, is bisected until one is left.

    Parameters
    ----------
    cdf, q
        As for `inverted`.
    like
        An array of the targets' shape.
    """
    largest = jnp.finfo(like.dtype).max / 4

    def solve(level):
        def is_short(high):
            return (cdf(high) < level) & (high < largest)

        high = jax.lax.while_loop(
            lambda high: jnp.any(is_short(high)),
            lambda high: jnp.where(is_short(high), 2 * high, high),
            jnp.ones_like(like),
        )

        def is_open(bracket):
            low, high = bracket
            middle = jnp.floor((low + high) / 2)  # may equal an end if floating point is too coarse
            return jnp.any((low < middle) & (middle < high))

        def halve(bracket):
            low, high = bracket
            middle = jnp.floor((low + high) / 2)
            is_below = cdf(middle) < level
            return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

        return jax.lax.while_loop(is_open, halve, (jnp.full_like(high, -1), high))[1]

    return for_each_level(solve, q)


def for_each_level(
    solve: Callable[[Float[Array, ""]], Array], q: Float[Array, "*levels"]
) -> Float[Array, "..."]:
    """Return `solve(level)` for each level, with the axes of the levels first."""
    found = jax.lax.map(solve, q.reshape(-1))
    return found.reshape(*q.shape, *found.shape[1:])


def _within(levels: np.ndarray) -> bool:
    return bool(np.all((levels > 0) & (levels < 1)))
