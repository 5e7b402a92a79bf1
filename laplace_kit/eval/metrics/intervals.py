"""Coverage and width of central intervals of Gaussian predictions."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from laplace_kit.eval.metrics import checks, weighting
from laplace_kit.eval.metrics.inputs import metric


@metric
def interval_coverage(
    mean: ArrayLike,
    std: ArrayLike,
    y: ArrayLike,
    levels: ArrayLike | Sequence[float],
    *,
    weights: ArrayLike | None = None,
) -> Float[Array, "*levels"]:
    r"""Return the fraction of targets inside the central Gaussian interval of each level.

    The interval of level $q$ is $\mu \pm \Phi^{-1}((1 + q) / 2)\, \sigma$; if predictions are
    calibrated, its coverage is $q$. The fraction is over examples and outputs.

    Parameters
    ----------
    mean, std, y, weights
        As for `gaussian_nll`, with standard deviations; the same errors.
    levels
        Nominal levels between 0 and 1, of any shape, which is that of the result; a `ValueError`
        for other values.
    """
    mean, std, y = checks.regression(mean, std, y, "std")
    weights = weighting.checked(weights, len(mean), mean.dtype)
    levels = checks.fractions("levels", levels, mean.dtype)
    return _coverage(mean, std, y, weights, levels)


@metric
def interval_width(
    std: ArrayLike, levels: ArrayLike | Sequence[float], *, weights: ArrayLike | None = None
) -> Float[Array, "*levels"]:
    r"""Return the mean width of the central Gaussian interval of each level, in the units of `y`.

    $2 \Phi^{-1}((1 + q) / 2)$ times the mean of $\sigma$ over examples and outputs.

    Parameters
    ----------
    std, weights
        As for `sharpness`, with the same errors.
    levels
        As for `interval_coverage`, with the same error.
    """
    (std,) = checks.as_floating(std)
    checks.check_examples("std", std)
    checks.check_spread("std", std)
    weights = weighting.checked(weights, len(std), std.dtype)
    levels = checks.fractions("levels", levels, std.dtype)
    return _width(std, weights, levels)


def _half_widths(levels: Float[Array, "*levels"]) -> Float[Array, "*levels"]:
    """Return the half-widths of central intervals of a standard Gaussian."""
    return jax.scipy.special.ndtri((1 + levels) / 2)


@jax.jit
def _coverage(
    mean: Float[Array, "N *outputs"],
    std: Float[Array, "*broadcast"],
    y: Float[Array, "N *outputs"],
    weights: Num[Array, " N"],
    levels: Float[Array, "*levels"],
) -> Float[Array, "*levels"]:
    half_widths = _half_widths(levels).reshape(-1)
    distances = (jnp.abs(y - mean) / std).reshape(len(mean), -1, 1)
    inside = (distances <= half_widths).astype(distances.dtype)
    inside = jnp.where(jnp.isnan(distances + half_widths), jnp.nan, inside)
    return jnp.mean(weighting.mean(inside, weights), axis=0).reshape(levels.shape)


@jax.jit
def _width(
    std: Float[Array, "N *outputs"], weights: Num[Array, " N"], levels: Float[Array, "*levels"]
) -> Float[Array, "*levels"]:
    return 2 * _half_widths(levels) * weighting.mean_of_all(std, weights)
