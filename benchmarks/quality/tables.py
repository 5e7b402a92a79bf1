"""Scores of predictions over splits: as tables to read and as JSON to keep."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import machine

RESULTS = Path(__file__).parent.parent / "results"


@dataclasses.dataclass(frozen=True)
class Scores:
    """What one method scores on one data set: for every metric a number for each split."""

    data_set: str
    method: str
    values: dict[str, tuple[float, ...]]


def data_folder(given: Path | None) -> Path:
    """Return the folder of the data: the one given, or that of the environment's variable."""
    folder = given or os.environ.get("LAPLACE_KIT_DATA")
    if folder is None:
        raise SystemExit(
            "Found neither --data nor LAPLACE_KIT_DATA, expected the folder of the data sets that "
            "benchmarks/README.md describes."
        )
    if not Path(folder).is_dir():
        raise SystemExit(f"Found no folder {str(folder)!r}, expected that of the data sets.")
    return Path(folder)


def markdown(scores: Sequence[Scores]) -> str:
    """Return a table for each data set: means over splits, and their standard errors."""
    tables = []
    for data_set in dict.fromkeys(row.data_set for row in scores):
        rows = [row for row in scores if row.data_set == data_set]
        metrics = list(rows[0].values)
        lines = [
            f"| {data_set} | {' | '.join(metrics)} |",
            f"|---|{'---:|' * len(metrics)}",
            *(
                f"| {row.method} | {' | '.join(_cell(row.values[metric]) for metric in metrics)} |"
                for row in rows
            ),
        ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def described(machine: Mapping[str, Any]) -> str:
    """Return what the numbers were made with, in a line."""
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def _cell(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.3f}"


def show(scores: Sequence[Scores], setting: Any) -> None:
    """Print the tables, and what a reader needs to judge them."""
    print(f"{described(machine())}\n{setting}\n\n{markdown(scores)}")


def keep(name: str, scores: Sequence[Scores], setting: Any, folder: Path = RESULTS) -> None:
    """Write every number to a file, with what a reader needs to judge it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(row) for row in scores]
    content = {"machine": machine(), "setting": str(setting), "scores": rows}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
