"""What a first answer takes, from the interpreter's start to predictions of 250 inputs.

`python -m benchmarks.first_answer --python <interpreter of the peers' environment>`: whole
processes, ours and laplace-torch's in turns, and ours again with JAX's persistent cache.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.peers import workloads
from benchmarks.peers.compare import NUM_THREADS, environment, pin
from benchmarks.peers.protocol import Workload
from benchmarks.peers.tables import Target
from benchmarks.quality.tables import RESULTS, described
from benchmarks.timing import machine

OURS, THEIRS = "laplace_kit", "laplace_torch"
STAGES = ("fit", "tune", "predict")
MOST_PROGRAMS = 25  # of a Kronecker posterior of the small network
CACHED_SHARE = 0.5  # of a process without a cache, that of one that finds all programs in it


class Job(NamedTuple):
    """A network, its posterior, and the most of laplace-torch's time that it is to take."""

    title: str
    make: Callable[[], Workload]
    structure: str
    share: float = 1.0


JOBS = (
    Job("64-32-10, kron", workloads.small, "kron"),
    Job("64-32-10, diagonal", workloads.small, "diagonal"),
    Job("64-32-10, auto (theirs: last layer, kron)", workloads.small, "auto"),
    Job("64-32-10, last layer, kron", workloads.small, "last_layer"),
    Job("784-200-200-10, kron", workloads.medium, "kron", share=1 / 3),
)
QUICK_JOBS = (Job("8-6-3, kron", workloads.tiny, "kron"),)


@dataclasses.dataclass(frozen=True)
class Process:
    """One process: its seconds, those of its processors, and what it says of its stages.

    Of each stage the seconds, and for ours the programs compiled and the seconds that it took;
    `missed` counts programs that the persistent cache did not have.
    """

    seconds: float
    processor: float
    stages: dict[str, dict[str, float]]
    missed: int = 0

    def total(self, what: str) -> float:
        """Return a sum over the stages."""
        return sum(stage[what] for stage in self.stages.values())


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The processes of one job: ours, theirs, and ours that fill the cache and that read it."""

    job: str
    share: float
    ours: tuple[Process, ...]
    theirs: tuple[Process, ...]
    filling: tuple[Process, ...]
    cached: tuple[Process, ...]

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Measurement":
        """Return what `dataclasses.asdict` made a dictionary of."""
        kinds = {
            name: tuple(Process(**process) for process in content[name])
            for name in ("ours", "theirs", "filling", "cached")
        }
        return cls(content["job"], content["share"], **kinds)


def median(processes: Sequence[Process], of: Callable[[Process], float]) -> float | None:
    """Return the median over processes; `None` where there are none."""
    return float(np.median([of(process) for process in processes])) if processes else None


def measure(job: Job, python: Path | None, rounds: int, folder: Path) -> Measurement:
    """Run the processes of a job in turns."""
    path = folder / "workload.npz"
    job.make().save(path)
    found: dict[str, list[Process]] = {"ours": [], "theirs": [], "filling": [], "cached": []}
    for turn in range(rounds):
        found["ours"].append(run(sys.executable, OURS, path, job.structure))
        if python is not None:
            found["theirs"].append(run(str(python), THEIRS, path, job.structure))
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / f"cache_{job.title}_{turn}"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for name in ("filling", "cached"):
            found[name].append(run(sys.executable, OURS, path, job.structure, cache))
    return Measurement(job.title, job.share, *map(tuple, found.values()))


def run(
    python: str,
    library: str,
    workload: Path,
    structure: str,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Process:
    """Run one process to its end; a `RuntimeError` with what it said where it fails."""
    module = f"benchmarks.peers.adapters.first_answer_{library}"
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder, "answer.json"), Path(folder, "log")
        command = [python, "-m", module, str(workload), structure, str(answer)]
        with log.open("w") as written:
            start = time.perf_counter()
            process = subprocess.Popen(
                command,
                stdout=written,
                stderr=subprocess.STDOUT,
                env=_environment(workload.parent) | dict(variables),
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise RuntimeError(f"{module} ended with {process.returncode}: {' '.join(last)}")
        said = json.loads(answer.read_text(encoding="utf-8"))
    if not np.allclose(np.sum(said["probs"], axis=-1), 1, atol=1e-3):
        raise RuntimeError(f"{module} predicted what are no probabilities.")
    return Process(seconds, usage.ru_utime + usage.ru_stime, said["stages"], said["missed"])


def _environment(folder: Path) -> dict[str, str]:
    """Return the variables of a process: threads, bytecode of its own, and no cache of programs."""
    dropped = ("PYTHONDONTWRITEBYTECODE", "JAX_COMPILATION_CACHE_DIR")
    kept = {name: value for name, value in environment().items() if name not in dropped}
    return kept | {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def measure_all(jobs: Sequence[Job], python: Path | None, rounds: int) -> list[Measurement]:
    """Measure all jobs, after a process of each library that compiles its bytecode."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workloads.tiny().save(folder / "workload.npz")
        run(sys.executable, OURS, folder / "workload.npz", "kron")
        if python is not None:
            run(str(python), THEIRS, folder / "workload.npz", "kron")
        return [
            measure(job, python, rounds, folder) for job in tqdm(jobs, desc="jobs", leave=False)
        ]


