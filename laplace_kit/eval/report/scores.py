"""Uncertainty scores, higher where a classifier is less certain, and their names in reports."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike, Float

from laplace_kit.eval.metrics import checks
from laplace_kit.eval.report.inputs import check_distributions, floating
from laplace_kit.eval.statistics.classification import entropy, one_minus_largest


@dataclass(frozen=True)
class Score:
    """The names of a score: on an axis, in a sentence, in a table, and as suffix of its metrics."""

    label: str
    short: str
    column: str
    suffix: str


SCORES: Mapping[str, Score] = {
    "max_probability": Score(
        "1 − largest probability", "largest probability", "largest probability", ""
    ),
    "entropy": Score("entropy (nats)", "entropy", "entropy", "_entropy"),
    "epistemic": Score("epistemic part (nats)", "epistemic part", "epistemic", "_epistemic"),
}


def scores(
    probs: Float[ArrayLike, "N C"], epistemic: Float[ArrayLike, " N"] | None
) -> dict[str, Float[np.ndarray, " N"]]:
    """Return the known scores of `SCORES` by name, `(N,)` each."""
    probs = floating(probs)
    check_distributions("probs", probs, checks.LOGITS)
    known = {"max_probability": one_minus_largest(probs), "entropy": entropy(probs)}
    return known if epistemic is None else known | {"epistemic": np.asarray(epistemic)}
