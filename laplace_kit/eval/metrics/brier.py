"""The Brier score and its decomposition."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from laplace_kit.eval.metrics import bins, checks, weighting
from laplace_kit.eval.metrics.inputs import metric


@metric
def brier_score(
    probs: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return $\frac{1}{N} \sum_n \sum_c (p_{nc} - y_{nc})^2$, from 0 to 2.

    For two classes this is twice `binary_brier_score`, which scores the positive class only.

    Parameters
    ----------
    probs, y, weights
        As for `negative_log_likelihood`, with the same errors.

    References
    ----------
    Brier (1950), "Verification of forecasts expressed in terms of probability".
    """
    probs, targets = checks.labelled(probs, y)
    weights = weighting.checked(weights, len(probs), probs.dtype)
    return _mean_squares(probs, targets, weights)


@jax.jit
def _mean_squares(probs, targets, weights):
    return weighting.mean(jnp.sum((probs - targets) ** 2, axis=1), weights)


class BrierDecomposition(NamedTuple):
    """The parts of a Brier score, exactly `reliability - resolution + uncertainty + remainder`.

    Attributes
    ----------
    reliability
        Mean squared distance of the frequency in each bin from the mean prediction; zero is best.
    resolution
        Variance of the frequencies over bins; the larger, the more informative the predictions.
    uncertainty
        The Brier score of the base rates.
    remainder
        The contribution of predictions that differ within their bin; zero if none do.
    """

    reliability: Float[Array, ""]
    resolution: Float[Array, ""]
    uncertainty: Float[Array, ""]
    remainder: Float[Array, ""]


@metric
def brier_decomposition(
    probs: ArrayLike, y: ArrayLike, num_bins: int = 15, *, weights: ArrayLike | None = None
) -> BrierDecomposition:
    r"""Return the reliability, resolution, uncertainty and remainder of the Brier score.

    For each class, with $\bar p_b$ and $\bar y_b$ the means of predictions and labels over the
    $N_b$ examples in bin $b$ of the class's probability, and $\bar y$ the mean of all labels, the
    parts are

    $$\sum_b \tfrac{N_b}{N} (\bar p_b - \bar y_b)^2, \quad
    \sum_b \tfrac{N_b}{N} (\bar y_b - \bar y)^2, \quad
    \tfrac{1}{N} \sum_n (y_n - \bar y)^2, \quad
    \tfrac{1}{N} \sum_n (p_n - \bar p_b)^2 - 2 (p_n - \bar p_b) (y_n - \bar y_b),$$

    summed over classes. Murphy's identity, reliability - resolution + uncertainty, gives the score
    itself if and only if the remainder is zero, for example if all predictions in a bin are equal
    (forecasts in steps of ten percent). Otherwise it gives the score of predictions rounded to
    their bin means; the remainder is the difference, the variance within bins minus twice the
    covariance.

    Parameters
    ----------
    probs, y, num_bins, weights
        As for `reliability_bins`, with the same errors.

    References
    ----------
    Murphy (1973), "A new vector partition of the probability score"; Stephenson, Coelho and
    Jolliffe (2008), "Two extra components in the Brier score decomposition", for the remainder.
    """
    checks.check_num_bins(num_bins)
    probs, targets = checks.labelled(probs, y)
    weights = weighting.checked(weights, len(probs), probs.dtype)
    edges = bins.equal_width_edges(num_bins, probs.dtype)
    per_class = jax.vmap(decomposed, in_axes=(1, 1, None, None))(probs, targets, weights, edges)
    return BrierDecomposition(*(jnp.sum(part) for part in per_class))


@jax.jit
def decomposed(
    predicted: Float[Array, " N"],
    observed: Float[Array, " N"],
    weights: Num[Array, " N"],
    edges: Float[Array, " E"],
) -> BrierDecomposition:
    """Return the decomposition of the mean of $(p - y)^2$ for one class."""
    in_bins = bins.averages(predicted, observed, weights, edges)
    indices = bins.bin_indices(predicted, edges)
    share = in_bins.counts / jnp.sum(in_bins.counts)
    base_rate = weighting.mean(observed, weights)
    from_mean = predicted - in_bins.confidence[indices]
    from_frequency = observed - in_bins.accuracy[indices]
    return BrierDecomposition(
        reliability=jnp.sum(share * (in_bins.confidence - in_bins.accuracy) ** 2),
        resolution=jnp.sum(share * (in_bins.accuracy - base_rate) ** 2),
        uncertainty=weighting.mean((observed - base_rate) ** 2, weights),
        remainder=weighting.mean(from_mean * (from_mean - 2 * from_frequency), weights),
    )
