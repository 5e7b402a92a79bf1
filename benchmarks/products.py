"""What curvature products cost, in gradients of the same batch."""

import argparse
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import laplace_kit as lk
from benchmarks.timing import Job, machine, measure, table
from benchmarks.workloads import loss, mlp


@dataclasses.dataclass(frozen=True)
class Setting:
    """A tanh network by its layers' widths, how many examples, and how often to measure.

    The targets, in gradients, are for one GGN and one Hessian product.
    """

    widths: tuple[int, ...]
    num_examples: int
    num_vectors: int
    repetitions: int
    ggn_target: float | None = None
    hessian_target: float | None = None


FULL = Setting(
    widths=(784, 200, 200, 10),
    num_examples=2000,
    num_vectors=16,
    repetitions=40,
    ggn_target=2.0,
    hessian_target=2.5,
)
QUICK = Setting(widths=(20, 10, 10, 10), num_examples=50, num_vectors=4, repetitions=3)


def multiply(operator, v):
    return operator.mv(v)


def jobs(setting: Setting) -> list[Job]:
    """Return the gradient and what is compared with it; all arrays are arguments."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)

    pairs = zip(setting.widths[:-1], setting.widths[1:], strict=True)
    params = [(normal(inputs, outputs), jnp.zeros(outputs)) for inputs, outputs in pairs]
    x = jnp.asarray(rng.normal(size=(setting.num_examples, setting.widths[0])), jnp.float32)
    y = jnp.asarray(rng.integers(0, setting.widths[-1], setting.num_examples))

    v = jax.tree.map(lambda leaf: normal(*leaf.shape), params)
    flat = jax.flatten_util.ravel_pytree(v)[0]
    vs = jax.tree.map(lambda leaf: normal(setting.num_vectors, *leaf.shape), params)

    args = mlp, params, (x, y), lk.Categorical()
    ggn, hessian = lk.curv.GGNOperator(*args), lk.curv.HessianOperator(*args)
    empirical = lk.curv.EmpiricalFisherOperator(*args)
    sampled = lk.curv.MonteCarloFisherOperator(*args, key=jax.random.key(0))
    product = jax.jit(multiply)
    several = jax.jit(lambda operator, vs: operator.matmat(vs))
    return [
        Job("gradient", jax.jit(partial(jax.grad(loss, argnums=1), mlp)), (params, x, y)),
        Job("GGN product", product, (ggn, v), target=setting.ggn_target),
        Job(
            "GGN product, flat and eager",
            multiply,
            (ggn, flat),
            target=setting.ggn_target,
        ),
        Job(f"GGN, {setting.num_vectors} products", several, (ggn, vs)),
        Job("Hessian product", product, (hessian, v), target=setting.hessian_target),
        Job(
            "Hessian product, flat and eager",
            multiply,
            (hessian, flat),
            target=setting.hessian_target,
        ),
        Job(f"Hessian, {setting.num_vectors} products", several, (hessian, vs)),
        Job("empirical Fisher product", product, (empirical, v)),
        Job("Monte-Carlo Fisher product", product, (sampled, v)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small problem, to see that it runs")
    setting = QUICK if parser.parse_args().quick else FULL
    timings = measure(jobs(setting), setting.repetitions)
    widths = "-".join(map(str, setting.widths))
    print(f"Curvature products, {widths} tanh network, {setting.num_examples} examples, float32\n")
    print(", ".join(f"{name} {value}" for name, value in machine().items()), end="\n\n")
    print(table(timings))


if __name__ == "__main__":
    main()
