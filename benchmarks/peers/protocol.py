"""How a library is asked to do jobs, in a process of its own: one line asks, one line answers.

All that the two sides share. It needs NumPy alone, so that it runs in every library's environment.
"""

import contextlib
import ctypes
import dataclasses
import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NUM_INPUTS = 250  # of predictions
NUM_STEPS = 50  # of Lanczos
NUM_TUNED = 10  # Ritz values that have converged after as many steps


@dataclasses.dataclass(frozen=True)
class Workload:
    """A classifier at its parameters, its data, and vectors to multiply with; all are NumPy's.

    `params` is a list of arrays, kernels with inputs before outputs; a flat vector holds them in
    that order. `v` `(P,)` and `vs` `(K, P)` are flat. `kind` says which network they are of.
    """

    name: str
    kind: str
    params: list[np.ndarray]
    x: np.ndarray
    y: np.ndarray
    v: np.ndarray
    vs: np.ndarray

    def describe(self) -> str:
        networks = {
            "mlp": "tanh network",
            "lenet": "LeNet-5",
            "transformer": "transformer",
            "resnet": "residual network",
            "gpt": "causal transformer",
        }
        widths = [self.params[0].shape[0], *(p.size for p in self.params[1::2])]
        shape = f" {'-'.join(map(str, widths))}" if self.kind == "mlp" else ""
        sizes = f"{self.v.size:,} parameters, {len(self.x):,} examples"
        return f"{networks[self.kind]}{shape}, {sizes}"

    @property
    def kernels(self) -> np.ndarray:
        """Which entries of a flat vector are a kernel's, as numbers 0 and 1."""
        return np.concatenate([np.full(p.size, p.ndim > 1, np.float32) for p in self.params])

    def unravel(self, flat: np.ndarray) -> list[np.ndarray]:
        """Return a flat vector as arrays like the parameters."""
        parts = np.split(flat, np.cumsum([p.size for p in self.params])[:-1])
        return [part.reshape(p.shape) for part, p in zip(parts, self.params, strict=True)]

    def save(self, path: Path) -> None:
        named = {f"param_{i:04}": p for i, p in enumerate(self.params)}
        names = np.array([self.name, self.kind])
        np.savez(path, names=names, x=self.x, y=self.y, v=self.v, vs=self.vs, **named)

    @classmethod
    def load(cls, path: Path) -> "Workload":
        with np.load(path) as arrays:
            params = [arrays[name] for name in sorted(arrays) if name.startswith("param_")]
            name, kind = map(str, arrays["names"])
            rest = {key: arrays[key] for key in ("x", "y", "v", "vs")}
        return cls(name, kind, params, **rest)


class Device(NamedTuple):
    """Where a library computes: what returns when it is done, and the MB at its peak so far."""

    wait: Callable[[], Any] = lambda: None
    peak: Callable[[], float | None] = lambda: None


ON_CPU = Device()


class Job(NamedTuple):
    """What is timed, and what its result says in the terms of all libraries.

    `run` returns when the result is there; `setup` is called once before, and is not timed. What
    `values` returns has names, so that a library gives those of its own flavour only. `held`, where
    it can be told, is the MB of a compiled program besides its arguments and its result; `flops`,
    likewise, the floating-point operations of its matrix products and convolutions.
    """

    run: Callable[[], Any]
    values: Callable[[Any], Mapping[str, np.ndarray]]
    setup: Callable[[], Any] = lambda: None
    held: Callable[[], float] | None = None
    flops: Callable[[], float] | None = None


# Instead of a job, the reason in words if the library cannot do it.
Jobs = Mapping[str, Job | str]


def serve(jobs: Callable[[Workload, str], Jobs], *packages: str, device: Device = ON_CPU) -> None:
    """Answer requests until there are none; the arguments are a workload and a variant.

    The request `{}` asks what there is. Others name a job; those for first calls also say where to
    write its values, or `None` for nowhere.
    """
    path, variant = sys.argv[1:]
    # Answers have a channel of their own, as libraries may print.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    found = jobs(Workload.load(Path(path)), variant)
    for line in sys.stdin:
        request = json.loads(line)
        if not request:
            answer = {
                "versions": {name: _version(name) for name in (*packages, "numpy")},
                "missing": {name: job for name, job in found.items() if isinstance(job, str)},
                "jobs": [name for name, job in found.items() if not isinstance(job, str)],
            }
        else:
            answer = _answer(found[request["job"]], request, device)
        print(json.dumps(answer), file=answers, flush=True)


def _version(package: str) -> str:
    """Return the version of an installed package, or of an imported checkout."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return sys.modules[package.replace("-", "_")].__version__


def _answer(job: Job, request: Mapping[str, Any], device: Device) -> dict[str, Any]:
    def timed():
        start = time.perf_counter()
        result = job.run()
        device.wait()
        return result, time.perf_counter() - start

    try:
        if "values" not in request:
            return {"seconds": timed()[1]}
        job.setup()
        device.wait()
        idle = _idle_memory()
        result, seconds = timed()
        peak = resident_memory("VmHWM") - idle
        on_device = device.peak()
        if request["values"] is not None:
            np.savez(request["values"], **job.values(result))
        held, flops = (count() if count else None for count in (job.held, job.flops))
    # Whatever another library raises is its answer, which a table shows.
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).strip() or 'no message'}"}
    return {
        "seconds": seconds,
        "peak": peak,
        "held": held,
        "flops": flops,
        "on_device": on_device,
    }


def _idle_memory() -> float:
    """Return the MB resident after freed memory went back to the system, and reset the peak."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # the C library is another
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident_memory("VmRSS")


def resident_memory(field: str) -> float:
    """Return the MB of this process, now (`"VmRSS"`) or at its peak (`"VmHWM"`), on Linux."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{field}:")[1].split()[0]) * 1024 / 1e6
