"""Results of a run on a GPU: their file, and the tables made from it."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.card import DEFAULT
from benchmarks.gpu.twins import Outcome
from benchmarks.peers import tables
from benchmarks.peers.compare import OURS, YARDSTICK, Measurement
from benchmarks.peers.protocol import Workload
from benchmarks.quality.tables import described

LARGE = "GPT"


@dataclasses.dataclass(frozen=True)
class Findings:
    """The card, the tests there, and what was measured; each is there once it is known."""

    card: dict[str, Any]
    tests: Outcome | None
    results: tables.Results

    def write(self, path: Path) -> None:
        """Replace the file in one step, so that it is whole whenever this process is ended."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")
        beside.replace(path)

    def adding(
        self,
        workload: Workload,
        measured: Sequence[Measurement],
        versions: Mapping[str, dict[str, str]],
    ) -> "Findings":
        """Return these findings and what was measured on one more workload."""
        before = self.results
        more = dataclasses.replace(
            before,
            versions={**before.versions, **versions},
            workloads={**before.workloads, workload.name: workload.describe()},
            measurements=(*before.measurements, *measured),
        )
        return dataclasses.replace(self, results=more)

    @classmethod
    def read(cls, path: Path) -> "Findings":
        content = json.loads(path.read_text(encoding="utf-8"))
        tests = content["tests"]
        if tests is not None:
            tests = Outcome(**tests | {"failed": tuple(tests["failed"])})
        return cls(content["card"], tests, tables.Results.of(content["results"]))


def page(findings: Findings) -> Iterator[str]:
    """Yield the parts of the generated text."""
    card, results = findings.card, findings.results
    yield f"{described(card['machine'])}."
    peaks = ", ".join(f"{1e-12 * peak:.3g} in {name}" for name, peak in card["peaks"].items())
    size = f"{card['size']} x {card['size']}"
    yield f"Peak, measured with a product of {size} matrices, TFLOP/s: {peaks}."
    if findings.tests is not None:
        yield tested(findings.tests)
    if results.versions:
        lines = (f"- {name}: {described(versions)}" for name, versions in results.versions.items())
        yield "\n".join(lines)
    measured = [name for name in results.workloads if _is_measured(results, name)]
    if not measured:
        return
    rows = [target.row for target in targets(findings)]
    yield "\n".join(["| what | to reach | found | |", "| --- | --- | ---: | --- |", *rows])
    yield tables.slower(results)
    for workload in measured:
        description = results.workloads[workload]
        yield f"### {workload}, on the GPU"
        yield f"{description[0].upper()}{description[1:]}."
        yield tables.times(results, workload)
        yield shares(findings, workload)
        if notes := tables.reasons(results, workload):
            yield notes


def tested(tests: Outcome) -> str:
    """Return the outcome of the tests in a sentence or two."""
    begun = "" if tests.is_complete else "The time was not enough for all tests marked for it: "
    failed = "none failed" if not tests.failed else f"**failed: {', '.join(tests.failed)}**"
    return (
        f"{begun}{tests.passed} tests against dense definitions passed there, in float32 and in "
        f"float64, and {failed}; {tests.seconds:.0f} s."
    )


def targets(findings: Findings) -> list[tables.Target]:
    """Return the targets: gradients for a product, and the memory of the large model's fits."""
    results = findings.results
    found = [
        target for target in tables.targets(results) if target.name.endswith("gradients for each")
    ]
    on_device = [
        m.on_device for m in results.measurements if m.workload == LARGE and m.on_device is not None
    ]
    if on_device and findings.card["memory"]:
        share = max(on_device) / findings.card["memory"]
        name = f"{LARGE}: peak of all its jobs, of the card's memory"
        found.append(tables.Target(name, 1.0, share, at_least=False))
    return found


def shares(findings: Findings, workload: str) -> str:
    """Return a table of our first calls, gradients, rates of products and memory on the card."""
    results = findings.results
    yardstick = results.find(workload, YARDSTICK)[OURS.name].median
    lines = [
        "| laplace_kit | first call, s | median, ms | gradients "
        "| TFLOP/s | of the peak | memory, GB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for job in results.jobs(workload):
        ours = results.find(workload, job).get(OURS.name)
        if ours is None or ours.first is None:
            continue
        rate, share = rates(ours, findings.card["peaks"][DEFAULT])
        memory = "-" if ours.on_device is None else f"{1e-3 * ours.on_device:.1f}"
        lines.append(
            f"| {job} | {ours.first:.2f} | {tables.short(1e3 * ours.median)} "
            f"| {tables.short(ours.median / yardstick)} | {rate} | {share} | {memory} |"
        )
    return "\n".join(lines)


def rates(measured: Measurement, peak: float) -> tuple[str, str]:
    """Return TFLOP/s and their share of a peak, where the operations are counted."""
    if measured.flops is None:
        return "-", "-"
    rate = measured.flops / measured.median
    return f"{1e-12 * rate:.3g}", f"{rate / peak:.0%}"


def _is_measured(results: tables.Results, workload: str) -> bool:
    ours = results.find(workload, YARDSTICK).get(OURS.name)
    return ours is not None and ours.is_right
