"""What the sections of a report are made from: predictions, targets, names and metrics.

A section is a function from one of these to sections; `SECTIONS` in `classification.py` and
`regression.py` lists them in the order of the page.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float, Int, Num, PyTree

from laplace_kit.eval.report.names import NO_NAMES, Names
from laplace_kit.eval.report.pictures import TEST
from laplace_kit.eval.report.predictions import ClassPredictions, RegressionPredictions
from laplace_kit.eval.report.section import Section
from laplace_kit.eval.statistics.weighting import checked


@dataclass(frozen=True)
class Classified:
    """Classifiers on the same examples.

    Parameters
    ----------
    predictions, y, shifted_labels, subject
        As for `classification_report`, valid.
    numbers
        The metrics of the report: the content of `metrics.json` but for the sections.
    weights
        The weights of the test set, under `TEST`, and of each shifted set; `None` for one each.
    names
        The names of classes and features.
    costs
        The costs of a false positive and of a false negative, for two classes.
    """

    predictions: Mapping[str, ClassPredictions]
    y: ArrayLike
    shifted_labels: Mapping[str, ArrayLike]
    numbers: Mapping[str, Any]
    subject: str
    weights: Mapping[str, ArrayLike | None] = field(default_factory=dict)
    names: Names = NO_NAMES
    costs: tuple[float, float] = (1.0, 1.0)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return np.shape(next(iter(self.predictions.values())).probs)[1]

    @property
    def labels(self) -> Int[np.ndarray, " N"]:
        """The test labels; for soft ones, the most probable classes."""
        return hard_labels(self.y)

    @property
    def counted(self) -> Float[np.ndarray, " N"]:
        """The weights of the test examples, ones by default."""
        return checked(self.weights.get(TEST), len(self.labels))

    @property
    def probs(self) -> dict[str, ArrayLike]:
        """The probabilities on the test set, by predictor."""
        return {name: of.probs for name, of in self.predictions.items()}

    @property
    def measured(self) -> dict[str, Mapping[str, float | None]]:
        """The metrics on the test set, by predictor."""
        return {name: self.numbers[name] for name in self.predictions}


@dataclass(frozen=True)
class Regressed:
    """Regressors on the same examples.

    Parameters
    ----------
    predictions, y, x, subject, seed
        As for `regression_report`, valid; targets are `(N, C)`.
    numbers
        The metrics of the report: the content of `metrics.json` but for the sections.
    weights
        The weights of the examples.
    names
        The names of features and targets, and their unit.
    """

    predictions: Mapping[str, RegressionPredictions]
    y: Num[np.ndarray, "N C"]
    x: PyTree
    numbers: Mapping[str, Any]
    subject: str
    weights: Float[np.ndarray, " N"]
    names: Names = NO_NAMES
    seed: int = 0

    @property
    def measured(self) -> dict[str, Mapping[str, float | None]]:
        """The metrics on the test set, by predictor."""
        return {name: self.numbers[name] for name in self.predictions}


MakeClassSections = Callable[[Classified], Iterable[Section]]
MakeNumberSections = Callable[[Regressed], Iterable[Section]]


def hard_labels(y: ArrayLike) -> np.ndarray:
    """Return labels `(N,)`; for one-hot or soft labels `(N, C)`, the most probable ones."""
    y = np.asarray(y)
    return y if y.ndim == 1 else y.argmax(axis=1)
