"""The files of a report: a self-contained page, pictures and metrics."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from laplace_kit.eval.plots.style import series_style
from laplace_kit.eval.report import examples, notebook, table
from laplace_kit.eval.report.advice import Step, next_steps
from laplace_kit.eval.report.content import Content
from laplace_kit.eval.report.content import PosteriorCard as PosteriorCard
from laplace_kit.eval.report.content import as_card as as_card
from laplace_kit.eval.report.glossary import glossary
from laplace_kit.eval.report.made import made
from laplace_kit.eval.report.markdown import markdown
from laplace_kit.eval.report.registry import METRICS
from laplace_kit.eval.report.verdict import claims, verdict
from laplace_kit.host import is_first

# Shown first for each set of examples; all other metrics are folded below them.
_BRIEF = {
    "classification": ("accuracy", "nll", "brier", "ece", "aurc"),
    "regression": ("rmse", "nll", "crps", "coverage_90"),
}


@dataclass(frozen=True)
class Report:
    """A written report: its files and metrics; `str(report)` is the table of metrics.

    Parameters
    ----------
    directory
        The directory of the report.
    metrics
        The content of `metrics.json`, of plain numbers and texts. A metric that is not finite is
        `None`.
    files
        The page, `report.md`, `metrics.json`, `predictions.npz` and the pictures.
    """

    directory: Path
    metrics: dict[str, Any]
    files: tuple[Path, ...]

    @property
    def index(self) -> Path:
        """The path of the page."""
        return self.directory / "index.html"

    @property
    def verdict(self) -> tuple[str, ...]:
        """The conclusions from the metrics, one sentence each."""
        return verdict(self.metrics)

    @property
    def next_steps(self) -> tuple[Step, ...]:
        """What to do next, with code that runs in the directory of the report."""
        return next_steps(self.metrics)

    def __repr__(self) -> str:
        """Return one line: the page, the task, the predictors."""
        names = ", ".join(self.metrics.get("predictors", ()))
        return f"Report({str(self.index)!r}, {names})"

    def _repr_html_(self) -> str:
        """Return the verdict and a link to the page, for notebooks."""
        return notebook.report_html(self)

    def __str__(self) -> str:
        """Return the table of metrics as plain text."""
        return table.text_table(self.metrics)


def write(
    directory: Path,
    metrics: dict[str, Any],
    content: Content,
    write_predictions: Callable[[Path], None],
    *,
    shared: bool = False,
) -> Report:
    """Write the page, `report.md`, `metrics.json`, `predictions.npz` and pictures, atomically.

    `metrics` is the content of `metrics.json`, without NaN or infinity; `write_predictions` writes
    `predictions.npz` to a path. A missing directory is created. Where several processes make one
    report, it is `shared`, and process 0 writes; otherwise each process writes its own.
    """
    content = content.rendered()
    found = {section.key: section.record for section in content.sections if section.record}
    metrics = metrics | ({"sections": found} if found else {})
    metrics |= {"made": made(metrics, content.look)}
    text = json.dumps(metrics, indent=2, allow_nan=False)
    drawn = [picture for section in content.sections for picture in section.pictures]
    drawn += examples.pictures(content.galleries)
    contents = {
        **{picture.file: picture.data for picture in drawn},
        "metrics.json": f"{text}\n".encode(),
        "report.md": markdown(metrics, content).encode(),
        "index.html": _render(metrics, text, content).encode(),
    }
    if is_first() or not shared:
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            part = directory / f".{name}.part"
            part.write_bytes(data)
            part.replace(directory / name)
        write_predictions(directory / "predictions.npz")
    names = (*contents, "predictions.npz")
    return Report(directory, metrics, tuple(directory / name for name in names))


def _render(metrics: Mapping[str, Any], metrics_text: str, content: Content) -> str:
    import jinja2
    import markupsafe

    # Titles, names and the card come from the caller: all text is escaped, except the style sheet.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = table.number
    environment.filters["display_name"] = table.display_name
    environment.filters["anchor"] = _anchor
    templates = resources.files("laplace_kit.eval.report").joinpath("templates")
    page = templates.joinpath("report.html").read_text(encoding="utf-8")
    style = templates.joinpath("report.css").read_text(encoding="utf-8")
    return environment.from_string(page).render(
        style=markupsafe.Markup(style),
        content=content,
        contents=_contents(content, next_steps(metrics)),
        metrics=metrics,
        metrics_text=metrics_text,
        verdict=verdict(metrics),
        steps=next_steps(metrics),
        glossary=glossary(metrics),
        claims=claims(metrics),
        headline=("accuracy", "nll", "ece")
        if metrics["task"] == "classification"
        else ("rmse", "nll", "crps"),
        brief_labels=[METRICS[key].label for key in _BRIEF[metrics["task"]]],
        labels={key: metric.label for key, metric in METRICS.items()},
        groups=table.groups(metrics),
        num_predictors=len(metrics["predictors"]),
        series={name: _Line.series(number) for number, name in enumerate(metrics["predictors"])},
    )


class _Line(NamedTuple):
    """The line style of a predictor in every plot, as SVG attributes."""

    color: str
    dashes: str

    @classmethod
    def series(cls, series: int) -> "_Line":
        color, style = series_style(series)
        return cls(color, {"-": "none", "--": "7 3", "-.": "8 3 2 3", ":": "3 3"}[style])


def _contents(content: Content, steps: tuple[Step, ...]) -> tuple[str, ...]:
    """Return the titles in the table of contents."""
    parts = (*content.sections, *content.galleries)
    card = ("Posterior",) if content.card else ()
    next_of = ("Next steps",) if steps else ()
    titles = (part.title for part in parts)
    return ("Verdict", *next_of, "Metrics", *titles, *card, "Glossary", "Reproduction")


def _anchor(title: str) -> str:
    return re.sub(r"[^\w.+]+", "-", title)
