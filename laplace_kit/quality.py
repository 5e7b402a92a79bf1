"""The work of `la.evaluate` and `la.report`: predict labelled data and score the predictions."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jaxtyping import PyTree

from laplace_kit.curv.mode import labelled
from laplace_kit.curv.objective import Objective
from laplace_kit.eval import evaluation
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.report import PosteriorCard, Report
from laplace_kit.eval.report.checks import check_mapping
from laplace_kit.eval.report.compare import Compared, compare_report, named_sets
from laplace_kit.host import in_step, spans_processes

Predict = Callable[[PyTree], Predictive]


def evaluate(objective: Objective, predict: Predict, data: Any) -> dict[str, float]:
    """Return the metrics of a predictive on labelled data; one pass is made over them."""
    x, y, weights = labelled(objective, data)
    return evaluation.evaluate(objective.likelihood, predict(x), y, weights)


def report(
    objective: Objective,
    predict: Mapping[str, Predict],
    data: Any,
    directory: str | os.PathLike,
    *,
    compare: Mapping[str, Compared] | None,
    shifted: Mapping[str, Any] | None,
    ood: PyTree,
    title: str,
    card: PosteriorCard,
    groups: Any,
    seed: int,
) -> Report:
    """Read labelled data and write the report of predictors on them; see `compare_report`."""
    check_mapping("shifted", shifted)
    read = partial(labelled, objective)
    x, y, weights = read(data)
    write = partial(
        compare_report,
        predict,
        objective.likelihood,
        x,
        y,
        directory,
        weights=weights,
        compare=compare,
        shifted={name: read(labelled_set) for name, labelled_set in (shifted or {}).items()},
        ood=named_sets(ood, x),
        title=title,
        card=card,
        groups=groups,
        seed=seed,
    )
    return in_step(write, shared=spans_processes((objective, x)))
