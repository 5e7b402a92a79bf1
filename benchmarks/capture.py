"""The cost of layer capture: curvature, fits, and full predictive covariances at 250 inputs."""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import laplace_kit as lk
from benchmarks.timing import Job, Timing, machine, measure, table
from benchmarks.workloads import Workload, lenet, loss, mlp, trained_mlp, transformer
from laplace_kit.approx.kronecker import fit_kronecker

NUM_INPUTS = 250
COMPILATION_TARGET = 3.0  # seconds, for every job
MEMORY_TARGET = 200.0  # MB over the idle process


@dataclasses.dataclass(frozen=True)
class Setting:
    """Widths of the tanh networks S and M, numbers of examples, and how often to measure.

    A job takes part in `repetitions` turns, or in as many as `budget` seconds allow.
    """

    small: tuple[int, ...]
    large: tuple[int, ...]
    num_small: int
    num_large: int
    repetitions: int
    budget: float


FULL = Setting(
    small=(64, 32, 10),
    large=(784, 200, 200, 10),
    num_small=1500,
    num_large=2000,
    repetitions=24,
    budget=4.0,
)
QUICK = Setting(
    small=(6, 5, 3),
    large=(9, 8, 8, 3),
    num_small=20,
    num_large=20,
    repetitions=1,
    budget=1.0,
)


def operator_of(workload: Workload) -> lk.curv.GGNOperator:
    data = workload.x, workload.y
    return lk.curv.GGNOperator(workload.model_fn, workload.params, data, "categorical")


def fit(workload: Workload, structure: str) -> lk.Laplace:
    return lk.fit(
        workload.model_fn,
        workload.params,
        (workload.x, workload.y),
        likelihood="categorical",
        structure=structure,
    )


def predict(la: lk.Laplace, x) -> jax.Array:
    return la.predict(x, covariance="full").f_cov


@jax.jit
def decompose(factors):
    matrices = [matrix for factor in factors for matrix in (factor.inputs, factor.gradients)]
    return [jnp.linalg.eigh(matrix) for matrix in matrices if matrix.ndim == 3]


def gradient_job(workload: Workload) -> Job:
    args = workload.model_fn, workload.params, workload.x, workload.y
    return Job(f"{workload.name}: gradient", jax.jit(jax.grad(loss, argnums=1)), args)


def fit_job(workload: Workload, structure: str, seconds: float | None = None) -> Job:
    run = partial(fit, structure=structure)
    return Job(f"{workload.name}: fit {structure}", run, (workload,), seconds=seconds)


def predict_job(workload: Workload, structure: str, seconds: float | None = None) -> Job:
    args = fit(workload, structure), workload.x[:NUM_INPUTS]
    return Job(f"{workload.name}: predict {structure}", predict, args, seconds=seconds)


def dense_jobs(workload: Workload) -> list[Job]:
    """Return the jobs of a full posterior, with the targets of workload S."""
    operator = operator_of(workload)
    return [
        gradient_job(workload),
        Job(f"{workload.name}: dense GGN", lk.curv.GGNOperator.to_dense, (operator,)),
        fit_job(workload, "full", seconds=0.25),
        predict_job(workload, "full", seconds=0.05),
    ]


def layer_jobs(
    workload: Workload,
    predictions: Mapping[str, float | None],
    *,
    diagonal: float | None = None,
    factors: float | None = None,
) -> list[Job]:
    """Return the fits of diagonal and Kronecker structures, and the predictions asked for.

    Targets are in gradients for the curvature, in seconds for predictions, by structure.
    """
    operator, name = operator_of(workload), workload.name
    found = lk.curv.kronecker_factors(operator)
    corrected = partial(fit_kronecker, corrected=True)
    return [
        gradient_job(workload),
        Job(f"{name}: diagonal of the GGN", lk.curv.GGNOperator.diagonal, (operator,), diagonal),
        fit_job(workload, "diagonal"),
        Job(f"{name}: Kronecker factors", lk.curv.kronecker_factors, (operator,), factors),
        Job(f"{name}: their eigendecompositions", decompose, (found,)),
        fit_job(workload, "kron"),
        Job(f"{name}: factors, decomposed, corrected", corrected, (operator,)),
        fit_job(workload, "ekfac"),
        *(predict_job(workload, *prediction) for prediction in predictions.items()),
    ]


def peak_memory(la: lk.Laplace) -> float:
    """Return the MB that a first prediction takes, in a process that did not fit."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "posterior"
        la.save(path)
        command = [sys.executable, "-m", "benchmarks.capture", "--memory", path]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def peak_memory_here(path: str) -> float:
    """Return the MB that a first prediction takes in this process, compiling included."""
    la = lk.load(path, mlp)
    num_features = len(la.params[0][0])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(NUM_INPUTS, num_features)), jnp.float32)
    idle = resident_memory("VmRSS")
    jax.block_until_ready(predict(la, x))
    return resident_memory("VmHWM") - idle


def resident_memory(field: str) -> float:
    """Return the MB of this process, now (`"VmRSS"`) or at its peak (`"VmHWM"`), on Linux.

    The peak of `resource.getrusage` cannot be used: it begins with the parent process's.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{field}:")[1].split()[0]) * 1024 / 1e6


def compilation(timings: Sequence[Timing]) -> str:
    """Name the jobs whose compilation takes too long."""
    late = [t for t in timings if t.compilation > COMPILATION_TARGET]
    missed = "missed by " + ", ".join(f"{t.job.name} ({t.compilation:.1f} s)" for t in late)
    return f"Compilation of every job within {COMPILATION_TARGET:g} s: {missed if late else 'met'}."


def memory(found: float) -> str:
    """Compare the memory of a prediction with its target."""
    verdict = "met" if found <= MEMORY_TARGET else "missed"
    return f"Memory of M: predict kron, {found:.0f} MB; target {MEMORY_TARGET:g} MB: {verdict}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small networks, to see that it runs")
    parser.add_argument("--memory", metavar="PATH", help="only the memory of a saved posterior, MB")
    options = parser.parse_args()
    if options.memory:
        print(peak_memory_here(options.memory))
        return
    setting = QUICK if options.quick else FULL
    small = trained_mlp("S", setting.small, setting.num_small)
    large = trained_mlp("M", setting.large, setting.num_large)
    others = [] if options.quick else [lenet(num_examples=500), transformer(num_examples=250)]
    to_predict = {"kron": 0.03, "ekfac": None, "diagonal": 0.03, "low_rank": 0.2}
    suites = [
        partial(dense_jobs, small),
        partial(layer_jobs, large, to_predict, diagonal=6.0, factors=8.0),
        *(partial(layer_jobs, other, {"kron": None}) for other in others),
    ]
    cold = not options.quick
    timings = []
    for suite in tqdm(suites, desc="workloads", leave=False):
        timings += measure(suite(), setting.repetitions, budget=setting.budget, cold=cold)
    print(f"Layer capture, predictions at {NUM_INPUTS} inputs, float32\n")
    if options.quick:
        print("Small networks, to see that it runs: the targets are not theirs.\n")
    for workload in (small, large, *others):
        print(f"- {workload.describe()}")
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine().items()), end="\n\n")
    print(table(timings), end="\n\n")
    print(compilation(timings))
    if Path("/proc/self/status").exists():
        print(memory(peak_memory(fit(large, "kron"))))


if __name__ == "__main__":
    main()
