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
    """Whether a predictor is over- or under-confident: in a few words, and in a sentence.

    `kind` is `"calibrated"`, `"over"` or `"under"`.
    """

    predictor: str
    judgement: str
    sentence: str
    kind: str

    @property
    def is_calibrated(self) -> bool:
        """Whether it is neither over- nor under-confident beyond sampling error."""
        return self.kind == "calibrated"


def verdict(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the conclusions from the content of `metrics.json`, one sentence each.

    First comes which predictor to use, and why, if there are several; then the comparisons of all
    predictors with the first on the test set; then, for each predictor, whether it is over- or
    under-confident there, by how much, and whether significantly; then the comparisons on the other
    sets, and the conclusions of single sections.
    """
    (_, test, bootstrap), *others = sets(metrics)
    said = tuple(claim.sentence for claim in claims(metrics))
    return (
        *([conclusion(metrics)] if len(test) > 1 else []),
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


def conclusion(metrics: Mapping[str, Any]) -> str:
    """Return which of several predictors to use, by the NLL, a proper score, and why.

    A proper score is best on average for the true probabilities; a calibration error is best for
    predictors that know only the base rates, too. Differences count only if they are significant.
    """
    (_, test, bootstrap), *_ = sets(metrics)
    nll = {name: of.get("nll") for name, of in test.items()}
    finite = [name for name, value in nll.items() if value is not None]
    shown = {name: f"{display_name(name)} {number(nll[name])}" for name in finite}
    if not finite:
        return "No predictor has a finite NLL: each gave a label, or a target, no probability."
    if len(finite) == 1:
        return f"Use {display_name(finite[0])}: the NLL of every other predictor is infinite."
    best = bootstrap.get("best", {}).get("nll")
    if best is not None:
        others = ", ".join(text for name, text in shown.items() if name != best)
        return (
            f"Use {display_name(best)}: its NLL, a proper score, is significantly lower "
            f"({number(nll[best])}; {others})."
        )
    reference, *others = finite
    judged = {
        name: METRICS["nll"].judged(bootstrap["differences"][name]["nll"])
        for name in others
        if "nll" in bootstrap["differences"].get(name, {})
    }
    better = [name for name in others if judged.get(name) == "better"]
    if better:
        return (
            f"Use {_either(better)} rather than {display_name(reference)}: their NLL, a proper "
            "score, is significantly lower. Between them these examples do not decide "
            f"({', '.join(shown.values())})."
            if len(better) > 1
            else f"Use {display_name(better[0])} rather than {display_name(reference)}: its NLL, a "
            "proper score, is significantly lower, though not than that of all others "
            f"({', '.join(shown.values())})."
        )
    return (
        f"No predictor has a significantly lower NLL than all others ({', '.join(shown.values())})"
        ": by this proper score these examples do not decide which to use; take the cheapest, or "
        "test on more examples."
    )


def _either(names: list[str]) -> str:
    *most, last = map(display_name, names)
    return f"{', '.join(most)} or {last}" if most else last


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
    kind = "calibrated" if p_value >= _SIGNIFICANT else "over" if gap > 0 else "under"
    return Claim(name, short, sentence, kind)


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
            _clause(
                key,
                values[reference][key],
                values[name][key],
                bootstrap["differences"].get(name, {}),
            )
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
