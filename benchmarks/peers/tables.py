"""Measurements side by side, as Markdown: targets, times, memory, and why cells are empty."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.compare import DEFINITIONS, OURS, YARDSTICK, Measurement


@dataclasses.dataclass(frozen=True)
class Results:
    """All measurements, and what a reader needs to judge them."""

    machine: dict[str, Any]
    versions: dict[str, dict[str, str]]
    workloads: dict[str, str]
    measurements: tuple[Measurement, ...]

    def find(self, workload: str, job: str) -> dict[str, Measurement]:
        """Return what each library made of a job."""
        found = (m for m in self.measurements if (m.workload, m.job) == (workload, job))
        return {m.library: m for m in found}

    def jobs(self, workload: str) -> list[str]:
        """Return the names of a workload's jobs, in order."""
        return list(dict.fromkeys(m.job for m in self.measurements if m.workload == workload))

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Results":
        return cls.of(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Results":
        """Return what a file of results says."""
        rows = content.pop("measurements")
        measured = (Measurement(**row | {"seconds": tuple(row["seconds"])}) for row in rows)
        return cls(**content, measurements=tuple(measured))


def peers(found: Mapping[str, Measurement]) -> list[Measurement]:
    """Return other libraries' measurements of a job, where their values are right."""
    ours = (OURS.name, DEFINITIONS.name)
    return [m for name, m in found.items() if name not in ours and m.is_right]


def speedup(found: Mapping[str, Measurement]) -> float | None:
    """Return how many times faster than the fastest other library that is right we are."""
    ours = found.get(OURS.name)
    others = [m.median for m in peers(found)]
    return min(others) / ours.median if others and ours and ours.is_right else None


def gradients(results: Results, workload: str, job: str) -> float | None:
    """Return our time for each product of a job, in gradients of the same workload."""
    found, yardstick = (results.find(workload, name).get(OURS.name) for name in (job, YARDSTICK))
    if not (found and yardstick and found.is_right):
        return None
    return found.median / yardstick.median / (16 if job.startswith("16 ") else 1)


def growth(results: Results, of: Callable[[Measurement], float | None]) -> float | None:
    """Return by how much a GGN product of M grows from the fewest to the most examples."""
    ours = [results.find(name, "GGN product").get(OURS.name) for name in ("M", "M, 8,000")]
    few, many = (of(m) if m else None for m in ours)
    return many / few if few and many else None


class Target(NamedTuple):
    """A target and the value found, which is to be `at_least` or at most the limit."""

    name: str
    limit: float
    found: float | None
    at_least: bool = True

    @property
    def row(self) -> str:
        sign = "at least" if self.at_least else "at most"
        verdict = "not measured"
        if self.found is not None:
            met = self.found >= self.limit if self.at_least else self.found <= self.limit
            verdict = f"{self.found:.3g} | {'met' if met else '**missed**'}"
        else:
            verdict = "- | not measured"
        return f"| {self.name} | {sign} {self.limit:g} | {verdict} |"


def targets(results: Results) -> list[Target]:
    """Return every target of the suite with what was found."""
    faster = [
        *(("S", job, 5) for job in ("fit full", "fit diagonal", "fit kron")),
        *(("M", job, 100) for job in ("predict kron", "predict diagonal")),
        ("S", "tune full", 20),
    ]
    found = [
        Target(f"{workload}: {job}, times faster than the fastest peer", limit, ratio)
        for workload, job, limit in faster
        if workload in results.workloads
        for ratio in [speedup(results.find(workload, job))]
    ]
    products = {"GGN product": 1.5, "16 GGN products": 1.5, "Hessian product": 2.0}
    found += [
        Target(f"{workload}: {job}, gradients for each", limit, ratio, at_least=False)
        for workload in results.workloads
        for job, limit in products.items()
        for ratio in [gradients(results, workload, job)]
        if ratio is not None
    ]
    grown = {"seconds": (4.4, lambda m: m.median), "memory held": (1.1, lambda m: m.held)}
    return found + [
        Target(f"M: GGN product, {what} with four times the examples", limit, ratio, at_least=False)
        for what, (limit, of) in grown.items()
        for ratio in [growth(results, of)]
        if ratio is not None
    ]


def slower(results: Results) -> str:
    """Name the jobs on which another library is faster."""
    ratios = {
        f"{workload}: {job} ({ratio:.2f})": ratio
        for workload in results.workloads
        for job in results.jobs(workload)
        if job != YARDSTICK
        for ratio in [speedup(results.find(workload, job))]
        if ratio is not None
    }
    late = [name for name, ratio in ratios.items() if ratio < 1]
    verdict = f"**missed** by {', '.join(late)}" if late else "met"
    return f"Never slower than the fastest peer, on {len(ratios)} jobs: {verdict}."


def page(results: Results) -> Iterator[str]:
    """Yield the parts of the generated text."""
    yield ", ".join(f"{name} {value}" for name, value in results.machine.items()) + "."
    lines = (
        f"- {name}: {', '.join(f'{package} {version}' for package, version in versions.items())}"
        for name, versions in results.versions.items()
    )
    yield "\n".join(lines)
    yield "### Targets"
    lines = ["| what | to reach | found | |", "| --- | --- | ---: | --- |"]
    yield "\n".join(lines + [target.row for target in targets(results)])
    yield slower(results)
    for workload, description in results.workloads.items():
        yield f"### {workload}"
        yield f"{description[0].upper()}{description[1:]}."
        yield times(results, workload)
        yield details(results, workload)
        if notes := reasons(results, workload):
            yield notes


def times(results: Results, workload: str) -> str:
    """Return a table of the libraries' medians, and our ratio to the fastest of the others."""
    others = [name for name in results.versions if name not in (OURS.name, DEFINITIONS.name)]
    rows = {job: results.find(workload, job) for job in results.jobs(workload)}
    shown = [
        name
        for name in (OURS.name, *others)
        if any(name in row and row[name].first is not None for row in rows.values())
    ]
    lines = [
        f"| milliseconds | {' | '.join(shown)} | times faster |",
        f"| --- |{' ---: |' * (len(shown) + 1)}",
    ]
    for job, row in rows.items():
        ratio = speedup(row)
        cells = [_cell(row.get(name)) for name in shown]
        lines.append(f"| {job} | {' | '.join(cells)} | {'-' if ratio is None else short(ratio)} |")
    return "\n".join(lines)


def _cell(found: Measurement | None) -> str:
    if found is None or found.first is None:
        return "failed" if found is not None and found.note.startswith(_FAILURES) else "-"
    if not found.is_right:
        return f"wrong by {found.distance:.2g}"
    return short(1e3 * found.median)


def short(number: float) -> str:
    """Return a number with three significant digits, without trailing zeros."""
    digits = max(0, 2 - math.floor(math.log10(abs(number)))) if number else 0
    return f"{number:,.{digits}f}"


def details(results: Results, workload: str) -> str:
    """Return a table of our times and memory, and of the least memory that others take."""
    lines = [
        "| laplace_kit | first call, s | median, ms (quartiles) | gradients | peak, MB "
        "| least of the others, MB | values differ by |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    yardstick = results.find(workload, YARDSTICK)[OURS.name].median
    for job in results.jobs(workload):
        found = results.find(workload, job)
        ours = found.get(OURS.name)
        if ours is None or ours.first is None:
            continue
        others = peers(found)
        low, high = (1e3 * np.quantile(ours.seconds or (ours.first,), q) for q in (0.25, 0.75))
        memory = f"{min(m.peak for m in others):.0f}" if others else "-"
        distances = [m.distance for m in found.values() if m.is_right and m.distance is not None]
        lines.append(
            f"| {job} | {ours.first:.2f} | {short(1e3 * ours.median)} ({short(low)} to "
            f"{short(high)}) | {short(ours.median / yardstick)} | {ours.peak:.0f} | {memory} "
            f"| {f'{max(distances):.0e}' if distances else '-'} |"
        )
    return "\n".join(lines)


_FAILURES = ("longer than", "the process ended")


def reasons(results: Results, workload: str) -> str:
    """Return why cells are empty: one line for each reason of each library."""
    found: dict[tuple[str, str], list[str]] = {}
    for m in results.measurements:
        if m.workload == workload and m.note:
            found.setdefault((m.library, m.note), []).append(m.job)
    return "\n".join(
        f"- {library}, {', '.join(jobs)}: {note}." for (library, note), jobs in found.items()
    )


def failures(results: Results, peak_limit: float) -> Sequence[str]:
    """Return what is wrong with our own values or memory."""
    ours = [m for m in results.measurements if m.library == OURS.name]
    found = [f"{m.workload}: {m.job}: {m.note}" for m in ours if m.first is None]
    found += [
        f"{m.workload}: {m.job}: {m.peak:.0f} MB, at most {peak_limit:g} expected"
        for m in ours
        if m.peak is not None and m.peak > peak_limit
    ]
    others = [m for m in results.measurements if m.library == DEFINITIONS.name]
    return found + [
        f"{m.workload}: {m.job}: differs from its definition by {m.distance:.2g}"
        for m in others
        if m.distance is not None and not m.is_right
    ]
