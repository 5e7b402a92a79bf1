"""What `la.evaluate` and `la.report` do: predict labelled data, and measure the predictions."""

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from jaxtyping import PRNGKeyArray, PyTree

from laplace_kit import card
from laplace_kit.curv.mode import labelled
from laplace_kit.eval import evaluate as evaluation
from laplace_kit.eval.report import Report
from laplace_kit.eval.report.checks import check_mapping
from laplace_kit.eval.report.compare import Compared, compare_report, named_sets

if TYPE_CHECKING:
    from laplace_kit.laplace import Laplace


def evaluate(la: "Laplace", data: Any, key: PRNGKeyArray | None) -> dict[str, float]:
    """Return the metrics of the default predictive, as `Laplace.evaluate` describes."""
    x, y, weights = labelled(la.objective, data)
    return evaluation.evaluate(la.likelihood, la.predict(x, key=key), y, weights)


def report(
    la: "Laplace",
    data: Any,
    directory: str | os.PathLike,
    compare: Mapping[str, Compared] | None,
    shifted: Mapping[str, Any] | None,
    ood: PyTree,
    title: str,
    key: PRNGKeyArray | None,
) -> Report:
    """Write a report next to the mode alone, as `Laplace.report` describes."""
    check_mapping("shifted", shifted)
    read = partial(_unweighted, la)
    x, y = read(data)
    return compare_report(
        {"map": la.predict_at_mode, "laplace": partial(la.predict, key=key)},
        la.likelihood,
        x,
        y,
        directory,
        compare=compare,
        shifted={name: read(of_name) for name, of_name in (shifted or {}).items()},
        ood=named_sets(ood, x),
        title=title,
        card=card.for_report(la),
    )


def _unweighted(la: "Laplace", data: Any) -> tuple[PyTree, PyTree]:
    """Return labelled inputs and targets, and refuse weights."""
    x, y, weights = labelled(la.objective, data)
    if weights is not None:
        raise ValueError(
            "Found data with weights for a report, whose bootstrap draws single examples, expected "
            "(x, y); la.evaluate((x, y, weights)) gives the weighted metrics, and np.repeat(x, "
            "weights, axis=0) makes examples of weights that are whole numbers."
        )
    return x, y
