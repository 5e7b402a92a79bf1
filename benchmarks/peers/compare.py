"""Libraries side by side: each in a process of its own, asked in turns, values before times."""

import contextlib
import dataclasses
import json
import math
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.peers.protocol import Workload
from benchmarks.timing import FEWEST_TURNS

NUM_THREADS = 2
TOLERANCE = 1e-2  # of values in float32, relative to their norm
YARDSTICK = "gradient"
_START_LIMIT = 300.0  # seconds


class Library(NamedTuple):
    """An adapter, the variant it is asked for, and how tables call the two."""

    name: str
    adapter: str
    variant: str = ""
    is_timed: bool = True


OURS = Library("laplace_kit", "laplace_kit")
PEERS = (
    Library("laplace-torch, curvlinops", "laplace_torch", "curvlinops"),
    Library("laplace-torch, BackPACK", "laplace_torch", "BackPACK"),
    Library("laplace-torch, ASDL", "laplace_torch", "ASDL"),
    Library("curvlinops", "curvlinops"),
    Library("laplax", "laplax"),
    Library("torch-secorder", "torch_secorder"),
)
# They stand in for others' values where there is no other library.
DEFINITIONS = Library("definitions", "dense", is_timed=False)


@dataclasses.dataclass(frozen=True)
class Setting:
    """How often to measure, and for how long.

    A job takes part in `repetitions` turns, or in as many as `budget` seconds allow, but three; one
    whose first call takes longer than `once` seconds in none; one that takes `limit` is given up.
    After `total` seconds no further job is asked for. With `on_gpu` libraries use one if they can.
    """

    repetitions: int
    budget: float
    once: float
    limit: float
    total: float = math.inf
    on_gpu: bool = False


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The measurements of one job with one library.

    Seconds of the first call, which compiles, and of later calls; the MB at the peak of the first
    call over what was resident before, and those that its program holds, if known; the relative
    distance from our values, where they can be compared; or a note on why all of these are missing.
    `flops` are those of its matrix products and convolutions, `on_device` the MB at the peak so far
    on another device than the CPU, if known.
    """

    workload: str
    job: str
    library: str
    first: float | None = None
    seconds: tuple[float, ...] = ()
    peak: float | None = None
    held: float | None = None
    distance: float | None = None
    note: str = ""
    flops: float | None = None
    on_device: float | None = None

    @property
    def is_right(self) -> bool:
        """Whether there is an answer, and it is not known to be wrong."""
        return self.first is not None and (self.distance is None or self.distance <= TOLERANCE)

    @property
    def median(self) -> float:
        """Seconds in the steady state; of the first call where there was no other."""
        return float(np.median(self.seconds)) if self.seconds else self.first


def compare(
    workload: Workload,
    names: Sequence[str],
    interpreters: Mapping[Library, str],
    setting: Setting,
    keep: Callable[[list[Measurement], dict[str, dict[str, str]]], None] = lambda *found: None,
) -> tuple[list[Measurement], dict[str, dict[str, str]]]:
    """Return what each library makes of the jobs, and the versions of its packages.

    Each is asked for every job once, for values, memory and the time of a first call; then all for
    all jobs that gave the right values, in turns of random order. What there is so far is given to
    `keep` after each first call of ours.
    """
    end = time.monotonic() + setting.total
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "workload.npz"
        workload.save(path)
        processes = {
            library: stack.enter_context(Process(library, python, path, folder, setting.on_gpu))
            for library, python in interpreters.items()
        }
        offers = {library: process.offer() for library, process in processes.items()}
        versions = {library.name: offer["versions"] for library, offer in offers.items()}
        first = {}
        for name in tqdm(names, desc=workload.name, leave=False):
            ours = {}
            path = folder / "values.npz" if _are_compared(name, offers.values()) else None
            for library, process in processes.items():
                offer, left = offers[library], end - time.monotonic()
                found = Measurement(workload.name, name, library.name)
                if name in offer["jobs"] and left <= 0:
                    found = dataclasses.replace(found, note="no time was left")
                elif name in offer["jobs"]:
                    limit = min(setting.limit, left)
                    found, values = _first(found, process, path, ours, limit)
                    ours = values if library == OURS else ours
                elif name in offer["missing"]:
                    found = dataclasses.replace(found, note=offer["missing"][name])
                first[name, library] = found
            keep(list(first.values()), versions)
        seconds = _in_turns(first, processes, setting, end)
    measured = [
        dataclasses.replace(found, seconds=tuple(seconds.get(key, ())))
        for key, found in first.items()
    ]
    keep(measured, versions)
    return measured, versions


def _are_compared(name, offers):
    """Return whether several libraries do a job: the values of one alone are not asked for."""
    return sum(name in offer["jobs"] for offer in offers) > 1


def _first(found, process, path, ours, limit):
    """Return the measurement of a first call, and its values, which are written to a path."""
    request = {"job": found.job, "values": None if path is None else str(path)}
    answer = process.ask(request, limit)
    if "error" in answer:
        return dataclasses.replace(found, note=answer["error"]), {}
    values = {}
    if path is not None:
        with np.load(path) as arrays:
            values = dict(arrays)
    distance = distance_between(values, ours) if ours else None
    found = dataclasses.replace(
        found,
        first=answer["seconds"],
        peak=answer["peak"],
        held=answer["held"],
        distance=distance,
        flops=answer["flops"],
        on_device=answer["on_device"],
    )
    return found, values


def distance_between(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> float | None:
    """Return the largest relative distance of what both name; `None` where that is nothing."""
    distances = []
    for name in found.keys() & expected.keys():
        a, b = (np.asarray(arrays[name], np.float64) for arrays in (found, expected))
        if a.shape != b.shape:
            return float("inf")
        distances.append(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))
    return float(np.nan_to_num(max(distances), nan=np.inf)) if distances else None


def _in_turns(first, processes, setting, end=math.inf):
    """Return seconds of every job of every library, which take turns."""
    keys = [
        key
        for key, found in first.items()
        if key[1].is_timed and found.is_right and found.first <= setting.once
    ]
    seconds = {key: [] for key in keys}
    rng = np.random.default_rng(0)
    for turn in range(setting.repetitions):
        for i in rng.permutation(len(keys)):
            if time.monotonic() > end:
                return seconds
            (name, library), taken = keys[i], seconds[keys[i]]
            is_spent = turn >= FEWEST_TURNS and sum(taken) + taken[-1] > setting.budget
            if is_spent and name != YARDSTICK:
                continue
            answer = processes[library].ask({"job": name}, setting.limit)
            if "seconds" in answer:
                taken.append(answer["seconds"])
    return seconds


class Process:
    """A library that waits for requests; one that takes too long is ended and started again."""

    def __init__(
        self, library: Library, python: str, workload: Path, folder: Path, on_gpu: bool = False
    ):
        module = f"benchmarks.peers.adapters.{library.adapter}"
        self._command = [python, "-m", module, str(workload), library.variant]
        self._log = folder / f"{library.name}.log"
        self._process = None
        self._environment = environment(on_gpu=on_gpu)

    def __enter__(self) -> "Process":
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def offer(self) -> dict[str, Any]:
        """Return what the library does, what it does not, and its versions."""
        found = self.ask({}, _START_LIMIT)
        if "error" in found:
            raise RuntimeError(f"{self._command[2]} did not start: {found['error']}")
        return found

    def ask(self, request: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """Return the answer; an error where there is none within the limit."""
        if self._process is None:
            self._start()
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        line = self._read_line(time.monotonic() + limit)
        if line is None:
            self._end()
            return {"error": f"longer than {limit:g} s"}
        if not line:
            self._end()
            last = self._log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            return {"error": f"the process ended: {' '.join(last)}"}
        return json.loads(line)

    def _read_line(self, deadline: float) -> bytes | None:
        """Return a line, nothing where the process ended, `None` where time ran out."""
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                part = self._process.stdout.read(65536)
                if not part:
                    return b""
                line += part
        return line

    def _start(self) -> None:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env=self._environment,
            )

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def environment(*, on_gpu: bool = False) -> dict[str, str]:
    """Return the variables of a process whose libraries all use as many threads.

    They do not spin while they wait: where another process has the processor of one of them, the
    others' spinning makes PyTorch a hundred times slower. On a GPU they take memory as they need
    it, as several of them share the card.
    """
    if on_gpu:
        rest = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
        return rest | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    own = {"JAX_PLATFORMS": "cpu", "OMP_WAIT_POLICY": "passive"}
    return os.environ | dict.fromkeys(names, str(NUM_THREADS)) | own


def pin() -> None:
    """Let this process, and those that it starts, have that many processors: JAX asks no more."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_THREADS])
