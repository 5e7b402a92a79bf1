"""Conditions that metrics of the test set must satisfy, such as `ece<0.05`."""

import difflib
import operator
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from laplace_kit.eval.report.registry import LABEL, METRICS
from laplace_kit.eval.report.table import display_name, number
from laplace_kit.eval.statistics.classification import ClassSums
from laplace_kit.eval.statistics.numbers import NumberSums

_HOLDS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_FORM = re.compile(r"\s*(?:([\w.+-]+)/)?(\w+)\s*(<=|>=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True)
class Requirement:
    """A condition on one metric, for one predictor or, if `predictor` is `None`, for all."""

    predictor: str | None
    metric: str
    comparison: str
    limit: float

    def __str__(self) -> str:
        """Return the condition as it is written."""
        whose = "" if self.predictor is None else f"{self.predictor}/"
        return f"{whose}{self.metric}{self.comparison}{self.limit:g}"

    def check(self, is_classification: bool, predictors: Collection[str]) -> None:
        """Raise a `ValueError` for a metric of the other task, or an unknown predictor."""
        kind = ClassSums if is_classification else NumberSums
        known = [
            key
            for key, metric in METRICS.items()
            if kind in metric.takes or (is_classification and metric.score == LABEL)
        ]
        if self.metric not in known:
            task = "classification" if is_classification else "regression"
            raise ValueError(
                f"Found the requirement {str(self)!r} for {task}, expected one of its metrics, "
                f"{', '.join(known)}; choose another."
            )
        if self.predictor is not None and self.predictor not in predictors:
            raise ValueError(
                f"Found the requirement {str(self)!r}, expected one of the predictors "
                f"{[*predictors]}{_suggestion(self.predictor, predictors)}; choose another."
            )

    def failures(self, numbers: Mapping[str, Any]) -> list[str]:
        """Return a line for each predictor that fails; a value that is not finite does."""
        lines = []
        for name in numbers["predictors"] if self.predictor is None else (self.predictor,):
            value = numbers[name].get(self.metric)
            if value is None or not _HOLDS[self.comparison](value, self.limit):
                found = f"{METRICS[self.metric].label} is {number(value)}"
                lines.append(f"Failed: {self}: {display_name(name)}'s {found}.")
        return lines


def parse_all(texts: Iterable[str]) -> list[Requirement]:
    """Return the conditions that texts express; a `ValueError` for one that does not."""
    return [_parse(text) for text in texts]


def failures(required: Iterable[Requirement], numbers: Mapping[str, Any]) -> list[str]:
    """Return a line for each condition, and predictor, that the content of `metrics.json` fails."""
    return [line for one in required for line in one.failures(numbers)]


def _parse(text: str) -> Requirement:
    match, limit = _FORM.fullmatch(text), None
    if match:
        try:
            limit = float(match[4])
        except ValueError:
            match = None
    if not match or limit is None or limit != limit:
        raise ValueError(
            f"Found the requirement {text!r}, expected a metric, one of <, <=, > and >=, and a "
            "number, such as 'ece<0.05' or, for one predictor, 'laplace/nll<=0.3'; write it in "
            "quotes."
        )
    predictor, metric, comparison, _ = match.groups()
    if metric not in METRICS:
        raise ValueError(
            f"Found the metric {metric!r} in the requirement {text!r}, expected one of "
            f"{', '.join(METRICS)}{_suggestion(metric, METRICS)}; choose one."
        )
    return Requirement(predictor, metric, comparison, limit)


def _suggestion(found: str, known: Collection[str]) -> str:
    """Return a question about the nearest known name, if there is one."""
    near = difflib.get_close_matches(found, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
