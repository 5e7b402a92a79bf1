"""Metrics of out-of-distribution detection, with out-of-distribution inputs as positive class.

Throughout, `in_scores` `(N,)` belong to in-distribution inputs and are expected lower, `out_scores`
`(M,)` to out-of-distribution inputs and are expected higher. To make in-distribution inputs the
positive class, swap the two and their signs, as in `aupr(-out_scores, -in_scores)`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from laplace_kit.eval.metrics import checks, weighting
from laplace_kit.eval.metrics.inputs import metric
from laplace_kit.eval.metrics.ranking import ratio, sums_above
from laplace_kit.eval.metrics.sums import over_examples


@metric
def auroc(
    in_scores: ArrayLike,
    out_scores: ArrayLike,
    *,
    in_weights: ArrayLike | None = None,
    out_weights: ArrayLike | None = None,
) -> Float[Array, ""]:
    r"""Return the area under the ROC curve.

    It is the probability that an out-of-distribution input scores higher than an in-distribution
    one, $P(s_\mathrm{out} > s_\mathrm{in}) + \frac{1}{2} P(s_\mathrm{out} = s_\mathrm{in})$ over
    all pairs, computed exactly by sorting in $O(n \log n)$.

    Parameters
    ----------
    in_scores, out_scores
        Scores `(N,)` of in-distribution inputs, expected lower, and `(M,)` of out-of-distribution
        inputs, expected higher; for example predictive entropies.
    in_weights, out_weights
        Weights of the inputs, `(N,)` and `(M,)`; one each by default.

    Raises
    ------
    ValueError
        If scores are empty, not one-dimensional or NaN, or weights are not valid.
    """
    return area_under_roc(*_samples(in_scores, out_scores, in_weights, out_weights))


@metric
def aupr(
    in_scores: ArrayLike,
    out_scores: ArrayLike,
    *,
    in_weights: ArrayLike | None = None,
    out_weights: ArrayLike | None = None,
) -> Float[Array, ""]:
    r"""Return the average precision, the area under the stepwise precision-recall curve.

    $\sum_k (R_k - R_{k-1}) P_k$ over decreasing thresholds, with precision $P_k$ and recall $R_k$
    of out-of-distribution inputs: their mean precision among all inputs that score at least as
    high. It depends on the ratio of the sample sizes: a random score gives the fraction of
    out-of-distribution inputs.

    Parameters
    ----------
    in_scores, out_scores, in_weights, out_weights
        As for `auroc`, with the same errors. The weights of both samples have a common scale.

    References
    ----------
    Davis and Goadrich (2006), "The relationship between precision-recall and ROC curves".
    """
    return average_precision(*_samples(in_scores, out_scores, in_weights, out_weights))


@metric
def fpr95(
    in_scores: ArrayLike,
    out_scores: ArrayLike,
    *,
    in_weights: ArrayLike | None = None,
    out_weights: ArrayLike | None = None,
) -> Float[Array, ""]:
    """Return the false positive rate at a true positive rate of 95%.

    The threshold is the highest that flags 95% of the out-of-distribution inputs; an input is
    flagged if it scores at least the threshold, without interpolation. The converse, the fraction
    of out-of-distribution inputs that pass when 95% of the in-distribution inputs do, is
    `fpr95(-out_scores, -in_scores)`; the literature uses the same name for both.

    Parameters
    ----------
    in_scores, out_scores, in_weights, out_weights
        As for `auroc`, with the same errors.

    References
    ----------
    Liang, Li and Srikant (2018), "Enhancing the reliability of out-of-distribution image detection
    in neural networks", for the converse; Yang et al. (2022), "OpenOOD", for this one.
    """
    return _flagged_at(0.95, *_samples(in_scores, out_scores, in_weights, out_weights))


class ROCCurve(NamedTuple):
    """False and true positive rates of inputs that score at least each threshold.

    The first threshold is infinite, above all scores. Equal scores give equal points.
    """

    false_positive_rate: Float[Array, " T"]
    true_positive_rate: Float[Array, " T"]
    thresholds: Float[Array, " T"]


@metric
def roc_curve(
    in_scores: ArrayLike,
    out_scores: ArrayLike,
    *,
    in_weights: ArrayLike | None = None,
    out_weights: ArrayLike | None = None,
) -> ROCCurve:
    """Return the ROC curve, with all scores as thresholds, in decreasing order.

    Parameters
    ----------
    in_scores, out_scores, in_weights, out_weights
        As for `auroc`, with the same errors.

    Returns
    -------
    curve
        `N + M + 1` points from (0, 0) to (1, 1).
    """
    return _roc_curve(*_samples(in_scores, out_scores, in_weights, out_weights))


def _samples(in_scores, out_scores, in_weights, out_weights):
    """Return validated scores of both samples, then their weights."""
    dtype = checks.as_floating(in_scores, out_scores)[0].dtype
    inside = checks.scores("in_scores", in_scores, dtype)
    outside = checks.scores("out_scores", out_scores, dtype)
    in_weights = weighting.checked(in_weights, len(inside), dtype, "in_weights")
    out_weights = weighting.checked(out_weights, len(outside), dtype, "out_weights")
    return inside, outside, in_weights, out_weights


# --- metrics of validated arrays -------------------------------------------------------------


@jax.jit
def area_under_roc(
    inside: Float[Array, " N"],
    outside: Float[Array, " M"],
    in_weights: Num[Array, " N"],
    out_weights: Num[Array, " M"],
) -> Float[Array, ""]:
    """Return the fraction of correctly ordered pairs; NaN for NaN scores or weights of zero."""
    winners = sums_above(outside, out_weights, inside)
    shares = (winners.above + winners.at_or_above) / 2 / over_examples(out_weights)
    area = weighting.mean(shares, in_weights)
    return _nan_unless_known(area, inside, outside)


@jax.jit
def average_precision(
    inside: Float[Array, " N"],
    outside: Float[Array, " M"],
    in_weights: Num[Array, " N"],
    out_weights: Num[Array, " M"],
) -> Float[Array, ""]:
    """Return the mean precision over `outside`; NaN for NaN scores or weights of zero."""
    false = sums_above(inside, in_weights, outside).at_or_above
    true = sums_above(outside, out_weights, outside).at_or_above
    precision = weighting.mean(ratio(true, true + false), out_weights)
    return _nan_unless_known(precision, inside, outside)


@jax.jit
def _flagged_at(share, inside, outside, in_weights, out_weights) -> Float[Array, ""]:
    total = over_examples(out_weights)
    recall = sums_above(outside, out_weights, outside).at_or_above / total
    # With a tolerance, so that 19 of 20 count as 95% however the quotient is rounded.
    enough = (recall >= share * (1 - 4 * jnp.finfo(inside.dtype).eps)) & (out_weights > 0)
    threshold = jnp.max(jnp.where(enough, outside, -jnp.inf))
    flagged = sums_above(inside, in_weights, threshold[None]).at_or_above[0]
    rate = jnp.where(total > 0, flagged / over_examples(in_weights), jnp.nan)
    return _nan_unless_known(rate, inside, outside)


@jax.jit
def _roc_curve(inside, outside, in_weights, out_weights) -> ROCCurve:
    thresholds = -jnp.sort(-jnp.concatenate([inside, outside]))
    thresholds = jnp.pad(thresholds, (1, 0), constant_values=jnp.inf)

    def rates(scores, weights):
        # No score is above the first threshold, not even an infinite one.
        found = sums_above(scores, weights, thresholds).at_or_above / over_examples(weights)
        return _nan_unless_known(found.at[0].set(0), inside, outside)

    return ROCCurve(rates(inside, in_weights), rates(outside, out_weights), thresholds)


def _nan_unless_known(value, inside, outside):
    unknown = jnp.isnan(inside).any() | jnp.isnan(outside).any()
    return jnp.where(unknown, jnp.nan, value)
