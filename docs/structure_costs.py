"""The tables of `choosing_a_structure.md`: `python -m docs.structure_costs` measures them.

The tanh networks S and M of `benchmarks.capture`; three minutes on two idle cores. Times are the
least of several calls, by the clock or in processor time, whichever is less: another load on the
machine adds to the first, threads that wait for each other add to the second.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import laplace_kit as lk
from benchmarks.capture import FULL, NUM_INPUTS, gradient_job, predict
from benchmarks.timing import machine
from benchmarks.workloads import Workload, trained_mlp

PAGE = Path(__file__).parent / "choosing_a_structure.md"
BEGIN, END = "<!-- costs -->\n", "<!-- /costs -->"
CALLS, BUDGET = 10, 4.0  # of each job: the number of calls, and the seconds within which they begin
FEW = 100  # examples, for the dual form
COLUMNS = ["fit", "predict", "memory"]

# What `fit` is asked for, by the name in the table.
FULL_OF_ALL = {"`full`": {"structure": "full"}}
OTHERS = {
    "`ekfac`": {"structure": "ekfac"},
    "`kron`": {"structure": "kron"},
    "`kron` of `mc_fisher`, one label": {
        "structure": "kron",
        "curvature": "mc_fisher",
        "key": jax.random.key(0),
    },
    "`low_rank`, rank 50": {"structure": "low_rank", "rank": 50},
    "`diagonal`": {"structure": "diagonal"},
    "`full` of the last layer": {"structure": "full", "subset": "last_layer"},
}


def fit(workload: Workload, options: dict) -> lk.Laplace:
    data = workload.x, workload.y
    return lk.fit(workload.model_fn, workload.params, data, likelihood="categorical", **options)


def seconds(run: Callable, *args) -> float:
    """Return the least time of a call, the first one apart."""
    jax.block_until_ready(run(*args))
    found, begin = [], time.perf_counter()
    while len(found) < 2 * CALLS and time.perf_counter() < begin + BUDGET:
        before = time.perf_counter(), time.process_time()
        jax.block_until_ready(run(*args))
        found += [time.perf_counter() - before[0], time.process_time() - before[1]]
    return min(found)


def held(la: lk.Laplace) -> int:
    """Return the bytes of the arrays that curvature and posterior keep, each counted once."""
    leaves = jax.tree.leaves((la.structure, la.posterior))
    return sum({id(leaf): leaf.nbytes for leaf in leaves}.values())


def costs(workload: Workload, asked: dict[str, dict]) -> dict[str, list[str]]:
    """Return cells by structure: time of fit and predict, and memory, all in gradients."""
    job = gradient_job(workload)
    gradient = seconds(job.run, *job.args)
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(workload.params))
    cells = {}
    for name, options in asked.items():
        la = fit(workload, options)
        times = (
            seconds(fit, workload, options),
            seconds(predict, la, workload.x[:NUM_INPUTS]),
        )
        cells[name] = [readable(t / gradient) for t in times] + [readable(held(la) / own)]
    return cells


def readable(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"


def errors(workload: Workload, asked: dict[str, dict], x) -> dict[str, list[str]]:
    """Return cells of predictive standard deviations over the exact ones, at the same prior."""
    exact = fit(workload, FULL_OF_ALL["`full`"]).tune(temperature=False)
    found = {}
    for name, options in asked.items():
        la = fit(workload, options).with_prior(exact.prior_precision)
        ratios = np.sqrt(la.predict(x).f_var / exact.predict(x).f_var)
        found[name] = ["{:.2f} ({:.2f} to {:.2f})".format(*np.quantile(ratios, [0.5, 0.05, 0.95]))]
    return found


def small_table() -> str:
    """Return the lines of S, whose full posterior is the yardstick of the others."""
    workload = trained_mlp("S", FULL.small, FULL.num_small + NUM_INPUTS)
    x_new, seen = workload.x[FULL.num_small :], slice(FULL.num_small)
    workload = dataclasses.replace(workload, x=workload.x[seen], y=workload.y[seen])
    asked = FULL_OF_ALL | OTHERS
    found, apart = costs(workload, asked), errors(workload, asked, x_new)
    columns = [*COLUMNS, "std over exact"]
    return table(workload, columns, {name: found[name] + apart[name] for name in asked})


def large_table() -> str:
    """Return the lines of M, of whose full posterior only the dual form of few examples fits."""
    workload = trained_mlp("M", FULL.large, FULL.num_large)
    few = dataclasses.replace(workload, x=workload.x[:FEW], y=workload.y[:FEW])
    rows = costs(workload, OTHERS)
    rows[f"`full`, dual, of {FEW} examples"] = costs(few, FULL_OF_ALL)["`full`"]
    return table(workload, COLUMNS, rows)


def table(workload: Workload, columns: list[str], rows: dict[str, list[str]]) -> str:
    lines = [["structure", *columns], ["---", *["---:"] * len(columns)]]
    lines += [[name, *cells] for name, cells in rows.items()]
    cells = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{workload.describe()}.\n\n{cells}\n"


def conditions() -> str:
    described = ", ".join(f"{name} {value}" for name, value in machine().items())
    return f"Measured in float32: {described}.\n"


if __name__ == "__main__":
    measured = "\n".join([small_table(), large_table(), conditions()])
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(
        before + BEGIN + "\n" + measured + "\n" + END + rest.split(END)[1], encoding="utf-8"
    )
