"""Calibration without bins: tests with p-values, smooth and isotonic reliability, random groups.

Computed in NumPy on the host, from a `Predictive` or from plain arrays; nothing is compiled.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, PyTree

from laplace_kit.errors import check_count
from laplace_kit.eval.given import Predictions, event_rows
from laplace_kit.eval.metrics.inputs import Numbers
from laplace_kit.eval.statistics import corp, hypotheses, numbers, smooth
from laplace_kit.eval.statistics.corp import CorpReliability
from laplace_kit.eval.statistics.hypotheses import CalibrationTests, HypothesisTest, UniformityTests
from laplace_kit.eval.statistics.smooth import SmoothReliability
from laplace_kit.eval.statistics.weighting import checked
from laplace_kit.host import fetch_array

__all__ = [
    "AdversarialCalibration",
    "CalibrationTests",
    "CorpReliability",
    "HypothesisTest",
    "SmoothReliability",
    "UniformityTests",
    "adversarial_calibration",
    "calibration_tests",
    "corp_reliability",
    "smooth_reliability",
    "uniformity_tests",
]


def calibration_tests(
    predictions: Predictions, y: PyTree, *, weights: ArrayLike | None = None
) -> CalibrationTests:
    r"""Test whether labels may have been drawn from the predicted probabilities.

    Spiegelhalter's z, $\sum_n (\sum_c p_{nc}^2 - p_{n y_n}) / \sqrt{\sum_n \mathrm{Var}\, p_{n Y}}$
    with Y drawn from $p_n$, is the Brier score minus its expectation, in standard deviations; for
    two classes $\sum_n (o_n - p_n)(1 - 2 p_n) / \sqrt{\sum_n (1 - 2 p_n)^2 p_n (1 - p_n)}$. It is
    positive for predictions that are too confident. The Kolmogorov-Smirnov and the Kuiper statistic
    are the largest absolute value, and the range, of $C_k = \frac{1}{N} \sum_{p_n \le p_k} (o_n -
    p_n)$, which under the hypothesis behaves as Brownian motion.

    Parameters
    ----------
    predictions
        A `Predictive` of classes, probabilities `(N, C)`, or the probability of class 1, `(N,)`.
        The cumulative tests are about class 1 in the last case, otherwise about whether the most
        probable class is the label.
    y
        Labels.
    weights
        Weights of the examples, `(N,)`: counts repeat them, all others are proportions.

    Returns
    -------
    tests
        `spiegelhalter`, `kolmogorov_smirnov` and `kuiper`, each with `statistic` and a two-sided
        `p_value`, that of the limit of many examples; with few distinct probabilities the
        cumulative ones are too large.

    Raises
    ------
    TypeError, ValueError
        If these are predictions of numbers; if probabilities, labels or weights are not valid.

    References
    ----------
    Spiegelhalter (1986), "Probabilistic prediction in patient management and clinical trials".
    Arrieta-Ibarra, Gujral, Tannen, Tygert and Xu (2022), "Metrics of calibration for probabilistic
    predictions", for the others.
    """
    event, rows = event_rows(predictions, y, weights)
    surprise = hypotheses.label_surprise(rows.probs, rows.y)
    return hypotheses.calibration_tests(event.p, event.outcomes, surprise, event.weights)


def uniformity_tests(pit: Numbers, *, weights: ArrayLike | None = None) -> UniformityTests:
    """Test whether probability integral transforms are uniform, that is, calibrated.

    Parameters
    ----------
    pit
        PIT values `(N,)` or `(N, *outputs)`, assumed to be independent.
    weights
        Weights of the examples, `(N,)`.

    Returns
    -------
    tests
        `kolmogorov_smirnov`, which looks at the centre of the distribution, and `kuiper`, which
        looks at all parts of it alike, each with `statistic` and `p_value`.

    Raises
    ------
    ValueError
        If there are no values, a value is not between 0 and 1, or the weights are not valid.

    References
    ----------
    Kuiper (1960), "Tests concerning random points on a circle". Stephens (1970), "Use of the
    Kolmogorov-Smirnov, Cramér-von Mises and related statistics without extensive tables".
    """
    values = _transforms(pit)
    weights = checked(weights, len(values))
    each = np.repeat(weights, values.size // len(values))
    return hypotheses.uniformity_tests(values.ravel(), each)


def smooth_reliability(
    predictions: Predictions, y: PyTree, *, weights: ArrayLike | None = None
) -> SmoothReliability:
    """Return the smooth calibration error, and the curve of its reliability diagram.

    Residuals are averaged by a Gaussian kernel whose bandwidth is the error itself: there is
    nothing to choose, and a small change of the predictions changes the error little, unlike bins.

    Parameters
    ----------
    predictions, y, weights
        As for `calibration_tests`, with the same errors.

    Returns
    -------
    reliability
        `error`, at least half the distance to the nearest calibrated predictor and at most twice
        the root of that; `probability`, `frequency` and `density`, the curve, to be drawn by
        `laplace_kit.eval.plots.smooth_reliability_diagram`.

    References
    ----------
    Blasiok and Nakkiran (2024), "Smooth ECE: principled reliability diagrams via kernel smoothing".
    """
    event, _ = event_rows(predictions, y, weights)
    return smooth.smooth_reliability(*event)


def corp_reliability(
    predictions: Predictions, y: PyTree, *, weights: ArrayLike | None = None
) -> CorpReliability:
    """Return the isotonic reliability curve and the decomposition of the Brier score.

    Parameters
    ----------
    predictions, y, weights
        As for `calibration_tests`, with the same errors.

    Returns
    -------
    reliability
        `probability`, `frequency` and `counts` of the curve; `score`, the Brier score of the event,
        which is `miscalibration - discrimination + uncertainty`. Each term is at least zero; that
        of calibrated predictions falls with the number of examples. To be drawn by
        `laplace_kit.eval.plots.corp_diagram`.

    References
    ----------
    Dimitriadis, Gneiting and Jordan (2021), "Stable reliability diagrams for probabilistic
    classifiers".
    """
    event, _ = event_rows(predictions, y, weights)
    return corp.corp_reliability(*event)


class AdversarialCalibration(NamedTuple):
    """The worst calibration error of random groups, by their share of the examples.

    Attributes
    ----------
    shares
        The sizes of the groups as shares of all examples.
    errors
        The largest quantile calibration error of any of the drawn groups of each size.
    """

    shares: Float[np.ndarray, " S"]
    errors: Float[np.ndarray, " S"]


def adversarial_calibration(
    pit: Numbers,
    *,
    shares: ArrayLike | Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
    num_groups: int = 100,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> AdversarialCalibration:
    r"""Return the largest calibration error among random groups of several sizes.

    Errors of some inputs that cancel those of others show in small groups. The error is
    $\sqrt{\mathrm{mean}_j\,(\hat p_j - p_j)^2}$ over the levels 0.05 to 0.95; that of calibrated
    predictions grows as groups get smaller, too, by sampling noise.

    Parameters
    ----------
    pit
        PIT values `(N,)` or `(N, *outputs)`: `laplace_kit.eval.pit(predictive, y)`, or
        `laplace_kit.eval.metrics.pit_gaussian(mean, std, y)`.
    shares
        The sizes of the groups, larger than 0 and at most 1.
    num_groups
        How many groups are drawn for each size.
    weights
        Weights of the examples, `(N,)`.
    seed
        Draws the groups.

    Raises
    ------
    ValueError
        If a value is not between 0 and 1, a share is out of range, or the weights are not valid.

    References
    ----------
    Zhao, Ma and Ermon (2020), "Individual calibration with randomized forecasting".
    """
    check_count("num_groups", num_groups, "groups")
    shares = np.atleast_1d(fetch_array(shares, float))
    if shares.size == 0 or not ((shares > 0) & (shares <= 1)).all():
        raise ValueError(
            f"Found shares={shares}, expected numbers above 0 and at most 1; divide percentages by "
            "100."
        )
    values = _transforms(pit)
    weights = checked(weights, len(values))
    below, used = numbers.shares_below(values), np.flatnonzero(weights)
    rng, errors = np.random.default_rng(seed), []
    for share in shares:
        size = max(round(share * len(used)), 1)
        drawn = (rng.choice(used, size, replace=False) for _ in range(num_groups))
        means = [np.average(below[rows], axis=0, weights=weights[rows]) for rows in drawn]
        errors.append(numbers.level_error(np.stack(means)).max())
    return AdversarialCalibration(shares, np.stack(errors))


def _transforms(pit: Numbers) -> Float[np.ndarray, "N ..."]:
    values = fetch_array(pit, float)
    if values.ndim == 0 or values.size == 0:
        raise ValueError(
            f"Found pit of shape {values.shape}, expected (N,) or (N, *outputs) with at least one "
            "example."
        )
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            "Found pit outside 0 to 1, expected values of distribution functions; compute them by "
            "pred.cdf(y)."
        )
    return values
