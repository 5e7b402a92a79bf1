"""The tables of a report: metrics of every predictor, with intervals and paired differences.

All functions depend only on the content of `metrics.json`, so that the tables agree with it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from laplace_kit.eval.report.registry import METRICS, Metric

Values = Mapping[str, float | None]

# Metrics that differ by less, in float32, count as equal.
_ROUNDING = 1e-6

_IN_UNITS = ("rmse", "crps", "width_90")  # of the target

RESERVED = (
    "schema",
    "task",
    "num_examples",
    "seed",
    "predictors",
    "shifted",
    "ood",
    "claims",
    "bootstrap",
    "names",
    "made",
    "num_classes",
    "recalibrated",
    "sections",
    "groups",
    "risk_control",
)


@dataclass(frozen=True)
class Cell:
    """The value of a metric for one predictor; `best` if significantly better than all others."""

    text: str
    interval: str
    best: bool
    value: float | None


@dataclass(frozen=True)
class Change:
    """The difference of a predictor to the reference; `judgement` is its significance."""

    text: str
    interval: str
    judgement: str
    value: float | None


@dataclass(frozen=True)
class Row:
    """One metric for all predictors of a group; `changes` is empty where undefined.

    `hint` is the unit of the metric, or what else belongs to its name.
    """

    metric: Metric
    cells: tuple[Cell, ...]
    changes: tuple[Change, ...]
    hint: str = ""


@dataclass(frozen=True)
class Group:
    """The metrics of all predictors on one set of examples; `changes` are relative to the first."""

    title: str
    predictors: tuple[str, ...]
    rows: tuple[Row, ...]


def predictors(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the predictors compared."""
    return tuple(metrics["predictors"])


def display_name(predictor: str) -> str:
    """Return a predictor's name for display."""
    return {"map": "MAP", "laplace": "Laplace"}.get(predictor, predictor)


def number(value: float | None) -> str:
    """Return a metric as text: four decimals, or three digits for very small or large values."""
    if value is None:
        return "not finite"
    if abs(value) < _ROUNDING:
        value = 0.0
    plain = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:.4f}" if plain else f"{value:.2e}"


def with_error(value: float, error: float) -> str:
    """Return a value and its non-negative error as text, rounded to two digits of the error."""
    (value_text, error_text), power = _to_the_place_of(error, value, error)
    both = f"{value_text} ± {error_text}"
    return f"({both}){power}" if power else both


def rounded(value: float, error: float) -> str:
    """Return a value as text, rounded as in `with_error`."""
    (text,), power = _to_the_place_of(error, value)
    return text + power


def _to_the_place_of(error: float, *values: float) -> tuple[list[str], str]:
    """Return numbers in units of a power of ten, rounded to the second digit of an error."""
    size = max(error, *map(abs, values))
    if not (error > 0 and size < math.inf):
        return [f"{value:.4g}" for value in values], ""
    decimals, power = 1 - _exponent(error), _exponent(size)
    if -4 <= power < 15 and decimals > -5:
        power = 0
    places = max(decimals + power, 0)
    # Adding zero removes the sign of negative zero.
    texts = [f"{round(value, decimals) / 10.0**power + 0.0:.{places}f}" for value in values]
    return texts, f"e{power:+03d}" if power else ""


def _exponent(number: float) -> int:
    """Return the decimal exponent of a positive number rounded to two digits."""
    return int(f"{number:.1e}".partition("e")[2])


def sets(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Values], Mapping]]:
    """Yield the title of each set of examples, its metrics by predictor, and its bootstrap."""
    bootstrap = metrics["bootstrap"]
    test = {name: metrics[name] for name in predictors(metrics)}
    yield "Test set", test, bootstrap["test"]
    for kind, title in (("shifted", "Shifted"), ("ood", "Out of distribution")):
        for name, values in metrics.get(kind, {}).items():
            yield f"{title}, {name}", values, bootstrap[kind][name]


def groups(metrics: Mapping[str, Any]) -> tuple[Group, ...]:
    """Return the metrics of the test set, the shifted sets and the out-of-distribution sets."""
    hints, unit = {}, metrics.get("names", {}).get("unit")
    if metrics.get("num_classes") == 2:
        hints["brier"] = "over both classes, twice that of P(y = 1)"
    if unit:
        hints |= dict.fromkeys(_IN_UNITS, f"in {unit}")
    return tuple(_group(*found, hints) for found in sets(metrics))


def text_table(metrics: Mapping[str, Any]) -> str:
    """Return the table of metrics as plain text, an asterisk after what is best."""
    table = groups(metrics)
    columns = predictors(metrics)
    first = max(len(row.metric.label) for group in table for row in group.rows) + 2
    width = max(10, *(len(display_name(column)) for column in columns)) + 2
    names = (f"{display_name(column):>{width}}  " for column in columns)
    lines = [" " * (first + 2) + "".join(names)]
    for group in table:
        lines.append(group.title)
        for row in group.rows:
            cells = dict(zip(group.predictors, row.cells, strict=True))
            texts = (_padded(cells.get(column), width) for column in columns)
            lines.append(f"  {row.metric.label:<{first}}" + "".join(texts))
    note = "; * is significantly better than the others" * (len(columns) > 1)
    lines.append(f"{metrics['num_examples']} test examples{note}")
    return "\n".join(line.rstrip() for line in lines)


def _padded(cell: Cell | None, width: int) -> str:
    return (
        " " * (width + 2) if cell is None else f"{cell.text:>{width}} {'*' if cell.best else ' '}"
    )


def _group(
    title: str,
    values: Mapping[str, Values],
    bootstrap: Mapping[str, Any],
    hints: Mapping[str, str],
) -> Group:
    names = tuple(values)
    # Not every predictor has every score: the epistemic part may be unknown.
    keys = dict.fromkeys(key for of_name in values.values() for key in of_name)
    rows = (_row(key, values, bootstrap, hints.get(key, "")) for key in keys)
    return Group(title, names, tuple(rows))


def _row(key: str, values: Mapping[str, Values], bootstrap: Mapping[str, Any], hint: str) -> Row:
    metric, best = METRICS[key], bootstrap["best"].get(key)
    cells = tuple(
        Cell(
            number(of[key]),
            interval(bootstrap["intervals"][name].get(key)),
            name == best,
            of[key],
        )
        if key in of
        else Cell("–", "", False, None)
        for name, of in values.items()
    )
    return Row(metric, cells, _changes(key, tuple(values), bootstrap["differences"]), hint)


def _changes(key: str, names: tuple[str, ...], differences: Mapping) -> tuple[Change, ...]:
    found = [differences[name].get(key) for name in names[1:]]
    if not any(found):
        return ()
    return tuple(
        Change("–", "", "", None)
        if one is None
        else Change(signed(one[0]), interval(one[1:]), METRICS[key].judged(one), one[0])
        for one in found
    )


def interval(bounds: list[float] | None) -> str:
    """Return the bounds of an interval as text."""
    return "" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def signed(value: float) -> str:
    """Return a difference as text, with its sign unless it rounds to zero."""
    return number(value) if value < _ROUNDING else f"+{number(value)}"
