"""The files of a report: one self-contained page, the plots next to it and `metrics.json`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from laplace_kit.eval import summary
from laplace_kit.eval.figures import Section


@dataclass(frozen=True)
class Report:
    """What was written, and the numbers in it; `str(report)` is the table of metrics.

    Parameters
    ----------
    directory
        Where the report is.
    metrics
        What `metrics.json` holds: `schema`, `task`, `num_examples`, the metrics of each predictor
        on the test set, and for classification those on the `shifted` and `ood` sets. A metric
        that is not finite is `None`.
    files
        The page, `metrics.json` and the plots.
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
        """What the numbers say, in plain words."""
        return summary.verdict(self.metrics)

    def __str__(self) -> str:
        """Return the table of metrics as plain text."""
        return summary.text_table(self.metrics)


def usable_directory(directory: str | Path) -> Path:
    """Return `directory` as a path, after a look at whether it can be one.

    Raises
    ------
    ValueError
        If it, or one of its parents, is a file.
    """
    directory = Path(directory)
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(
            f"Found a file at {nearest}, expected a directory to write the report to, or nothing "
            "yet; choose another directory or move the file away."
        )
    return directory


def write(
    directory: Path,
    title: str,
    metrics: dict[str, Any],
    sections: Sequence[Section],
    card: Mapping[str, str],
) -> Report:
    """Write the page, `metrics.json` and the plots; each file appears whole or not at all.

    Parameters
    ----------
    directory
        Where to write; made if it is missing.
    title
        The heading of the page.
    metrics
        What `metrics.json` shall hold, without NaN or infinity.
    sections
        The plots.
    card
        Facts about the posterior, by name.
    """
    text = json.dumps(metrics, indent=2, allow_nan=False)
    contents = {
        **{image.file: image.png for section in sections for image in section.pictures},
        "metrics.json": f"{text}\n".encode(),
        "index.html": _render(title, metrics, text, sections, card).encode(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        part = directory / f".{name}.part"
        part.write_bytes(content)
        part.replace(directory / name)
    return Report(directory, metrics, tuple(directory / name for name in contents))


def _render(
    title: str,
    metrics: Mapping[str, Any],
    metrics_text: str,
    sections: Sequence[Section],
    card: Mapping[str, str],
) -> str:
    import jinja2

    # Titles, names and the card come from the caller: everything is escaped.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = summary.number
    template = resources.files("laplace_kit.eval").joinpath("templates", "report.html")
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        title=title,
        task=metrics["task"],
        num_examples=metrics["num_examples"],
        verdict=summary.verdict(metrics),
        columns=[summary.display_name(name) for name in summary.predictors(metrics)],
        groups=summary.groups(metrics),
        sections=sections,
        card=card,
        metrics_text=metrics_text,
    )
