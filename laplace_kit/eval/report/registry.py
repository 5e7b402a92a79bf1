"""The metrics that a report knows: names, better directions, goals, and the functions.

The order is that of the tables. Tables, verdict, suites, requirements and the command line read
this registry.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from numpy import ndarray

from laplace_kit.eval.report.scores import SCORES
from laplace_kit.eval.statistics import classification, detection, numbers
from laplace_kit.eval.statistics.classification import ClassSums
from laplace_kit.eval.statistics.detection import DetectionSums
from laplace_kit.eval.statistics.numbers import NumberSums

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
    takes: tuple[type, ...]
    better: str = ""
    goal: float | None = None
    score: str | None = None
    by_chance: bool = False
    in_verdict: bool = False

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


def _of_classes(label: str, function: Function, *args, **options) -> Metric:
    return Metric(label, function, (ClassSums,), *args, **options)


def _of_numbers(label: str, function: Function, *args, **options) -> Metric:
    return Metric(label, function, (NumberSums,), *args, **options)


def _of_scores(
    name: str, function: Function, better: str, goal: float, in_verdict: bool
) -> dict[str, Metric]:
    """Return the metric for each uncertainty score; the verdict takes the largest probability."""
    return {
        name.lower() + score.suffix: Metric(
            f"{name}, {score.column}",
            function,
            (DetectionSums,),
            better,
            goal,
            score=kind,
            in_verdict=in_verdict and not score.suffix,
        )
        for kind, score in SCORES.items()
    }


METRICS: dict[str, Metric] = {
    "accuracy": _of_classes("Accuracy", classification.accuracy, "higher", 1.0),
    "confidence": _of_classes("Mean confidence", classification.mean_confidence),
    "nll": Metric("NLL", _loss, (ClassSums, NumberSums), "lower", -math.inf, in_verdict=True),
    "brier": _of_classes("Brier score", classification.brier_score, "lower", 0.0),
    "ece": _of_classes(
        "ECE", classification.expected_calibration_error, "lower", 0.0, in_verdict=True
    ),
    "ace": _of_classes("ACE", classification.adaptive_calibration_error, "lower", 0.0),
    "mce": _of_classes("MCE", classification.maximum_calibration_error, "lower", 0.0),
    "classwise_ece": _of_classes(
        "Class-wise ECE", classification.classwise_calibration_error, "lower", 0.0
    ),
    "debiased_ce": _of_classes(
        "Debiased calibration error",
        classification.debiased_calibration_error,
        "lower",
        0.0,
        by_chance=True,
    ),
    "aurc": _of_classes("AURC", classification.aurc, "lower", 0.0),
    **_of_scores("AUROC", detection.auroc, "higher", 1.0, in_verdict=True),
    **_of_scores("AUPR", detection.aupr, "higher", 1.0, in_verdict=False),
    **_of_scores("FPR95", detection.fpr95, "lower", 0.0, in_verdict=False),
    "rmse": _of_numbers("RMSE", numbers.rmse, "lower", 0.0),
    "crps": _of_numbers("CRPS", numbers.crps, "lower", 0.0, in_verdict=True),
    "coverage_90": _of_numbers(
        "Coverage of 90% intervals", numbers.interval_coverage, "nearer to 0.9", 0.9
    ),
    "width_90": _of_numbers("Width of 90% intervals", numbers.interval_width),
    "chi_squared": _of_numbers("Chi-squared", numbers.chi_squared, "nearer to 1", 1.0),
    "quantile_error": _of_numbers(
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
