"""A first answer by laplace_kit: fit, tune and predict once, and count the programs compiled.

`python -m ... WORKLOAD.npz STRUCTURE ANSWER.json` writes what `benchmarks.first_answer` reads. The
structure `"last_layer"` is a Kronecker one of the last layer.
"""

import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

import laplace_kit as lk
from benchmarks.peers.adapters.jax_networks import NETWORKS
from benchmarks.peers.protocol import NUM_INPUTS, Workload

COMPILED = "/jax/core/compile/backend_compile_duration"
MISSED = "/jax/compilation_cache/cache_misses"


def main() -> None:
    path, structure, answer = sys.argv[1:]
    programs: list[float] = []
    missed: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: programs.append(seconds) if event == COMPILED else None
    )
    jax.monitoring.register_event_listener(
        lambda event, **_: missed.append(event) if event == MISSED else None
    )
    workload = Workload.load(Path(path))
    data = workload.x, workload.y
    stages = {}

    def timed(name, run):
        before, start = len(programs), time.perf_counter()
        found = jax.block_until_ready(run())
        stages[name] = {
            "seconds": time.perf_counter() - start,
            "programs": len(programs) - before,
            "compiling": sum(programs[before:]),
        }
        return found

    model_fn, subset = NETWORKS[workload.kind], None
    if structure == "last_layer":
        structure, subset = "kron", "last_layer"
    la = timed(
        "fit",
        lambda: lk.fit(
            model_fn,
            workload.params,
            data,
            likelihood="categorical",
            structure=structure,
            subset=subset,
        ),
    )
    la = timed("tune", la.tune)
    probs = timed("predict", lambda: la.predict(workload.x[:NUM_INPUTS]).probs)
    found = {"stages": stages, "missed": len(missed), "probs": np.asarray(probs).tolist()}
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
