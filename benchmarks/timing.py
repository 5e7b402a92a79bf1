"""Jobs timed in turns, so that what slows the machine down for a while slows all of them down."""

import dataclasses
import datetime
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Job:
    """A function of arrays to be timed; `target` is the ratio to the first job not to exceed."""

    name: str
    run: Callable
    args: tuple
    target: float | None = None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of the first call, which compiles, and of every call in the steady state."""

    job: Job
    first: float
    steady: np.ndarray


def measure(jobs: Sequence[Job], repetitions: int) -> list[Timing]:
    """Run every job once, then all of them in turns, in another order each time."""
    first = [_seconds(job) for job in jobs]
    steady = np.empty((repetitions, len(jobs)))
    rng = np.random.default_rng(0)
    for row in steady:
        for i in rng.permutation(len(jobs)):
            row[i] = _seconds(jobs[i])
    return [Timing(*timing) for timing in zip(jobs, first, steady.T, strict=True)]


def _seconds(job: Job) -> float:
    start = time.perf_counter()
    jax.block_until_ready(job.run(*job.args))
    return time.perf_counter() - start


def table(timings: Sequence[Timing]) -> str:
    """Return a Markdown table of all jobs, relative to the first, turn by turn."""
    lines = [
        "| job | first call, s | median, ms | ratio (quartiles) | target |",
        "|---|---:|---:|---:|---|",
    ]
    for timing in timings:
        low, ratio, high = np.quantile(timing.steady / timings[0].steady, [0.25, 0.5, 0.75])
        target = timing.job.target
        verdict = (
            "" if target is None else f"{target:.1f}: {'met' if ratio <= target else 'missed'}"
        )
        lines.append(
            f"| {timing.job.name} | {timing.first:.2f} | {1e3 * np.median(timing.steady):.2f} "
            f"| {ratio:.2f} ({low:.2f} to {high:.2f}) | {verdict} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge the numbers."""
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "Python": platform.python_version(),
        "JAX": jax.__version__,
        "device": f"{device.device_kind} x {jax.device_count()}",
        "processors": os.cpu_count(),
    }
