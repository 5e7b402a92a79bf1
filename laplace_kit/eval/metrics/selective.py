"""Selective prediction: error rates after abstaining on the least confident examples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from laplace_kit.eval.metrics import checks, weighting
from laplace_kit.eval.metrics.classification import hits
from laplace_kit.eval.metrics.inputs import metric
from laplace_kit.eval.metrics.ranking import ratio, sums_above
from laplace_kit.eval.metrics.scores import one_minus_largest
from laplace_kit.eval.metrics.sums import over_examples


class RiskCoverageCurve(NamedTuple):
    """Coverage and risk at decreasing confidence thresholds.

    Coverage is the fraction of examples with at least that confidence, risk their error rate. Equal
    confidences give equal points.
    """

    coverage: Float[Array, " N"]
    risk: Float[Array, " N"]
    thresholds: Float[Array, " N"]


@metric
def risk_coverage_curve(
    probs: ArrayLike,
    y: ArrayLike,
    *,
    confidence: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> RiskCoverageCurve:
    r"""Return the fraction of examples with $\kappa_m \ge \kappa_n$, and their error rate.

    Parameters
    ----------
    probs, y, weights
        As for `accuracy`, with the same errors.
    confidence
        Confidence $\kappa$ `(N,)`, higher where predictions are more certain, such as the negative
        mutual information; by default the largest probability.

    Returns
    -------
    curve
        A point for each example, the most confident first.

    Raises
    ------
    ValueError
        As for `accuracy`, and if the confidence is not one number for each example.

    References
    ----------
    El-Yaniv and Wiener (2010), "On the foundations of noise-free selective classification"; Geifman
    and El-Yaniv (2017), "Selective classification for deep neural networks".
    """
    curve = _curve(*_judged(probs, y, confidence, weights))
    if confidence is not None:
        return curve
    return curve._replace(thresholds=_largest_first(*checks.as_floating(probs)))


@metric
def aurc(
    probs: ArrayLike,
    y: ArrayLike,
    *,
    confidence: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Float[Array, ""]:
    r"""Return the area under the risk-coverage curve, $\frac{1}{N} \sum_n r(\kappa_n)$.

    $r(\kappa)$ is the error rate of the examples whose confidence is at least $\kappa$. Equal
    confidences are accepted together, so that the order of the examples does not matter. It is
    small if errors are few and have low confidence.

    Parameters
    ----------
    probs, y, confidence, weights
        As for `risk_coverage_curve`, with the same errors.

    References
    ----------
    Geifman, Uziel and El-Yaniv (2019), "Bias-reduced uncertainty estimation for deep neural
    classifiers".
    """
    return _area(*_judged(probs, y, confidence, weights))


@metric
def augrc(
    probs: ArrayLike,
    y: ArrayLike,
    *,
    confidence: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Float[Array, ""]:
    r"""Return the area under the generalised risk-coverage curve, from 0 to 1/2.

    The generalised risk is the share of all examples that are kept and wrong. The area is the mean
    of it over coverage, $(1 - \mathrm{AUROC}) a (1 - a) + \frac{1}{2} (1 - a)^2$ for the accuracy
    $a$ and the AUROC of confidence for being right: unlike in `aurc`, errors at high confidence do
    not count several times over. Ties count half.

    Parameters
    ----------
    probs, y, confidence, weights
        As for `risk_coverage_curve`, with the same errors.

    References
    ----------
    Traub et al. (2024), "Overcoming common flaws in the evaluation of selective classification
    systems".
    """
    return _generalised_area(*_judged(probs, y, confidence, weights))


@jax.jit
def _generalised_area(
    confidence: Float[Array, " N"], errors: Float[Array, " N"], weights: Num[Array, " N"]
) -> Float[Array, ""]:
    # The share of kept examples at the mean of both ends of each tie, for every wrong one.
    kept = sums_above(confidence, weights, confidence)
    later = 1 - (kept.above + kept.at_or_above) / 2 / over_examples(weights)
    return weighting.mean(errors * later, weights)


def _judged(probs, y, confidence, weights):
    """Return confidence, errors and weights of the examples.

    The default confidence is the largest probability minus one, as floating-point numbers are too
    coarse near one.
    """
    probs, targets = checks.labelled(probs, y)
    if confidence is None:
        confidence = -one_minus_largest(probs)
    confidence = checks.scores("confidence", confidence, probs.dtype)
    if len(confidence) != len(probs):
        raise ValueError(
            f"Found confidence of shape {confidence.shape} for {len(probs)} examples, expected one "
            "number for each."
        )
    weights = weighting.checked(weights, len(probs), probs.dtype)
    return confidence, 1 - hits(probs, targets), weights


@jax.jit
def _largest_first(probs: Float[Array, "N C"]) -> Float[Array, " N"]:
    return -jnp.sort(-jnp.max(probs, axis=1))


@jax.jit
def _curve(
    confidence: Float[Array, " N"], errors: Float[Array, " N"], weights: Num[Array, " N"]
) -> RiskCoverageCurve:
    thresholds = -jnp.sort(-confidence)
    accepted = sums_above(confidence, weights, thresholds).at_or_above
    coverage = accepted / over_examples(weights)
    return RiskCoverageCurve(coverage, _risks(confidence, errors, weights, thresholds), thresholds)


@jax.jit
def _area(
    confidence: Float[Array, " N"], errors: Float[Array, " N"], weights: Num[Array, " N"]
) -> Float[Array, ""]:
    return weighting.mean(_risks(confidence, errors, weights, confidence), weights)


def _risks(confidence, errors, weights, thresholds) -> Float[Array, " T"]:
    accepted = sums_above(confidence, weights, thresholds).at_or_above
    wrong = sums_above(confidence, weights * errors, thresholds).at_or_above
    unknown = jnp.isnan(confidence).any()
    return jnp.where(unknown, jnp.nan, ratio(wrong, accepted))
