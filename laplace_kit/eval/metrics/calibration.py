"""Calibration errors of classifiers: the distance between confidence and accuracy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from laplace_kit.eval.metrics import checks, weighting
from laplace_kit.eval.metrics.bins import ReliabilityBins, equal_mass_bins, reliability_bins
from laplace_kit.eval.metrics.classwise import class_gaps, mean_class_gap
from laplace_kit.eval.metrics.inputs import metric


@metric
def expected_calibration_error(
    probs: ArrayLike, y: ArrayLike, num_bins: int = 15, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return $\sum_b \frac{N_b}{N} |\mathrm{acc}_b - \mathrm{conf}_b|$ over bins of equal width.

    It is biased upwards: sampling noise makes it positive even for calibrated predictions. See
    `debiased_calibration_error` for a correction.

    Parameters
    ----------
    probs, y, num_bins, weights
        As for `reliability_bins`, with the same errors.

    References
    ----------
    Naeini, Cooper and Hauskrecht (2015), "Obtaining well calibrated probabilities using Bayesian
    binning", also for the maximum; Guo et al. (2017), "On calibration of modern neural networks".
    """
    return mean_gap(reliability_bins(probs, y, num_bins, weights=weights))


@metric
def maximum_calibration_error(
    probs: ArrayLike, y: ArrayLike, num_bins: int = 15, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return $\max_b |\mathrm{acc}_b - \mathrm{conf}_b|$ over the occupied bins of equal width.

    Parameters
    ----------
    probs, y, num_bins, weights
        As for `reliability_bins`, with the same errors.
    """
    in_bins = reliability_bins(probs, y, num_bins, weights=weights)
    return _max_gap(in_bins)


@metric
def adaptive_calibration_error(
    probs: ArrayLike, y: ArrayLike, num_bins: int = 15, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return $\sum_b \frac{N_b}{N} |\mathrm{acc}_b - \mathrm{conf}_b|$ over bins of equal mass.

    The bins are those of `equal_mass_bins`. Like `expected_calibration_error`, it uses the most
    probable class only.

    Parameters
    ----------
    probs, y, num_bins, weights
        As for `reliability_bins`, with the same errors.

    References
    ----------
    Nguyen and O'Connor (2015), "Posterior calibration and exploratory analysis for natural language
    processing models"; Nixon et al. (2019), "Measuring calibration in deep learning".
    """
    return mean_gap(equal_mass_bins(probs, y, num_bins, weights=weights))


@metric
def classwise_calibration_error(
    probs: ArrayLike, y: ArrayLike, num_bins: int = 15, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return $\frac{1}{C} \sum_c \sum_b \frac{N_{bc}}{N} |\bar y_{bc} - \bar p_{bc}|$.

    The gap between the probability and the frequency of each class, in bins of equal width of that
    probability, averaged over classes. Unlike the other errors it uses all probabilities.

    Parameters
    ----------
    probs, y, num_bins, weights
        As for `reliability_bins`, with the same errors.

    References
    ----------
    Kull et al. (2019), "Beyond temperature scaling: obtaining well-calibrated multiclass
    probabilities with Dirichlet calibration"; Nixon et al. (2019), who call it static calibration
    error.
    """
    checks.check_num_bins(num_bins)
    probs, targets = checks.labelled(probs, y)
    weights = weighting.checked(weights, len(probs), probs.dtype)
    return mean_class_gap(class_gaps(probs, targets, num_bins), weights, num_bins)


@metric
def squared_calibration_error(
    probs: ArrayLike, y: ArrayLike, num_bins: int = 15, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return an estimate of the mean squared calibration error, corrected for small bins.

    $$\sum_b \frac{N_b}{N} \left[ (\mathrm{acc}_b - \mathrm{conf}_b)^2 -
    \frac{\mathrm{acc}_b (1 - \mathrm{acc}_b)}{N_b - 1} \right]$$

    over bins of equal mass. The subtracted term is the sampling variance of the accuracy, which
    would make calibrated predictions look miscalibrated. The estimate is unbiased if all
    confidences in a bin are equal, and it can be negative. A bin with a single example contributes
    zero. Soft labels vary less than the subtracted variance: for them the estimate is too low.

    Parameters
    ----------
    probs, y, num_bins, weights
        As for `reliability_bins`, with the same errors.

    References
    ----------
    Kumar, Liang and Ma (2019), "Verified uncertainty calibration".
    """
    return _debiased_square(equal_mass_bins(probs, y, num_bins, weights=weights))


@jax.jit
def _debiased_square(in_bins: ReliabilityBins) -> Float[Array, ""]:
    counts, accuracy = in_bins.counts, in_bins.accuracy
    variance = accuracy * (1 - accuracy) / jnp.maximum(counts - 1, 1)
    squares = (accuracy - in_bins.confidence) ** 2 - variance
    return jnp.sum(jnp.where(counts > 1, counts, 0) * squares) / jnp.sum(counts)


@metric
def debiased_calibration_error(
    probs: ArrayLike, y: ArrayLike, num_bins: int = 15, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return $\sqrt{\max(0, \hat E^2)}$, the root of `squared_calibration_error`.

    It has the units of the expected calibration error, and is at least as large for many examples,
    as a root mean square instead of a mean. For calibrated predictions it is near zero, where the
    expected calibration error is not.

    Parameters
    ----------
    probs, y, num_bins, weights
        As for `reliability_bins`, with the same errors.

    References
    ----------
    Kumar, Liang and Ma (2019), "Verified uncertainty calibration".
    """
    squared = squared_calibration_error(probs, y, num_bins, weights=weights)
    return jnp.sqrt(jnp.maximum(squared, 0))


@jax.jit
def _max_gap(in_bins: ReliabilityBins) -> Float[Array, ""]:
    return jnp.max(jnp.abs(in_bins.accuracy - in_bins.confidence))


@jax.jit
def mean_gap(in_bins: ReliabilityBins) -> Float[Array, ""]:
    """Return the mean absolute difference of accuracy and confidence, weighted by counts."""
    gaps = jnp.abs(in_bins.accuracy - in_bins.confidence)
    return jnp.sum(in_bins.counts * gaps) / jnp.sum(in_bins.counts)
