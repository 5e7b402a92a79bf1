"""The tests marked for accelerators, run where JAX sees one: what passed, what failed, and when."""

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.peers.compare import environment

ROOT = Path(__file__).parents[2]
_RESULT, _NAME = re.compile(r"\b(PASSED|FAILED|ERROR)\b"), re.compile(r"\btests/\S+::\S+")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How many tests passed, the names of those that failed, seconds, and whether all were done."""

    passed: int
    failed: tuple[str, ...]
    seconds: float
    is_complete: bool


def run(limit: float, *, on_gpu: bool, arguments: tuple[str, ...] = ()) -> Outcome:
    """Run the tests with a time limit; matrix products of float32 are in float32 too."""
    command = [sys.executable, "-m", "pytest", "-m", "accelerator", "-v", "--tb=line", "--color=no"]
    if not arguments:
        arguments = ("-n", str(min(os.cpu_count() or 1, 8)), "--dist", "worksteal")
    variables = environment(on_gpu=on_gpu) | {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    start = time.monotonic()
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # with its workers
        output = process.communicate()[0]
    return outcome(output.decode(), time.monotonic() - start, process.returncode in (0, 1))


def outcome(output: str, seconds: float, is_complete: bool) -> Outcome:
    """Read what pytest prints of each test."""
    results: dict[str, set[str]] = {"PASSED": set(), "FAILED": set(), "ERROR": set()}
    for line in output.splitlines():
        result, name = _RESULT.search(line), _NAME.search(line)
        if result and name:
            results[result[0]].add(name[0])
    failed = sorted(results["FAILED"] | results["ERROR"])
    return Outcome(len(results["PASSED"]), tuple(failed), seconds, is_complete)
