"""What to do next, from the content of `metrics.json`: a sentence each, and code that runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from laplace_kit.eval.report.table import display_name, interval, number

_POSTERIOR = """\
from laplace_kit.eval import recalibrate

# With data that neither training nor this test set contains:
recalibration = recalibrate(la.predict(x_validation), y_validation)
predictive = recalibration(la.predict(x))"""


@dataclass(frozen=True)
class Step:
    """A suggestion; its code runs in the directory of the report, where there is any."""

    text: str
    code: str = ""


def next_steps(metrics: Mapping[str, Any]) -> tuple[Step, ...]:
    """Return what to do next: which recalibrations would lower the NLL, and how to apply them."""
    is_classes = metrics["task"] == "classification"
    found = metrics.get("recalibrated", {})
    helpful = {name: of for name, of in found.items() if of["difference"][2] < 0}
    steps = [
        _step(name, of, metrics[name]["nll"], is_classes=is_classes) for name, of in helpful.items()
    ]
    what = "temperature" if is_classes else "factor of the standard deviations"
    idle = [display_name(name) for name in found if name not in helpful]
    if idle:
        steps.append(
            Step(
                f"No {what} lowers the NLL of {' or '.join(idle)} significantly (cross-fitted on "
                "this test set): keep these predictions as they are."
            )
        )
    if "laplace" in helpful:
        steps.append(
            Step(
                "The number above was fitted to the test set, which is then no longer one: to "
                "recalibrate the posterior, use validation data.",
                _POSTERIOR,
            )
        )
    return tuple(steps)


def _step(name: str, of: Mapping[str, Any], nll: float | None, *, is_classes: bool) -> Step:
    factor, (difference, *ends) = of["factor"], of["difference"]
    what = f"A temperature of {factor:.3g}"
    if not is_classes:
        what = f"Standard deviations {factor:.3g} times as large"
    after = "" if nll is None else f" from {number(nll)} to {number(nll + difference)}"
    text = (
        f"{what} would lower the NLL of {display_name(name)}{after}, a change of "
        f"{number(difference)} ({interval(list(ends))}), cross-fitted on this test set."
    )
    return Step(text, _classes_code(name, factor) if is_classes else _numbers_code(name, factor))


def _classes_code(name: str, temperature: float) -> str:
    return f"""\
import numpy as np

probs = np.load("predictions.npz")["{name}/probs"].astype(float)
probs = (probs / probs.max(axis=1, keepdims=True)) ** (1 / {temperature:.4g})
probs /= probs.sum(axis=1, keepdims=True)"""


def _numbers_code(name: str, factor: float) -> str:
    return f"""\
import numpy as np

std = {factor:.4g} * np.load("predictions.npz")["{name}/std"]"""