# --- as text --------------------------------------------------------------------------------------


def targets(found: Sequence[Measurement]) -> Iterator[Target]:
    """Yield what is to be reached, with what was."""
    for m in found:
        ours, theirs = (median(part, lambda p: p.seconds) for part in (m.ours, m.theirs))
        share = ours / theirs if theirs else None
        yield Target(f"{m.job}, share of laplace-torch's seconds", m.share, share, at_least=False)
    for m in found:
        yield Target(
            f"{m.job}, second process as a share of the first", CACHED_SHARE, cached(m), False
        )
    programs = median(found[0].ours, lambda p: p.total("programs"))
    yield Target(f"{found[0].job}, programs", MOST_PROGRAMS, programs, at_least=False)


def cached(found: Measurement) -> float:
    """Return the seconds of a process that finds all programs, as a share of the one before it."""
    second, first = (median(part, lambda p: p.seconds) for part in (found.cached, found.filling))
    return second / first


def page(content: dict[str, Any]) -> str:
    """Return the text of the results: what is to be reached, times, and programs."""
    found = [Measurement.of(row) for row in content["measurements"]]
    reached = ["| what | to reach | found | |", "| --- | --- | ---: | --- |"]
    times = [
        "| seconds (of processors) | laplace_kit | laplace-torch | its cache filled | read again |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    stages = [
        "| seconds, programs compiled, seconds that took | fit | tune | predict | programs |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for m in found:
        cells = [_seconds(part) for part in (m.ours, m.theirs, m.filling, m.cached)]
        times.append(f"| {m.job} | {' | '.join(cells)} |")
        cells = [_stage(m.ours, name) for name in STAGES]
        programs = median(m.ours, lambda p: p.total("programs"))
        stages.append(f"| {m.job} | {' | '.join(cells)} | {programs:.0f} |")
    tables = [reached + [target.row for target in targets(found)], times, stages]
    return "\n\n".join([f"{described(content['machine'])}.", *map("\n".join, tables)])


def _seconds(processes: Sequence[Process]) -> str:
    if not processes:
        return "-"
    wall, processor = (median(processes, of) for of in (lambda p: p.seconds, lambda p: p.processor))
    return f"{wall:.1f} ({processor:.1f})"


def _stage(processes: Sequence[Process], name: str) -> str:
    seconds, programs, compiling = (
        median(processes, lambda p, what=what: p.stages[name][what])
        for what in ("seconds", "programs", "compiling")
    )
    return f"{seconds:.2f}, {programs:.0f}, {compiling:.2f}"


def failures(found: Sequence[Measurement]) -> list[str]:
    """Return what is wrong whatever the machine: programs that a second process compiles anew."""
    return [
        f"{m.job}: a second process compiled {p.missed} programs that the first had kept"
        for m in found
        for p in m.cached
        if p.missed
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", type=Path, help="the interpreter of the peers' environment")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--quick", action="store_true", help="a tiny network of ours alone, once")
    options = parser.parse_args()
    pin()
    python = options.python
    if python is not None and not python.exists():
        print(f"Found no {python}: ours alone. `make bench-peers` makes it.\n")
        python = None
    if options.quick:
        found = measure_all(QUICK_JOBS, None, rounds=1)
    else:
        found = measure_all(JOBS, python, options.rounds)
    content = {
        "machine": machine() | {"threads": NUM_THREADS, "seed": workloads.SEED},
        "measurements": [dataclasses.asdict(m) for m in found],
    }
    print(page(content))
    if wrong := failures(found):
        raise SystemExit("\n" + "\n".join(wrong))
    if not options.quick and python is not None:
        from benchmarks.peers import page as document

        path = RESULTS / "first_answer.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        document.main()


if __name__ == "__main__":
    main()
