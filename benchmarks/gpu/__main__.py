"""Measure on a GPU: `python -m benchmarks.gpu`, in eight minutes with all programs cold.

Tests against dense definitions come first, then the times of products, fits, tuning and
predictions, next to other libraries where they are installed. Each result is written as soon as it
is there, so that a run that is ended early keeps what it has. Without a GPU, small networks on the
CPU show that it runs.
"""

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks.gpu import tables, twins
from benchmarks.peers import page, workloads
from benchmarks.peers.compare import (
    DEFINITIONS,
    OURS,
    PEERS,
    YARDSTICK,
    Library,
    Setting,
    compare,
    environment,
)
from benchmarks.peers.protocol import Workload
from benchmarks.peers.tables import Results, failures
from benchmarks.quality.tables import RESULTS

PRODUCTS = (YARDSTICK, "GGN product", "Hessian product")
TOGETHER = "16 GGN products"
CURVATURE = ("diagonal", "K-FAC")
BY_STRUCTURE = tuple(
    f"{verb} {structure}"
    for structure in ("diagonal", "kron")
    for verb in ("fit", "tune", "predict")
)
FULL_POSTERIOR = tuple(f"{verb} full" for verb in ("fit", "tune", "predict"))
JOBS = (*PRODUCTS, *CURVATURE, *BY_STRUCTURE)
# The packages that an adapter needs.
NEEDS = {
    "laplace_torch": ("torch", "laplace", "curvlinops", "backpack", "asdl"),
    "curvlinops": ("torch", "curvlinops"),
}


class Step(NamedTuple):
    """A workload, its jobs, the seconds it may take at most, and which other libraries do them."""

    make: Callable[[], Workload]
    jobs: tuple[str, ...]
    seconds: float
    peers: tuple[Library, ...]


_TORCH = tuple(library for library in PEERS if library.adapter in NEEDS)
_PRODUCTS_ALONE = tuple(library for library in _TORCH if library.adapter == "curvlinops")
# The most important workloads come first, as a run may be cut off.
FULL = (
    Step(workloads.gpt, JOBS, 100, _PRODUCTS_ALONE),
    Step(workloads.resnet, (*PRODUCTS, TOGETHER, *CURVATURE, *BY_STRUCTURE), 90, _TORCH),
    Step(workloads.medium, (*PRODUCTS, TOGETHER, *CURVATURE, *BY_STRUCTURE), 50, _TORCH),
    Step(workloads.transformer, (*PRODUCTS, TOGETHER, *CURVATURE, *BY_STRUCTURE), 45, _TORCH),
    Step(workloads.lenet, (*PRODUCTS, TOGETHER, *CURVATURE, *BY_STRUCTURE), 45, _TORCH),
    Step(workloads.small, (*JOBS, *FULL_POSTERIOR), 45, _TORCH),
    Step(workloads.large, PRODUCTS, 30, _PRODUCTS_ALONE),
)
_small_gpt = partial(workloads.gpt, width=16, num_blocks=1, vocabulary=20, length=6, num_examples=5)
_small_resnet = partial(workloads.resnet, channels=(2, 3), pixels=4, num_examples=5)
QUICK = (
    Step(_small_gpt, (YARDSTICK, "GGN product", "fit kron"), 300, ()),
    Step(_small_resnet, (YARDSTICK, "GGN product", "diagonal"), 300, (DEFINITIONS,)),
)
FEW_TESTS = ("-p", "no:xdist", "tests/curv/test_ggn.py", "-k", "dense and mlp")
FOR_TESTS, FOR_CARD = 75.0, 60.0  # seconds
PEAK_LIMIT = math.inf  # of the host's memory, which is not what is measured here
SETTING = Setting(repetitions=20, budget=1.0, once=10.0, limit=60.0)
QUICK_SETTING = Setting(repetitions=3, budget=0.3, once=60.0, limit=120.0)


def read_card() -> dict:
    """Describe the card in a separate process: this one would hold most of its memory."""
    command = [sys.executable, "-m", "benchmarks.gpu.card"]
    variables = environment(on_gpu=True)
    done = subprocess.run(
        command, env=variables, stdout=subprocess.PIPE, timeout=FOR_CARD, check=True
    )
    return json.loads(done.stdout)


def installed(peers: Sequence[Library], python: str) -> list[Library]:
    """Return the libraries whose packages an interpreter has."""
    names = sorted({name for peer in peers for name in NEEDS.get(peer.adapter, ())})
    code = "import importlib.util as u, sys; print(*filter(u.find_spec, sys.argv[1:]))"
    found = subprocess.run([python, "-c", code, *names], stdout=subprocess.PIPE, check=True)
    there = found.stdout.decode().split()
    return [peer for peer in peers if set(NEEDS.get(peer.adapter, ())) <= set(there)]


def measure(
    findings: tables.Findings,
    step: Step,
    python: str,
    setting: Setting,
    keep: Callable[[tables.Findings], None],
) -> tables.Findings:
    """Measure one workload, and write the results after each job."""
    workload = step.make()
    peers = installed(step.peers, python)
    found = compare(
        workload,
        step.jobs,
        {OURS: sys.executable} | dict.fromkeys(peers, python),
        setting,
        lambda *found: keep(findings.adding(workload, *found)),
    )
    return findings.adding(workload, *found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small networks, to see that it runs")
    parser.add_argument("--minutes", type=float, default=8.0, help="to take at most")
    parser.add_argument("--out", type=Path, help="the file of results")
    parser.add_argument("--python", default=sys.executable, help="the other libraries' interpreter")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    jax.config.update("jax_platforms", "cpu")  # here, data are made and nothing is measured
    card = read_card()
    is_quick, path = options.quick, options.out
    if not card["is_gpu"]:
        print("JAX sees no GPU: small networks on the CPU, to see that it runs.\n")
        is_quick = True
    elif not is_quick:
        path = path or RESULTS / "gpu.json"

    def keep(findings):
        if path is not None:
            findings.write(path)

    findings = tables.Findings(card, None, Results(card["machine"], {}, {}, ()))
    keep(findings)
    steps, setting, arguments = (
        (QUICK, QUICK_SETTING, FEW_TESTS) if is_quick else (FULL, SETTING, ())
    )
    setting = dataclasses.replace(setting, on_gpu=card["is_gpu"])
    tests = twins.run(FOR_TESTS, on_gpu=card["is_gpu"], arguments=arguments)
    findings = dataclasses.replace(findings, tests=tests)
    keep(findings)
    for step in steps:
        left = end - time.monotonic()
        if left > 0:
            own = dataclasses.replace(setting, total=min(step.seconds, left))
            findings = measure(findings, step, options.python, own, keep)
    print("\n\n".join(tables.page(findings)))
    if path == RESULTS / "gpu.json":
        page.main()
    # A full run says on its page what it had no time for.
    wrong = [*tests.failed, *(failures(findings.results, PEAK_LIMIT) if is_quick else ())]
    if wrong:
        raise SystemExit("\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
