"""Jobs timed in turns, so that what slows the machine down for a while slows all of them down."""

import dataclasses
import datetime
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import laplace_kit

# The least number of turns of a job, however long it takes.
FEWEST_TURNS = 3


@dataclasses.dataclass(frozen=True)
class Job:
    """A function of arrays to be timed, and its limits.

    `target` is in gradients, the ratio to the first job of the list; `seconds` is for the median.
    """

    name: str
    run: Callable
    args: tuple
    target: float | None = None
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of the first call, which compiles, and of calls in the steady state.

    `ratios` compares those with the first job's of the same turns.
    """

    job: Job
    first: float
    steady: np.ndarray
    ratios: np.ndarray

    @property
    def compilation(self) -> float:
        """Seconds by which the first call exceeds the others."""
        return self.first - float(np.median(self.steady))

    def verdict(self) -> str:
        """Return the job's target and whether it is met; empty without one."""
        limits = [
            (self.job.target, "gradients", np.median(self.ratios)),
            (self.job.seconds, "s", np.median(self.steady)),
        ]
        return ", ".join(
            f"{limit:g} {unit}: {'met' if found <= limit else 'missed'}"
            for limit, unit, found in limits
            if limit is not None
        )


def measure(
    jobs: Sequence[Job], repetitions: int, *, budget: float = math.inf, cold: bool = False
) -> list[Timing]:
    """Run every job once, then all of them in turns, in another order each time.

    A job that would take longer than `budget` seconds in all its turns skips some of them,
    evenly spread; the first job, the reference, skips none. With `cold`, each first call compiles
    all that the job needs, as in a new process; otherwise what no job before it has compiled.
    """
    first = []
    for job in jobs:
        if cold:
            jax.clear_caches()
        first.append(_seconds(job))
    for job in jobs if cold else ():  # compiled once more, as the next job's start forgot it
        _seconds(job)
    steady = np.full((repetitions, len(jobs)), np.nan)
    period = np.ones(len(jobs), int)
    rng = np.random.default_rng(0)
    for turn, row in enumerate(steady):
        for i in rng.permutation(len(jobs)):
            if turn % period[i] == 0:
                row[i] = _seconds(jobs[i])
        if turn == 0:
            wanted = np.ceil(repetitions * row / budget).astype(int)
            period = np.clip(wanted, 1, max(repetitions // FEWEST_TURNS, 1))
            period[0] = 1
    taken = ~np.isnan(steady)
    return [
        Timing(job, first[i], steady[taken[:, i], i], (steady[:, i] / steady[:, 0])[taken[:, i]])
        for i, job in enumerate(jobs)
    ]


def _seconds(job: Job) -> float:
    start = time.perf_counter()
    jax.block_until_ready(job.run(*job.args))
    return time.perf_counter() - start


def table(timings: Sequence[Timing]) -> str:
    """Return a Markdown table of jobs, each relative to the first that it was measured with."""
    lines = [
        "| job | first call, s | median, ms | gradients (quartiles) | target |",
        "|---|---:|---:|---:|---|",
    ]
    for timing in timings:
        low, ratio, high = np.quantile(timing.ratios, [0.25, 0.5, 0.75])
        lines.append(
            f"| {timing.job.name} | {timing.first:.2f} | {1e3 * np.median(timing.steady):.2f} "
            f"| {ratio:.2f} ({low:.2f} to {high:.2f}) | {timing.verdict()} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge the numbers."""
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "Python": platform.python_version(),
        "laplace_kit": laplace_kit.__version__,
        "JAX": jax.__version__,
        "NumPy": np.__version__,
        "device": f"{device.device_kind} x {jax.device_count()}",
        "processors": os.cpu_count(),
    }
