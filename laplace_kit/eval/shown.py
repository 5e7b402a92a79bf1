"""A predictive in one line, and as a short table for notebooks."""

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from laplace_kit import tree
from laplace_kit.host import fetch_array, spans_processes
from laplace_kit.targets.base import LabelTargets, NumberTargets

if TYPE_CHECKING:
    from laplace_kit.eval.outputs import Predictive

_MOST_ROWS, _MOST_OUTPUTS = 8, 4


def line(predictive: "Predictive") -> str:
    """Return the kind of the targets and the shape of the outputs, without looking at values."""
    mean = predictive.f_mean
    kind = type(predictive.targets).__name__
    return f"Predictive({kind}, {len(mean)} inputs, outputs {tuple(mean.shape[1:])})"


def html(predictive: "Predictive") -> str:
    """Return the line and, for classes and numbers, a table of the first few inputs as HTML."""
    title = f"<p>{escape(line(predictive))}</p>"
    targets = predictive.targets
    if not tree.is_concrete(predictive) or spans_processes(predictive):
        return title
    if isinstance(targets, LabelTargets) and targets.class_probabilities.ndim == 2:
        columns, rows = _labels(targets)
    elif isinstance(targets, NumberTargets):
        columns, rows = _numbers(targets)
    else:
        return title
    head = "".join(f"<th>{escape(name)}</th>" for name in ("input", *columns))
    body = "".join(
        f"<tr><th>{k}</th>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>"
        for k, row in enumerate(rows)
    )
    more = len(predictive.f_mean) - len(rows)
    rest = f"<p>and {more:,} more</p>" if more > 0 else ""
    return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def _labels(targets: LabelTargets) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    probs = fetch_array(targets.class_probabilities[:_MOST_ROWS], float)
    rows = [(str(row.argmax()), f"{row.max():.3f}") for row in probs]
    return ("most probable class", "probability"), rows


def _numbers(targets: NumberTargets) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    from laplace_kit.eval.report.table import with_error

    mean, var = (
        fetch_array(of[:_MOST_ROWS], float).reshape(min(len(of), _MOST_ROWS), -1)
        for of in (targets.mean, targets.variance)
    )
    shown = min(mean.shape[1], _MOST_OUTPUTS)
    names = tuple(f"output {k}" for k in range(shown)) if mean.shape[1] > 1 else ("mean ± std",)
    rows = [
        tuple(
            with_error(float(centre), float(np.sqrt(spread)))
            for centre, spread in zip(*of, strict=True)
        )
        for of in zip(mean[:, :shown], var[:, :shown], strict=True)
    ]
    return names, rows
