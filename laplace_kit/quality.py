"""The work of `la.evaluate` and `la.report`: predict labelled data and score the predictions."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import PyTree

from laplace_kit.curv.mode import labelled
from laplace_kit.curv.objective import Objective
from laplace_kit.eval import evaluation
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.report import PosteriorCard, Report
from laplace_kit.eval.report.checks import check_mapping
from laplace_kit.eval.report.compare import Compared, compare_report, named_sets
from laplace_kit.eval.report.look import Look as Look
from laplace_kit.eval.report.names import Names, codes_of, names_of
from laplace_kit.eval.report.names import named as named
from laplace_kit.host import in_step, spans_processes

Predict = Callable[[PyTree], Predictive]


class Others(NamedTuple):
    """Further predictors, sets and groups of a report; see `compare_report`."""

    compare: Mapping[str, Compared] | None
    shifted: Mapping[str, Any] | None
    ood: PyTree
    groups: Any


def evaluate(objective: Objective, predict: Predict, data: Any) -> dict[str, float]:
    """Return the metrics of a predictive on labelled data; one pass is made over them."""
    x, y, weights = labelled(objective, data)
    return evaluation.evaluate(objective.likelihood, predict(x), y, weights)


def report(
    objective: Objective,
    predict: Mapping[str, Predict],
    data: Any,
    directory: str | os.PathLike,
    others: Others,
    names: Names,
    card: PosteriorCard,
    look: Look,
    seed: int,
) -> Report:
    """Read labelled data and write the report of predictors on them; see `compare_report`.

    The names are those given, and otherwise those that the data carry.
    """
    check_mapping("shifted", others.shifted)
    x, y, weights = labelled(objective, _coded(data))
    if isinstance(data, tuple):
        names = names.or_else(_names(objective, *data[:2]))
    write = partial(
        compare_report,
        predict,
        objective.likelihood,
        x,
        y,
        directory,
        weights=weights,
        compare=others.compare,
        shifted={
            name: labelled(objective, _coded(labelled_set))
            for name, labelled_set in (others.shifted or {}).items()
        },
        ood=named_sets(others.ood, x),
        names=names,
        card=card,
        groups=others.groups,
        look=look,
        seed=seed,
    )
    shared = spans_processes((objective, x))
    return in_step(partial(write, shared=shared), shared=shared)


def _coded(data: Any) -> Any:
    """Return data in memory with the numbers of categories as targets."""
    if not isinstance(data, tuple) or len(data) < 2:
        return data
    return (data[0], codes_of(data[1]), *data[2:])


def _names(objective: Objective, x: PyTree, y: PyTree) -> Names:
    """Return the names that data carry; the columns of several labels are no target's names."""
    found = names_of(x, y)
    if objective.likelihood.has_classes and len(found.targets) > 1:
        return replace(found, targets=())
    return found
