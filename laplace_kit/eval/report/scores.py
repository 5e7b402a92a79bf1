"""Uncertainty scores, higher where a classifier is less certain, and their names in reports."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from laplace_kit.eval import metrics


@dataclass(frozen=True)
class Score:
    """The names of a score: on an axis, in a sentence, and as suffix of its metrics."""

    label: str
    short: str
    suffix: str


SCORES: Mapping[str, Score] = {
    "max_probability": Score("1 − largest probability", "largest probability", ""),
    "entropy": Score("entropy (nats)", "entropy", "_entropy"),
    "epistemic": Score("epistemic part (nats)", "epistemic part", "_epistemic"),
}


def scores(
    probs: Float[ArrayLike, "N C"], epistemic: Float[ArrayLike, " N"] | None
) -> dict[str, Float[Array, " N"]]:
    """Return the known scores of `SCORES` by name, `(N,)` each."""
    known = {
        "max_probability": metrics.max_probability_score(probs),
        "entropy": metrics.entropy_score(probs),
    }
    return known if epistemic is None else known | {"epistemic": jnp.asarray(epistemic)}
