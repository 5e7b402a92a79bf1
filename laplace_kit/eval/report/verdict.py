"""The conclusions of a report as sentences.

All functions depend only on the content of `metrics.json`, so that the sentences agree with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from laplace_kit.eval.report.registry import METRICS
from laplace_kit.eval.report.table import Values, display_name, number, sets
from laplace_kit.eval.statistics.numbers import LEVEL

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Claim:
    """Whether a predictor is over- or under-confident: in a few words, and in a sentence."""

    predictor: str
    judgement: str
    sentence: str
    is_calibrated: bool


def verdict(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the conclusions from the content of `metrics.json`, one sentence each.

    First come the comparisons of all predictors with the first on the test set; then, for each
    predictor, whether it is over- or under-confident there, by how much, and whether significantly;
    then the comparisons on the other sets, and the conclusions of single sections.
    """
    (_, test, bootstrap), *others = sets(metrics)
    said = tuple(claim.sentence for claim in claims(metrics))
    return (
        *_comparisons(test, bootstrap),
        *said,
        *(
            f"{title}: {sentence[0].lower()}{sentence[1:]}"
            for title, values, of_set in others
            for sentence in _comparisons(values, of_set)
        ),
        *(
            sentence
            for section in metrics.get("sections", {}).values()
            for sentence in section.get("conclusions", ())
        ),
    )


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """Return, for each predictor, whether it is over- or under-confident on the test set."""
    return tuple(
        _claim(name, metrics["task"], numbers) for name, numbers in metrics["claims"].items()
    )


def _claim(name: str, task: str, numbers: Mapping[str, float]) -> Claim:
    claimed, kept, p_value = numbers["claimed"], numbers["kept"], numbers["p_value"]
    if task == "classification":
        evidence = f"its mean confidence is {claimed:.1%}, its accuracy {kept:.1%}"
    else:
        exactly = abs(claimed - LEVEL) < 5e-4
        which = "" if exactly else f", of {claimed:.1%} probability as counts have steps,"
        evidence = f"its {LEVEL:.0%} intervals{which} cover {kept:.1%} of the targets"
    gap, chance = claimed - kept, _chance(p_value)
    if p_value >= _SIGNIFICANT:
        short = "calibrated on average"
        words = f"neither over- nor under-confident beyond sampling error ({chance})"
    else:
        short = f"{'over' if gap > 0 else 'under'}-confident by {100 * abs(gap):.1f} points"
        words = f"{short} ({chance})"
    sentence = f"{display_name(name)} is {words}: {evidence}."
    if num := numbers.get("impossible", 0):
        labels = "one label" if num == 1 else f"{num} labels"
        sentence += f" It gives {labels} probability zero, so that its NLL is infinite."
    return Claim(name, short, sentence, p_value >= _SIGNIFICANT)


def _chance(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def _comparisons(values: Mapping[str, Values], bootstrap: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each of the other predictors that compares it with the first."""
    reference, *others = values
    sentences = []
    for name in others:
        both = values[reference].keys() & values[name].keys()
        keys = [key for key, metric in METRICS.items() if metric.in_verdict and key in both]
        clauses = [
            _clause(key, values[reference][key], values[name][key], bootstrap["differences"][name])
            for key in keys
        ]
        sentences.append(
            f"Against {display_name(reference)}, {display_name(name)} has {' and '.join(clauses)}."
        )
    return sentences


def _clause(key: str, old: float | None, new: float | None, differences: Mapping) -> str:
    """Return a clause on which value of a metric is better, and whether significantly."""
    metric = METRICS[key]
    label = metric.label.split(",")[0]
    both = f"{number(new)} against {number(old)}"
    if new == old:
        return f"the same {label} ({number(new)})"
    worse = {"lower": "higher", "higher": "lower"}[metric.better]
    word = metric.better if metric.loss(new) < metric.loss(old) else worse
    if key not in differences:
        return f"a {word} {label} ({both})"
    if metric.judged(differences[key]) == "not significant":
        return f"a {word} {label}, though within sampling error ({both})"
    return f"a significantly {word} {label} ({both})"
