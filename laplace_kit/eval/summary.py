"""What the numbers of a report say: the table of metrics, its better values, the verdict in words.

Everything here is a function of what `metrics.json` holds: no sentence can disagree with it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Mapping[str, float | None]]

RESERVED = ("schema", "task", "num_examples", "shifted", "ood")


@dataclass(frozen=True)
class Metric:
    """A metric's name and which values are better; `goal` is the value of a perfect predictor."""

    label: str
    better: str = ""
    goal: float | None = None

    def loss(self, value: float | None) -> float:
        """Return how far `value` is from the goal; what is not finite is farthest."""
        if value is None:
            return math.inf
        return value if self.goal == -math.inf else abs(value - self.goal)


METRICS = {
    "accuracy": Metric("Accuracy", "higher", 1.0),
    "confidence": Metric("Mean confidence"),
    "nll": Metric("NLL", "lower", -math.inf),
    "ece": Metric("ECE", "lower", 0.0),
    "mce": Metric("MCE", "lower", 0.0),
    "ace": Metric("ACE", "lower", 0.0),
    "brier": Metric("Brier score", "lower", 0.0),
    "auroc": Metric("AUROC", "higher", 1.0),
    "rmse": Metric("RMSE", "lower", 0.0),
    "crps": Metric("CRPS", "lower", 0.0),
    "coverage_90": Metric("Coverage of 90% intervals", "nearer to 0.9", 0.9),
    "chi_squared": Metric("Chi-squared", "nearer to 1", 1.0),
}
COMPARED = ("nll", "ece", "crps", "auroc")
_SUPERLATIVE = {"lower": "lowest", "higher": "highest"}


@dataclass(frozen=True)
class Cell:
    """One value of the table; `best` where it beats another predictor's."""

    value: float | None
    best: bool


@dataclass(frozen=True)
class Row:
    """One metric for all predictors, in their order."""

    metric: Metric
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """The metrics of one set of examples."""

    title: str
    rows: tuple[Row, ...]


def predictors(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the predictors compared."""
    return tuple(name for name in metrics if name not in RESERVED)


def display_name(predictor: str) -> str:
    """Return a predictor's name as a reader expects it."""
    return {"map": "MAP", "laplace": "Laplace"}.get(predictor, predictor)


def number(value: float | None) -> str:
    """Return a metric as text: four decimals, or three digits where these would hide the value."""
    if value is None:
        return "not finite"
    plain = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:.4f}" if plain else f"{value:.2e}"


def groups(metrics: Mapping[str, Any]) -> tuple[Group, ...]:
    """Return the table of metrics, set by set.

    Parameters
    ----------
    metrics
        The content of `metrics.json`.

    Returns
    -------
    tuple of Group
        The test set, then the shifted sets, then the out-of-distribution ones.
    """
    return tuple(_group(title, values) for title, values in _sets(metrics).items())


def verdict(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the numbers say, in plain words.

    Parameters
    ----------
    metrics
        The content of `metrics.json`.

    Returns
    -------
    tuple of str
        For several predictors, first who has the better NLL and calibration on the test set. For
        each, whether it is over- or under-confident there and by how much, if beyond two standard
        errors. Then a comparison on each of the other sets.
    """
    (_, test), *others = _sets(metrics).items()
    claims = tuple(
        _claim(name, metrics["task"], metrics["num_examples"], values)
        for name, values in test.items()
    )
    if len(test) == 1:
        return claims
    compared = (f"{title}: {_comparison(values)}." for title, values in others)
    return (f"{_comparison(test)}.", *claims, *compared)


def text_table(metrics: Mapping[str, Any]) -> str:
    """Return the table of metrics as plain text, an asterisk after each better value.

    Parameters
    ----------
    metrics
        The content of `metrics.json`.
    """
    columns = [display_name(name) for name in predictors(metrics)]
    table = groups(metrics)
    first = max(len(row.metric.label) for group in table for row in group.rows) + 2
    width = max(10, *map(len, columns)) + 2
    lines = [" " * first + "".join(f"{column:>{width}}  " for column in columns)]
    for group in table:
        lines.append(group.title)
        for row in group.rows:
            cells = (f"{number(c.value):>{width}} {'*' if c.best else ' '}" for c in row.cells)
            lines.append(f"  {row.metric.label:<{first - 2}}" + "".join(cells))
    lines.append(f"{metrics['num_examples']} test examples" + "; * is better" * (len(columns) > 1))
    return "\n".join(line.rstrip() for line in lines)


def _sets(metrics: Mapping[str, Any]) -> dict[str, Values]:
    names = predictors(metrics)
    shifted, ood = metrics.get("shifted", {}), metrics.get("ood", {})
    return {
        "Test set": {name: metrics[name] for name in names},
        **{f"Shifted, {name}": values for name, values in shifted.items()},
        **{f"Out of distribution, {name}": values for name, values in ood.items()},
    }


def _group(title: str, values: Values) -> Group:
    keys = next(iter(values.values()))
    return Group(
        title, tuple(_row(key, [by_key[key] for by_key in values.values()]) for key in keys)
    )


def _row(key: str, values: list[float | None]) -> Row:
    metric = METRICS[key]
    if metric.goal is None:
        return Row(metric, tuple(Cell(value, best=False) for value in values))
    losses = [metric.loss(value) for value in values]
    return Row(
        metric,
        tuple(
            Cell(value, best=min(losses) == loss < max(losses))
            for value, loss in zip(values, losses, strict=True)
        ),
    )


def _comparison(values: Values) -> str:
    """Say who leads in each of the compared metrics, gathered by leader."""
    clauses: dict[tuple[str, ...], list[str]] = {}
    for key in (key for key in COMPARED if key in next(iter(values.values()))):
        metric = METRICS[key]
        ranked = sorted((by_key[key] for by_key in values.values()), key=metric.loss)
        leaders = tuple(name for name in values if values[name][key] == ranked[0])
        if len(leaders) > 1:
            found = f"the same {metric.label} ({number(ranked[0])})"
        else:
            word = metric.better if len(values) == 2 else _SUPERLATIVE[metric.better]
            found = f"the {word} {metric.label} ({number(ranked[0])} against {number(ranked[1])})"
        clauses.setdefault(leaders, []).append(found)
    return "; ".join(
        f"{' and '.join(map(display_name, who))} {'has' if len(who) == 1 else 'have'} "
        f"{' and '.join(what)}"
        for who, what in clauses.items()
    )


def _claim(name: str, task: str, num_examples: int, values: Mapping[str, float | None]) -> str:
    """Say whether a predictor claims more, or less, than it keeps."""
    if task == "classification":
        claimed, kept = values["confidence"], values["accuracy"]
        evidence = f"it claims {claimed:.1%} on average and is right in {kept:.1%} of the cases"
    else:
        claimed, kept = 0.9, values["coverage_90"]
        evidence = f"its 90% intervals hold {kept:.1%} of the observations"
    gap = claimed - kept
    # The binomial error of the share kept, were the claim true: an upper bound when claims vary.
    if abs(gap) <= 2.0 * math.sqrt(claimed * (1.0 - claimed) / num_examples):
        judgement = "neither over- nor under-confident beyond sampling error"
    else:
        judgement = f"{'over' if gap > 0 else 'under'}-confident by {100 * abs(gap):.1f} points"
    return f"{display_name(name)} is {judgement}: {evidence}."
