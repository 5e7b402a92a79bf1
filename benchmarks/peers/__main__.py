"""Measure this library next to others: `python -m benchmarks.peers --python <interpreter>`.

The interpreter is that of an environment of `requirements.txt`; without it, ours alone.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm

from benchmarks.peers import page, tables, workloads
from benchmarks.peers.compare import (
    DEFINITIONS,
    NUM_THREADS,
    OURS,
    PEERS,
    YARDSTICK,
    Library,
    Measurement,
    Setting,
    compare,
    pin,
)
from benchmarks.peers.protocol import Workload
from benchmarks.quality.tables import RESULTS
from benchmarks.timing import machine

PEAK_LIMIT = 300.0  # MB of any job of the quick subset, compilation included

FULL = Setting(repetitions=40, budget=2.0, once=10.0, limit=120.0)
QUICK = Setting(repetitions=3, budget=0.5, once=10.0, limit=60.0)

PRODUCTS = (YARDSTICK, "GGN product", "Hessian product")
CURVATURE = (
    *PRODUCTS,
    "Fisher product",
    "16 GGN products",
    "Lanczos",
    "diagonal",
    "K-FAC",
    "EKFAC",
)
STRUCTURES = ("diagonal", "kron", "ekfac", "low_rank")
FILES = ("save kron", "load kron")
WIDE = tuple(
    f"{verb} last layer, {of}" for of in ("kron", "diagonal") for verb in ("fit", "predict")
)


def _of(*structures: str) -> tuple[str, ...]:
    return tuple(f"{verb} {of}" for of in structures for verb in ("fit", "predict"))


def _tuned(*structures: str) -> tuple[str, ...]:
    return tuple(f"tune {of}" for of in structures)


# Which jobs are run on which workload; libraries leave out those that they lack.
SUITES: Mapping[Callable[[], Workload], tuple[str, ...]] = {
    workloads.small: (
        *CURVATURE,
        *_of("full", *STRUCTURES, "last layer"),
        *_tuned("full", "diagonal", "kron"),
        *FILES,
    ),
    workloads.medium: (
        *CURVATURE,
        *_of(*STRUCTURES, "last layer"),
        *_tuned("diagonal", "kron"),
        *FILES,
    ),
    workloads.medium_of_many: PRODUCTS,
    workloads.lenet: (*CURVATURE, *_of("diagonal", "kron", "ekfac", "last layer")),
    workloads.transformer: (*CURVATURE, *_of("diagonal", "kron", "last layer")),
    workloads.wide: (YARDSTICK, *WIDE),
    workloads.large: PRODUCTS,
}
QUICK_SUITES = {
    workloads.small: (
        *PRODUCTS,
        "16 GGN products",
        "diagonal",
        "K-FAC",
        *_of("full", "diagonal", "kron"),
        "tune full",
    )
}


def measure(
    suites: Mapping[Callable[[], Workload], tuple[str, ...]],
    interpreters: Mapping[Library, str],
    setting: Setting,
) -> tables.Results:
    """Measure all libraries on all workloads, one workload after the other."""
    measured: list[Measurement] = []
    versions: dict[str, dict[str, str]] = {}
    described = {}
    for make, names in tqdm(suites.items(), desc="workloads", leave=False):
        workload = make()
        found, versions = compare(workload, names, interpreters, setting)
        measured += found
        described[workload.name] = workload.describe()
    details = machine() | {"threads": NUM_THREADS, "seed": workloads.SEED}
    return tables.Results(details, versions, described, tuple(measured))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", type=Path, help="the interpreter of the peers' environment")
    parser.add_argument("--quick", action="store_true", help="few jobs of a small network")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of these workloads, unwritten")
    options = parser.parse_args()
    pin()
    interpreters = {OURS: sys.executable}
    if options.python is not None and options.python.exists():
        interpreters |= dict.fromkeys(PEERS, str(options.python))
    elif options.python is not None:
        print(f"Found no {options.python}: ours alone. `make bench-peers` makes it.\n")
    suites, setting = SUITES, FULL
    if options.quick:
        suites, setting = QUICK_SUITES, QUICK
        interpreters[DEFINITIONS] = sys.executable
    elif options.only:
        suites = {make: names for make, names in SUITES.items() if make.__name__ in options.only}
    results = measure(suites, interpreters, setting)
    print("\n\n".join(tables.page(results)))
    if options.quick:
        if wrong := tables.failures(results, PEAK_LIMIT):
            raise SystemExit("\n" + "\n".join(wrong))
    elif not options.only:
        results.write(RESULTS / "peers.json")
        page.main()


if __name__ == "__main__":
    main()
