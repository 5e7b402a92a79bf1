r"""Metrics of predictions: plain functions of arrays that return means over examples.

Classification metrics read probabilities `(N, C)`, rows summing to one, and labels `y`: integers
`(N,)`, or one-hot or soft labels `(N, C)`. Regression metrics read means, variances or standard
deviations, and targets of one and the same shape, `(N,)` or `(N, *outputs)`; a variance or standard
deviation may also be a scalar. Nothing else is broadcast.

All of them compile and accept numpy arrays; the answer has the arguments' dtype, float32 at least.
A `ValueError` meets shapes that do not go together and, where values are known, values that are no
probabilities, labels, variances or levels. Under `jax.jit` values are not known: there, labels out
of range and NaNs make the answer NaN.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num

from laplace_kit.tree import is_concrete

# Rows of probabilities may miss one by so much: rounding of bfloat16 included, logits excluded.
_SUM_TOLERANCE = 0.02


# --- classification --------------------------------------------------------------------------


def negative_log_likelihood(probs: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
    r"""Return $-\frac{1}{N} \sum_n \sum_c y_{nc} \log p_{nc}$, in nats.

    Parameters
    ----------
    probs
        Probabilities `(N, C)`. A probability of zero counts as the smallest normal number of its
        dtype, so that one such label costs 87 nats in float32 and 708 in float64, not infinity.
    y
        Labels `(N,)` or `(N, C)`; soft labels give the cross-entropy.

    Raises
    ------
    ValueError
        If shapes or values are not those of probabilities and labels.
    """
    probs, targets = _classification(probs, y)
    logs = jnp.log(jnp.maximum(probs, jnp.finfo(probs.dtype).tiny))
    return -jnp.mean(jnp.sum(targets * logs, axis=1))


def accuracy(probs: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
    """Return the fraction of examples whose most probable class is the label.

    Parameters
    ----------
    probs, y
        As for `negative_log_likelihood`, with the same errors. Of equal probabilities the first
        class counts, of a soft label the most probable one.
    """
    return jnp.mean(_hits(*_classification(probs, y)))


def brier_score(probs: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
    r"""Return $\frac{1}{N} \sum_n \sum_c (p_{nc} - y_{nc})^2$, from 0 to 2.

    For two classes this is twice the score that looks at the positive class alone.

    Parameters
    ----------
    probs, y
        As for `negative_log_likelihood`, with the same errors.

    References
    ----------
    Brier (1950), "Verification of forecasts expressed in terms of probability".
    """
    probs, targets = _classification(probs, y)
    return jnp.mean(jnp.sum((probs - targets) ** 2, axis=1))


class ReliabilityBins(NamedTuple):
    """Predictions grouped by confidence, the largest probability of an example.

    Bin `b` holds the `counts[b]` examples with a confidence in `(edges[b], edges[b + 1]]`; of these
    `confidence[b]` is the mean and `accuracy[b]` the fraction whose most probable class is the
    label. Both are zero where the bin is empty.
    """

    edges: Float[Array, " B+1"]
    counts: Int[Array, " B"]
    confidence: Float[Array, " B"]
    accuracy: Float[Array, " B"]


def reliability_bins(probs: ArrayLike, y: ArrayLike, num_bins: int = 15) -> ReliabilityBins:
    """Compare confidence with accuracy in `num_bins` bins of equal width.

    Parameters
    ----------
    probs, y
        Probabilities `(N, C)` and labels `(N,)` or `(N, C)`, as for `accuracy`.
    num_bins
        Number of bins between 0 and 1.

    Raises
    ------
    ValueError
        If probabilities or labels are not valid, or `num_bins` is not positive.
    """
    _check_num_bins(num_bins)
    probs, targets = _classification(probs, y)
    return _bins(probs, targets, jnp.linspace(0, 1, num_bins + 1, dtype=probs.dtype))


def expected_calibration_error(
    probs: ArrayLike, y: ArrayLike, num_bins: int = 15
) -> Float[Array, ""]:
    r"""Return $\sum_b \frac{N_b}{N} |\mathrm{acc}_b - \mathrm{conf}_b|$ over bins of equal width.

    Parameters
    ----------
    probs, y, num_bins
        As for `reliability_bins`, with the same errors.

    References
    ----------
    Naeini, Cooper and Hauskrecht (2015), "Obtaining well calibrated probabilities using Bayesian
    binning", for both errors; Guo et al. (2017), "On calibration of modern neural networks".
    """
    return _mean_gap(reliability_bins(probs, y, num_bins))


def maximum_calibration_error(
    probs: ArrayLike, y: ArrayLike, num_bins: int = 15
) -> Float[Array, ""]:
    r"""Return $\max_b |\mathrm{acc}_b - \mathrm{conf}_b|$ over the occupied bins of equal width.

    Parameters
    ----------
    probs, y, num_bins
        As for `reliability_bins`, with the same errors.
    """
    bins = reliability_bins(probs, y, num_bins)
    return jnp.max(jnp.abs(bins.accuracy - bins.confidence))


def adaptive_calibration_error(
    probs: ArrayLike, y: ArrayLike, num_bins: int = 15
) -> Float[Array, ""]:
    r"""Return $\sum_b \frac{N_b}{N} |\mathrm{acc}_b - \mathrm{conf}_b|$ over bins of equal mass.

    The confidences, sorted, are cut into `num_bins` groups whose sizes differ by one at most, the
    larger ones first. Equal confidences stay together, in the lower bin, so that the examples'
    order does not matter. Like its equal-width sibling it judges the most probable class only.

    Parameters
    ----------
    probs, y, num_bins
        As for `reliability_bins`, with the same errors.

    References
    ----------
    Nguyen and O'Connor (2015), "Posterior calibration and exploratory analysis for natural language
    processing models"; Nixon et al. (2019), "Measuring calibration in deep learning".
    """
    _check_num_bins(num_bins)
    probs, targets = _classification(probs, y)
    size, num_larger = divmod(probs.shape[0], num_bins)
    sizes = [size + (b < num_larger) for b in range(num_bins - 1)]
    last = np.clip(np.cumsum(sizes, dtype=int) - 1, 0, None)
    inner = jnp.sort(jnp.max(probs, axis=1))[last]
    return _mean_gap(_bins(probs, targets, jnp.pad(inner, 1, constant_values=(0, 1))))


def auroc(in_scores: ArrayLike, out_scores: ArrayLike) -> Float[Array, ""]:
    r"""Return the area under the ROC curve: the chance that an outsider scores higher.

    $P(s_\mathrm{out} > s_\mathrm{in}) + \frac{1}{2} P(s_\mathrm{out} = s_\mathrm{in})$ over all
    pairs, exact, by sorting: $O(n \log n)$.

    Parameters
    ----------
    in_scores, out_scores
        Scores `(N,)` of in-distribution inputs, expected lower, and `(M,)` of out-of-distribution
        inputs, expected higher; for example predictive entropies.

    Raises
    ------
    ValueError
        If either is empty or not one-dimensional, or has a score that is not a number.
    """
    in_scores, out_scores = _as_floating(in_scores, out_scores)
    for name, scores in (("in_scores", in_scores), ("out_scores", out_scores)):
        if scores.ndim != 1 or scores.size == 0:
            raise ValueError(
                f"Found {name} of shape {scores.shape}, expected one score per input, (N,); reduce "
                "each prediction to a number first, for example its entropy."
            )
        _require(~jnp.isnan(scores), f"a NaN in {name}", "numbers; drop the inputs it came from")
    return _area_under_roc(in_scores, out_scores)


@jax.jit
def _area_under_roc(inside: Float[Array, " N"], outside: Float[Array, " M"]) -> Float[Array, ""]:
    inside = jnp.sort(inside)
    below = jnp.searchsorted(inside, outside, side="left")
    not_above = jnp.searchsorted(inside, outside, side="right")
    area = jnp.mean((below + not_above).astype(inside.dtype) / (2 * inside.size))
    return jnp.where(jnp.isnan(inside[-1]) | jnp.isnan(outside).any(), jnp.nan, area)


# --- regression ------------------------------------------------------------------------------


def gaussian_nll(mean: ArrayLike, var: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
    r"""Return the mean of $-\log \mathcal{N}(y_n \mid \mu_n, \sigma_n^2)$ over examples, in nats.

    $\frac{1}{N} \sum_n \sum_c \frac{1}{2} [\log(2 \pi \sigma_{nc}^2) + (y_{nc} - \mu_{nc})^2 /
    \sigma_{nc}^2]$: the sum over outputs, which are independent given the input.

    Parameters
    ----------
    mean, var, y
        Predictive means, positive variances (noise included) and targets, `(N, *outputs)`; `var`
        may be a scalar.

    Raises
    ------
    ValueError
        If the shapes differ or a variance is not positive.
    """
    mean, var, y = _regression(mean, var, y, "var")
    nll = 0.5 * (math.log(2 * math.pi) + jnp.log(var) + (y - mean) ** 2 / var)
    return jnp.sum(nll) / mean.shape[0]


def crps_gaussian(mean: ArrayLike, std: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
    r"""Return the continuous ranked probability score of Gaussians, in the units of `y`.

    $\sigma \, [z (2 \Phi(z) - 1) + 2 \varphi(z) - 1/\sqrt{\pi}]$ with $z = (y - \mu) / \sigma$,
    averaged over examples and outputs. As $\sigma \to 0$ it becomes the absolute error.

    Parameters
    ----------
    mean, std, y
        As for `gaussian_nll`, with standard deviations; the same errors.

    References
    ----------
    Gneiting and Raftery (2007), "Strictly proper scoring rules, prediction, and estimation".
    """
    mean, std, y = _regression(mean, std, y, "std")
    return jnp.mean(std * _crps_of_standard_normal((y - mean) / std))


@jax.jit
def _crps_of_standard_normal(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    cdf, pdf = jax.scipy.stats.norm.cdf(z), jax.scipy.stats.norm.pdf(z)
    return z * (2 * cdf - 1) + 2 * pdf - 1 / math.sqrt(math.pi)


def interval_coverage(
    mean: ArrayLike, std: ArrayLike, y: ArrayLike, levels: ArrayLike
) -> Float[Array, "*levels"]:
    r"""Return the fraction of targets inside the central Gaussian interval of each level.

    The interval of level $q$ is $\mu \pm \Phi^{-1}((1 + q) / 2)\, \sigma$; a calibrated prediction
    covers $q$. The fraction is over examples and outputs.

    Parameters
    ----------
    mean, std, y
        As for `gaussian_nll`, with standard deviations; the same errors.
    levels
        Nominal levels between 0 and 1, or a `ValueError` says so; their shape is the answer's.
    """
    mean, std, y = _regression(mean, std, y, "std")
    levels = jnp.asarray(levels, mean.dtype)
    valid = (levels >= 0) & (levels <= 1)
    _require(valid, "levels outside 0 to 1", "fractions; divide percentages by 100")
    half_widths = jax.scipy.special.ndtri((1 + levels) / 2).reshape(1, -1)
    distances = (jnp.abs(y - mean) / std).reshape(-1, 1)
    inside = (distances <= half_widths).astype(mean.dtype)
    unknown = jnp.isnan(distances + half_widths)
    return jnp.mean(jnp.where(unknown, jnp.nan, inside), axis=0).reshape(levels.shape)


def rmse(mean: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
    r"""Return $\sqrt{\mathrm{mean}\,(y - \mu)^2}$ over examples and outputs, in the units of `y`.

    Parameters
    ----------
    mean, y
        As for `gaussian_nll`, with the same errors.
    """
    mean, _, y = _regression(mean, 1.0, y, "std")
    return jnp.sqrt(jnp.mean((y - mean) ** 2))


def chi_squared(mean: ArrayLike, var: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
    r"""Return the mean of $(y - \mu)^2 / \sigma^2$ over examples and outputs.

    One when the variances are right on average, above one when they are too small.

    Parameters
    ----------
    mean, var, y
        As for `gaussian_nll`, with the same errors.
    """
    mean, var, y = _regression(mean, var, y, "var")
    return jnp.mean((y - mean) ** 2 / var)


# --- binning ---------------------------------------------------------------------------------


@jax.jit
def _hits(probs: Float[Array, "N C"], targets: Float[Array, "N C"]) -> Float[Array, " N"]:
    """Return 1 where the most probable class is the label, else 0; NaN where either is unknown."""
    hit = jnp.argmax(probs, axis=1) == jnp.argmax(targets, axis=1)
    return jnp.where(jnp.isnan(jnp.sum(probs + targets, axis=1)), jnp.nan, hit.astype(probs.dtype))


@jax.jit
def _bins(
    probs: Float[Array, "N C"], targets: Float[Array, "N C"], edges: Float[Array, " E"]
) -> ReliabilityBins:
    num_bins = edges.shape[0] - 1
    confidence = jnp.max(probs, axis=1)
    index = jnp.searchsorted(edges[1:-1], confidence, side="left")
    counts = jnp.bincount(index, length=num_bins)

    def bin_means(values):
        return jax.ops.segment_sum(values, index, num_bins) / jnp.maximum(counts, 1)

    # Over millions of examples in float32, sums of small deviations stay accurate; others do not.
    centres = (edges[1:] + edges[:-1]) / 2
    mean_confidence = jnp.where(counts > 0, centres + bin_means(confidence - centres[index]), 0)
    return ReliabilityBins(edges, counts, mean_confidence, bin_means(_hits(probs, targets)))


def _mean_gap(bins: ReliabilityBins) -> Float[Array, ""]:
    gaps = jnp.abs(bins.accuracy - bins.confidence)
    return jnp.sum(bins.counts * gaps) / jnp.sum(bins.counts)


# --- checks ----------------------------------------------------------------------------------


def _as_floating(*arrays: ArrayLike) -> list[Float[Array, "..."]]:
    dtype = jnp.result_type(jnp.float32, *arrays)
    return [jnp.asarray(array, dtype) for array in arrays]


def _require(condition: Bool[Array, "..."], found: str, expected: str) -> None:
    if is_concrete(condition) and not condition.all():
        raise ValueError(f"Found {found}, expected {expected}.")


def _check_num_bins(num_bins: int) -> None:
    if num_bins < 1:
        raise ValueError(f"Found num_bins={num_bins}, expected at least 1; 15 is usual.")


def _classification(
    probs: ArrayLike, y: ArrayLike
) -> tuple[Float[Array, "N C"], Float[Array, "N C"]]:
    """Return the probabilities and the labels as distributions over the classes."""
    (probs,) = _as_floating(probs)
    y = jnp.asarray(y)
    if probs.ndim != 2 or probs.size == 0:
        raise ValueError(
            f"Found probs of shape {probs.shape}, expected (N, C) with at least one example; for "
            "more axes use probs.reshape(-1, C), for p(y = 1) jnp.stack([1 - p, p], axis=-1)."
        )
    _check_distributions("probs", probs, "of logits pass jax.nn.softmax(logits)")
    if y.shape == probs.shape:
        targets = y.astype(probs.dtype)
        _check_distributions("y", targets, "or pass integer labels (N,)")
        return probs, targets
    if y.shape != probs.shape[:1]:
        raise ValueError(
            f"Found y of shape {y.shape} for probs of shape {probs.shape}, expected integer labels "
            f"{probs.shape[:1]} or one-hot labels {probs.shape}; of labels (N, 1) pass y[:, 0]."
        )
    if jnp.issubdtype(y.dtype, jnp.inexact):
        raise ValueError(
            f"Found labels y of dtype {y.dtype} and shape {y.shape}, expected integers; convert "
            "them with y.astype(int), or pass soft labels as (N, C)."
        )
    targets = _one_hot(y, probs)
    if is_concrete(targets) and jnp.isnan(targets[:, 0]).any():
        first = int(jnp.argmax(jnp.isnan(targets[:, 0])))
        raise ValueError(
            f"Found the label {int(y[first])} at y[{first}], expected integers from 0 to "
            f"{probs.shape[1] - 1} for probs of shape {probs.shape}; drop or renumber such labels."
        )
    return probs, targets


@jax.jit
def _one_hot(y: Num[Array, " N"] | Bool[Array, " N"], probs: Float[Array, "N C"]):
    """Return one row per label, NaN for those out of range, in the shape and dtype of `probs`."""
    one_hot = y[:, None] == jnp.arange(probs.shape[1])
    in_range = one_hot.any(axis=1, keepdims=True)
    return jnp.where(in_range, one_hot.astype(probs.dtype), jnp.nan)


def _check_distributions(name: str, rows: Float[Array, "N C"], remedy: str) -> None:
    valid = _are_distributions(rows)
    if is_concrete(valid) and not valid.all():
        first = int(jnp.argmin(valid))
        row = np.asarray(rows[first])
        raise ValueError(
            f"Found {name}[{first}] with the sum {row.sum():.4g} and the smallest entry "
            f"{row.min():.4g}, expected numbers from 0 to 1 that sum to one; {remedy}."
        )


@jax.jit
def _are_distributions(rows: Float[Array, "N C"]) -> Bool[Array, " N"]:
    sums_to_one = jnp.abs(jnp.sum(rows, axis=1) - 1) <= _SUM_TOLERANCE
    return sums_to_one & (jnp.min(rows, axis=1) >= -_SUM_TOLERANCE)


def _regression(
    mean: ArrayLike, spread: ArrayLike, y: ArrayLike, spread_name: str
) -> list[Float[Array, "..."]]:
    """Return mean, spread and targets in one dtype; the spread is a variance or a deviation."""
    mean, spread, y = _as_floating(mean, spread, y)
    if mean.ndim == 0 or mean.shape[0] == 0:
        raise ValueError(
            f"Found mean of shape {mean.shape}, expected (N,) or (N, *outputs) with at least one "
            "example; add the leading axis with mean[None]."
        )
    if y.shape != mean.shape:
        raise ValueError(
            f"Found y of shape {y.shape} for mean of shape {mean.shape}, expected the same shape; "
            "reshape one of them, for example y.reshape(mean.shape), so that nothing is broadcast."
        )
    if spread.shape not in ((), mean.shape):
        raise ValueError(
            f"Found {spread_name} of shape {spread.shape} for mean of shape {mean.shape}, expected "
            "the same shape or a scalar; of covariances (N, C, C) pass the diagonals."
        )
    found = f"{spread_name} with an entry that is not positive"
    _require(spread > 0, found, "positive numbers everywhere; add the observation noise")
    return [mean, spread, y]
