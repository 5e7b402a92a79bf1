"""The cost of curvature products, in gradients of the same batch."""

import argparse
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import laplace_kit as lk
from benchmarks.timing import Job, Timing, machine, measure, table
from benchmarks.workloads import loss, mlp
from laplace_kit.curv import linearized
from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.matrix_free.lanczos import tridiagonalize


@dataclasses.dataclass(frozen=True)
class Targets:
    """Gradients for a single product, for one of several together, and for one of a Lanczos run.

    The last two are for operators that are linearised once.
    """

    single: float | None = None
    together: float | None = None
    lanczos: float | None = None


@dataclasses.dataclass(frozen=True)
class Setting:
    """A tanh network by its layers' widths, how many examples, and how often to measure.

    A job takes part in `repetitions` turns, or in as many as `budget` seconds allow.
    """

    widths: tuple[int, ...]
    num_examples: int
    batch_size: int
    num_vectors: int
    num_steps: int
    repetitions: int
    budget: float
    ggn: Targets = Targets()
    hessian: Targets = Targets()


FULL = Setting(
    widths=(784, 200, 200, 10),
    num_examples=2000,
    batch_size=250,
    num_vectors=16,
    num_steps=50,
    repetitions=40,
    budget=10.0,
    ggn=Targets(single=2.0, together=1.5, lanczos=1.4),
    hessian=Targets(single=2.5, together=2.0, lanczos=2.0),
)
QUICK = Setting(
    widths=(20, 10, 10, 10),
    num_examples=50,
    batch_size=20,
    num_vectors=4,
    num_steps=5,
    repetitions=3,
    budget=1.0,
)


def multiply(operator: SelfAdjointOperator, v):
    return operator.mv(v)


@jax.jit
def together(operator: SelfAdjointOperator, vs):
    return operator.matmat(vs)


def one_by_one(operator: SelfAdjointOperator, vs):
    return [operator.mv(v) for v in vs]


def lanczos(operator: SelfAdjointOperator, v, depth: int):
    """Return the tridiagonal form, of an operator that is linearised first."""
    return repeated_lanczos(linearized(operator), v, depth)


def repeated_lanczos(operator: SelfAdjointOperator, v, depth: int):
    """Return the tridiagonal form, of an operator that is not linearised first."""
    return tridiagonalize(operator, v, jnp.zeros((1, len(v)), v.dtype), depth)


def operator_jobs(
    name: str, operator: SelfAdjointOperator, v, vs, num_steps: int, targets: Targets
) -> list[tuple[Job, int]]:
    """Return the jobs of one operator, and how many products each makes.

    `v` is a pytree, `vs` are flat.
    """
    flat, num, run = vs[0], len(vs), f", Lanczos run of {num_steps}"
    once, repeated = (partial(lanczos, depth=num_steps), partial(repeated_lanczos, depth=num_steps))
    rows = [
        (" product", jax.jit(multiply), operator, v, targets.single, 1),
        (" product, flat and eager", multiply, operator, flat, targets.single, 1),
        (" product, linearised", multiply, linearized(operator), flat, targets.lanczos, 1),
        (f", {num} together", together, operator, vs, targets.together, num),
        (f", {num} one by one", one_by_one, operator, vs, None, num),
        (f"{run}, linearised", once, operator, flat, targets.lanczos, num_steps),
        (f"{run}, not linearised", repeated, operator, flat, None, num_steps),
    ]
    return [
        (Job(name + what, fn, tuple(args), target), num) for what, fn, *args, target, num in rows
    ]


def jobs(setting: Setting) -> list[tuple[Job, int]]:
    """Return the gradient and what is compared with it, and how many products each job makes."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)

    pairs = zip(setting.widths[:-1], setting.widths[1:], strict=True)
    params = [(normal(inputs, outputs), jnp.zeros(outputs)) for inputs, outputs in pairs]
    x = jnp.asarray(rng.normal(size=(setting.num_examples, setting.widths[0])), jnp.float32)
    y = jnp.asarray(rng.integers(0, setting.widths[-1], setting.num_examples))

    v = jax.tree.map(lambda leaf: normal(*leaf.shape), params)
    vs = normal(setting.num_vectors, sum(leaf.size for leaf in jax.tree.leaves(params)))

    args = mlp, params, (x, y), lk.Categorical()
    ggn, hessian = lk.curv.GGNOperator(*args), lk.curv.HessianOperator(*args)
    chunked = lk.curv.GGNOperator(*args, batch_size=setting.batch_size)
    empirical = lk.curv.EmpiricalFisherOperator(*args)
    sampled = lk.curv.MonteCarloFisherOperator(*args, key=jax.random.key(0))
    product, steps = jax.jit(multiply), setting.num_steps
    return [
        (Job("gradient", jax.jit(partial(jax.grad(loss, argnums=1), mlp)), (params, x, y)), 1),
        *operator_jobs("GGN", ggn, v, vs, steps, setting.ggn),
        *operator_jobs(f"GGN by {setting.batch_size}", chunked, v, vs, steps, Targets()),
        *operator_jobs("Hessian", hessian, v, vs, steps, setting.hessian),
        (Job("empirical Fisher product", product, (empirical, v)), 1),
        (Job("Monte-Carlo Fisher product", product, (sampled, v)), 1),
    ]


def per_product(timing: Timing, num: int) -> Timing:
    """Return a timing whose gradients are for one of the products that a call makes."""
    return dataclasses.replace(timing, ratios=timing.ratios / num)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small problem, to see that it runs")
    setting = QUICK if parser.parse_args().quick else FULL
    found, nums = zip(*jobs(setting), strict=True)
    timings = measure(found, setting.repetitions, budget=setting.budget)
    widths = "-".join(map(str, setting.widths))
    print(f"Curvature products, {widths} tanh network, {setting.num_examples} examples, float32\n")
    print(", ".join(f"{name} {value}" for name, value in machine().items()), end="\n\n")
    print("Seconds are for a call, gradients for each of its products.\n")
    print(table([per_product(*pair) for pair in zip(timings, nums, strict=True)]))


if __name__ == "__main__":
    main()
