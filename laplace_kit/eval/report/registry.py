"""The metrics that a report knows: names, better directions, goals, and the functions.

The order is that of the tables. Tables, verdict, suites, requirements and the command line read
this registry.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from jaxtyping import Float
from numpy import ndarray

from laplace_kit.eval.report.scores import SCORES
from laplace_kit.eval.statistics import classification, detection, numbers
from laplace_kit.eval.statistics.classification import ClassSums
from laplace_kit.eval.statistics.detection import DetectionSums
from laplace_kit.eval.statistics.numbers import NumberSums

# The probability of the second of two classes as a score of its examples.
LABEL = "label"
Sums = ClassSums | NumberSums | DetectionSums
Function = Callable[[Sums], Float[ndarray, " R"]]


@dataclass(frozen=True)
class Metric:
    """A metric's display name, function, better direction, and `goal`, a perfect predictor's value.

    The function takes sums of one of the kinds in `takes`; metrics of detection use the score
    `score`. `by_chance` says that an estimate may lie beyond the goal; `in_verdict`, that the
    verdict compares predictors by it.
    """

    label: str
    function: Function
    better: str = ""
    goal: float | None = None
    score: str | None = None
    by_chance: bool = False
    in_verdict: bool = False
    takes: tuple[type, ...] = field(kw_only=True)

    @property
    def is_monotone(self) -> bool:
        """Whether a larger, or a smaller, value is always the better one."""
        return self.better in ("lower", "higher")

    def attainable(self, low: float, high: float) -> tuple[float, float]:
        """Return an interval without the part that no predictor can reach."""
        if self.goal is None or not self.is_monotone or self.by_chance:
            return low, high
        limit = min if self.better == "higher" else max
        return limit(low, self.goal), limit(high, self.goal)

    def loss(self, value: float | None) -> float:
        """Return how far `value` is from the goal; what is not finite is farthest."""
        if value is None:
            return math.inf
        return value if self.goal == -math.inf else abs(value - self.goal)

    def judged(self, difference: Sequence[float]) -> str:
        """Return "better", "worse" or "not significant" for a difference `(value, low, high)`."""
        _, low, high = difference
        if low <= 0.0 <= high:
            return "not significant"
        return "better" if (high < 0.0) == (self.better == "lower") else "worse"


def _loss(sums: ClassSums | NumberSums) -> Float[ndarray, " R"]:
    """Return the mean negative log-likelihood, in nats."""
    return sums.loss


_class_metric = partial(Metric, takes=(ClassSums,))
_number_metric = partial(Metric, takes=(NumberSums,))


def _score_metrics(
    name: str, function: Function, better: str, goal: float, in_verdict: bool
) -> dict[str, Metric]:
    """Return the metric for each uncertainty score; the verdict takes the largest probability."""
    return {
        name.lower() + score.suffix: Metric(
            f"{name}, {score.column}",
            function,
            better,
            goal,
            score=kind,
            in_verdict=in_verdict and not score.suffix,
            takes=(DetectionSums,),
        )
        for kind, score in SCORES.items()
    }


METRICS: dict[str, Metric] = {
    "accuracy": _class_metric("Accuracy", classification.accuracy, "higher", 1.0),
    "confidence": _class_metric("Mean confidence", classification.mean_confidence),
    "nll": Metric("NLL", _loss, "lower", -math.inf, in_verdict=True, takes=(ClassSums, NumberSums)),
    "brier": _class_metric("Brier score", classification.brier_score, "lower", 0.0),
    "ece": _class_metric(
        "ECE", classification.expected_calibration_error, "lower", 0.0, in_verdict=True
    ),
    "ace": _class_metric("ACE", classification.adaptive_calibration_error, "lower", 0.0),
    "mce": _class_metric("MCE", classification.maximum_calibration_error, "lower", 0.0),
    "classwise_ece": _class_metric(
        "Class-wise ECE", classification.classwise_calibration_error, "lower", 0.0
    ),
    "debiased_ce": _class_metric(
        "Debiased calibration error",
        classification.debiased_calibration_error,
        "lower",
        0.0,
        by_chance=True,
    ),
    "smooth_ece": _class_metric(
        "Smooth ECE", classification.smooth_calibration_error, "lower", 0.0
    ),
    "overconfidence": _class_metric(
        "Over-confidence", classification.overconfidence, "nearer to 0", 0.0
    ),
    "spiegelhalter_z": _class_metric(
        "Spiegelhalter's z", classification.spiegelhalter_z, "nearer to 0", 0.0
    ),
    "ks_error": _class_metric(
        "KS calibration error",
        classification.kolmogorov_smirnov_error,
        "lower",
        0.0,
    ),
    "kuiper_error": _class_metric(
        "Kuiper calibration error", classification.kuiper_error, "lower", 0.0
    ),
    "miscalibration": _class_metric(
        "CORP miscalibration", classification.miscalibration, "lower", 0.0
    ),
    # At most a quarter, where half the predictions are right and the confidence tells which.
    "discrimination": _class_metric(
        "CORP discrimination", classification.discrimination, "higher", 0.25
    ),
    "aurc": _class_metric("AURC", classification.aurc, "lower", 0.0),
    "augrc": _class_metric("AUGRC", classification.augrc, "lower", 0.0),
    "roc_auc": Metric(
        "ROC AUC of the positive class",
        detection.auroc,
        "higher",
        1.0,
        score=LABEL,
        takes=(DetectionSums,),
    ),
    "average_precision": Metric(
        "Average precision of the positive class",
        detection.aupr,
        "higher",
        1.0,
        score=LABEL,
        takes=(DetectionSums,),
    ),
    **_score_metrics("AUROC", detection.auroc, "higher", 1.0, in_verdict=True),
    **_score_metrics("AUPR", detection.aupr, "higher", 1.0, in_verdict=False),
    **_score_metrics("FPR95", detection.fpr95, "lower", 0.0, in_verdict=False),
    "rmse": _number_metric("RMSE", numbers.rmse, "lower", 0.0),
    "mae": _number_metric("MAE", numbers.mae, "lower", 0.0),
    "r_squared": _number_metric("R-squared", numbers.r_squared, "higher", 1.0),
    "crps": _number_metric("CRPS", numbers.crps, "lower", 0.0, in_verdict=True),
    "coverage_90": _number_metric(
        "Coverage of 90% intervals", numbers.interval_coverage, "nearer to 0.9", 0.9
    ),
    "width_90": _number_metric("Width of 90% intervals", numbers.interval_width),
    "sharpness": _number_metric("Sharpness", numbers.sharpness),
    "chi_squared": _number_metric("Chi-squared", numbers.chi_squared, "nearer to 1", 1.0),
    "quantile_error": _number_metric(
        "Quantile calibration error", numbers.quantile_calibration_error, "lower", 0.0
    ),
}


def evaluated(sums: Sums, score: str | None = None) -> dict[str, Float[ndarray, " R"]]:
    """Return every metric of the sums, by name, for each of their weightings.

    Parameters
    ----------
    sums
        The sums of one predictor.
    score
        The uncertainty score of sums of detection.
    """
    return {
        name: metric.function(sums)
        for name, metric in METRICS.items()
        if isinstance(sums, metric.takes) and metric.score == score
    }
