"""Selective prediction: how many errors are left if the doubtful examples are left out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma
from jaxtyping import Array, ArrayLike, Float, Num

from laplace_kit.eval.metrics import checks, weighting
from laplace_kit.eval.metrics.classification import hits
from laplace_kit.eval.metrics.ranking import ratio, sums_above


class RiskCoverageCurve(NamedTuple):
    """Share and error rate of the examples at least as confident as each threshold, highest first.

    Equal confidences give equal points.
    """

    coverage: Float[Array, " N"]
    risk: Float[Array, " N"]
    thresholds: Float[Array, " N"]


def risk_coverage_curve(
    probs: ArrayLike,
    y: ArrayLike,
    *,
    confidence: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> RiskCoverageCurve:
    r"""Return the share of examples with $\kappa_m \ge \kappa_n$, and the error rate among them.

    Parameters
    ----------
    probs, y, weights
        As for `accuracy`, with the same errors.
    confidence
        Of each example, $\kappa$ `(N,)`, higher where it is surer, such as minus the mutual
        information; by default the largest probability.

    Returns
    -------
    curve
        A point for each example, the most confident first.

    Raises
    ------
    ValueError
        Also if the confidence is not one number for each example.

    References
    ----------
    El-Yaniv and Wiener (2010), "On the foundations of noise-free selective classification"; Geifman
    and El-Yaniv (2017), "Selective classification for deep neural networks".
    """
    return _curve(*_judged(probs, y, confidence, weights))


def aurc(
    probs: ArrayLike,
    y: ArrayLike,
    *,
    confidence: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Float[Array, ""]:
    r"""Return the area under the risk-coverage curve, $\frac{1}{N} \sum_n r(\kappa_n)$.

    $r(\kappa)$ is the error rate of the examples whose confidence is $\kappa$ or more; equal
    confidences are accepted together, so that the examples' order does not matter. Small where
    errors are few and doubted.

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


def excess_aurc(
    probs: ArrayLike,
    y: ArrayLike,
    *,
    confidence: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Float[Array, ""]:
    r"""Return the area under the risk-coverage curve, less the least that so many errors allow.

    The least is the area of an oracle that accepts the $E$ errors last and one after the other,
    $\frac{1}{N} \sum_{j=1}^E \frac{j}{N - E + j}$. So this judges the confidence and not the
    accuracy: it is zero if every error is doubted more than all that is right, and no two errors
    are doubted alike.

    Parameters
    ----------
    probs, y, confidence, weights
        As for `risk_coverage_curve`, with the same errors.

    References
    ----------
    Geifman, Uziel and El-Yaniv (2019), as for `aurc`.
    """
    confidence, errors, weights = _judged(probs, y, confidence, weights)
    least = _least_area(errors, weighting.as_counts(weights))
    return _area(confidence, errors, weights) - least


def _judged(probs, y, confidence, weights):
    """Return confidence, errors and weights of the examples."""
    probs, targets = checks.labelled(probs, y)
    if confidence is None:
        confidence = jnp.max(probs, axis=1)
    confidence = checks.scores("confidence", confidence, probs.dtype)
    if len(confidence) != len(probs):
        raise ValueError(
            f"Found confidence of shape {confidence.shape} for {len(probs)} examples, expected one "
            "number for each."
        )
    weights = weighting.checked(weights, len(probs), probs.dtype)
    return confidence, 1 - hits(probs, targets), weights


@jax.jit
def _curve(
    confidence: Float[Array, " N"], errors: Float[Array, " N"], weights: Num[Array, " N"]
) -> RiskCoverageCurve:
    thresholds = -jnp.sort(-confidence)
    accepted = sums_above(confidence, weights, thresholds).at_or_above
    coverage = accepted / jnp.sum(weights)
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


@jax.jit
def _least_area(errors: Float[Array, " N"], weights: Num[Array, " N"]) -> Float[Array, ""]:
    r"""Return the oracle's area: $\sum_j j / (a + j) = E - a (\psi(a + E + 1) - \psi(a + 1))$."""
    num, wrong = jnp.sum(weights), jnp.sum(weights * errors)
    right = num - wrong
    return (wrong - right * (digamma(num + 1.0) - digamma(right + 1.0))) / num
