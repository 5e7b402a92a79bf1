"""The memory of a curvature product, by the number of examples; each in its own process."""

import argparse
import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import laplace_kit as lk
from benchmarks.capture import resident_memory
from benchmarks.timing import machine
from benchmarks.workloads import NUM_CLASSES, mlp

GROWTH_TARGET = 1.1  # of the peak, from the fewest examples to the most


@dataclasses.dataclass(frozen=True)
class Setting:
    """A tanh network by its layers' widths, the numbers of examples, and how many are held."""

    widths: tuple[int, ...]
    num_examples: tuple[int, ...]
    batch_size: int


FULL = Setting(widths=(320, 3000, 3000, 10), num_examples=(1000, 10_000), batch_size=250)
QUICK = Setting(widths=(32, 300, 300, 10), num_examples=(60, 250), batch_size=25)


class Loader:
    """A re-iterable of batches that are made when they are asked for; the last one is ragged."""

    def __init__(self, num_examples: int, num_features: int, batch_size: int):
        self.num_examples, self.num_features = num_examples, num_features
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, self.num_examples, self.batch_size):
            size = min(self.batch_size, self.num_examples - start)
            rng = np.random.default_rng(start)
            x = rng.normal(size=(size, self.num_features)).astype(np.float32)
            yield x, rng.integers(0, NUM_CLASSES, size)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """MB of the data and at the peak over them, seconds, and how many programs were compiled.

    `compiled` is for the first product, `again` for the second; the seconds are the second's.
    """

    num_params: int
    data: float
    peak: float
    seconds: float
    compiled: int
    again: int


def measure_here(setting: Setting, num_examples: int, over_loader: bool) -> Measurement:
    """Multiply twice in this process: its memory is the first product's, compiling included."""
    rng = np.random.default_rng(0)
    params = [
        (jnp.asarray(rng.standard_normal((n, m), np.float32)) / np.sqrt(n), jnp.zeros(m))
        for n, m in itertools.pairwise(setting.widths)
    ]
    v = jax.tree.map(jnp.ones_like, params)
    loader = Loader(num_examples, setting.widths[0], setting.batch_size)
    empty = resident_memory("VmRSS")
    data = loader if over_loader else tuple(map(np.concatenate, zip(*loader, strict=True)))
    operator = lk.curv.GGNOperator(
        mlp, params, data, lk.Categorical(), batch_size=setting.batch_size
    )
    idle = resident_memory("VmRSS")
    with _compilations() as first:
        jax.block_until_ready(operator.mv(v))
    peak = resident_memory("VmHWM") - idle
    start = time.perf_counter()
    with _compilations() as second:
        jax.block_until_ready(operator.mv(v))
    return Measurement(
        num_params=operator.shape[0],
        data=idle - empty,
        peak=peak,
        seconds=time.perf_counter() - start,
        compiled=len(first),
        again=len(second),
    )


@contextlib.contextmanager
def _compilations() -> Iterator[list[str]]:
    """Collect the names of the programs that are compiled inside the context."""
    names = []

    def listen(event: str, duration: float, **metadata) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(metadata.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def measure(num_examples: int, over_loader: bool, *, quick: bool) -> Measurement:
    """Measure in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--examples", str(num_examples)]
    command += ["--loader"] * over_loader + ["--quick"] * quick
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return Measurement(**json.loads(done.stdout))


def table(found: dict[tuple[bool, int], Measurement]) -> str:
    """Return a Markdown table, and the growth of the peak with the number of examples."""
    lines = [
        "| data | examples | data, MB | peak over it, MB | second product, s | programs compiled |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (over_loader, num), m in found.items():
        kind = "loader" if over_loader else "in memory"
        programs = f"{m.compiled}, then {m.again}"
        lines.append(
            f"| {kind} | {num:,} | {m.data:.0f} | {m.peak:.0f} | {m.seconds:.2f} | {programs} |"
        )
    return "\n".join(lines)


def growth(few: Measurement, many: Measurement) -> str:
    """Compare the peaks for few and for many examples."""
    factor = many.peak / few.peak
    verdict = "met" if factor <= GROWTH_TARGET else "missed"
    return f"grows by a factor of {factor:.2f}; target {GROWTH_TARGET:g}: {verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small network, to see that it runs")
    parser.add_argument("--examples", type=int, help="measure in this process only, as JSON")
    parser.add_argument("--loader", action="store_true", help="that, over a loader")
    options = parser.parse_args()
    setting = QUICK if options.quick else FULL
    if options.examples:
        here = measure_here(setting, options.examples, options.loader)
        print(json.dumps(dataclasses.asdict(here)))
        return
    cases = [(kind, num) for kind in (False, True) for num in setting.num_examples]
    found = {
        case: measure(*case[::-1], quick=options.quick)
        for case in tqdm(cases, desc="processes", leave=False)
    }
    num_params = next(iter(found.values())).num_params
    print(
        f"A GGN product, tanh network of {num_params:,} parameters, "
        f"batch_size={setting.batch_size}, float32\n"
    )
    print(", ".join(f"{name} {value}" for name, value in machine().items()), end="\n\n")
    print(table(found), end="\n\n")
    few, many = setting.num_examples[0], setting.num_examples[-1]
    for over_loader, kind in ((False, "in memory"), (True, "over a loader")):
        change = growth(found[over_loader, few], found[over_loader, many])
        print(f"From {few:,} to {many:,} examples the peak {kind} {change}.")


if __name__ == "__main__":
    main()
