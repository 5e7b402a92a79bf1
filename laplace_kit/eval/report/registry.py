"""The metrics that a report knows: names, better directions, goals, in the order of the tables."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric's display name, the better direction, and the value of a perfect predictor, `goal`.

    `by_chance` says that an estimate may lie beyond the goal; `in_verdict`, that the verdict
    compares predictors by it.
    """

    label: str
    better: str = ""
    goal: float | None = None
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


METRICS = {
    "accuracy": Metric("Accuracy", "higher", 1.0),
    "confidence": Metric("Mean confidence"),
    "nll": Metric("NLL", "lower", -math.inf, in_verdict=True),
    "brier": Metric("Brier score", "lower", 0.0),
    "ece": Metric("ECE", "lower", 0.0, in_verdict=True),
    "ace": Metric("ACE", "lower", 0.0),
    "mce": Metric("MCE", "lower", 0.0),
    "classwise_ece": Metric("Class-wise ECE", "lower", 0.0),
    "debiased_ce": Metric("Debiased calibration error", "lower", 0.0, by_chance=True),
    "aurc": Metric("AURC", "lower", 0.0),
    "auroc": Metric("AUROC, largest probability", "higher", 1.0, in_verdict=True),
    "auroc_entropy": Metric("AUROC, entropy", "higher", 1.0),
    "auroc_epistemic": Metric("AUROC, epistemic", "higher", 1.0),
    "aupr": Metric("AUPR, largest probability", "higher", 1.0),
    "aupr_entropy": Metric("AUPR, entropy", "higher", 1.0),
    "aupr_epistemic": Metric("AUPR, epistemic", "higher", 1.0),
    "fpr95": Metric("FPR95, largest probability", "lower", 0.0),
    "fpr95_entropy": Metric("FPR95, entropy", "lower", 0.0),
    "fpr95_epistemic": Metric("FPR95, epistemic", "lower", 0.0),
    "rmse": Metric("RMSE", "lower", 0.0),
    "crps": Metric("CRPS", "lower", 0.0, in_verdict=True),
    "coverage_90": Metric("Coverage of 90% intervals", "nearer to 0.9", 0.9),
    "width_90": Metric("Width of 90% intervals"),
    "chi_squared": Metric("Chi-squared", "nearer to 1", 1.0),
    "quantile_error": Metric("Quantile calibration error", "lower", 0.0),
}
