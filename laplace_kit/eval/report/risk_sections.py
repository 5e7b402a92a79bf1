"""What a report says beside the risk-coverage curve: thresholds with a guarantee."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import ArrayLike

from laplace_kit.eval.report.inputs import classified
from laplace_kit.eval.report.section import Section
from laplace_kit.eval.report.table import display_name
from laplace_kit.eval.statistics.risk import control_kept_losses
from laplace_kit.eval.statistics.weighting import checked

BOUNDS, CONFIDENCE = (0.01, 0.02, 0.05, 0.1, 0.2), 0.95


def controlled_errors(
    probs: Mapping[str, ArrayLike], y: ArrayLike, weights: ArrayLike | None
) -> dict[str, list[dict[str, Any]]]:
    """Return, for each predictor and bound of the error rate, which predictions to hand on.

    Parameters
    ----------
    probs, y, weights
        The probabilities of each predictor, labels, and weights of the examples.

    Returns
    -------
    controlled
        By predictor, for the bounds below its error rate: `at_most`, `confidence`, `handed_on`, the
        share of predictions whose confidence is not above `threshold`. Both are `null` where these
        examples show none.
    """
    found = {}
    for name, of in probs.items():
        valid, labels = classified(of, y)
        predicted, everyone = valid.argmax(axis=1), np.arange(len(valid))
        right = labels == predicted if labels.ndim == 1 else labels[everyone, predicted]
        lost, rows = 1 - right.astype(float), checked(weights, len(valid))
        error = np.average(lost, weights=rows)
        found[name] = []
        for bound in (bound for bound in BOUNDS if bound < error):
            one = control_kept_losses(
                valid.max(axis=1), lost, rows, bound, 1 - CONFIDENCE, in_order=False
            )
            is_there = one.share > 0
            found[name].append(
                {
                    "at_most": bound,
                    "confidence": CONFIDENCE,
                    "handed_on": 1 - one.share if is_there else None,
                    "threshold": one.threshold if is_there and np.isfinite(one.threshold) else None,
                }
            )
    return found


def with_guarantees(section: Section, controlled: Mapping[str, list[dict[str, Any]]]) -> Section:
    """Return a section whose note ends with `risk_sentences`."""
    return dataclasses.replace(section, note=section.note + risk_sentences(controlled))


def risk_sentences(controlled: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the guarantees in words, "hand on 12%: at most 2% errors with 95% confidence"."""
    sentences = []
    for name, bounds in controlled.items():
        able = [
            f"hand on {100 * of['handed_on']:.2g}%: at most {100 * of['at_most']:.3g}% errors"
            for of in bounds
            if of["handed_on"] is not None
        ]
        if bounds and not able:
            most = f"{100 * bounds[-1]['at_most']:.3g}%"
            able = [f"these examples show no threshold with at most {most} errors"]
        if able:
            sentences.append(f"{display_name(name)}: {'; '.join(able)}.")
    if not sentences:
        return ""
    return (
        f" Each with {CONFIDENCE:.0%} confidence for new examples like these: {' '.join(sentences)}"
    )
