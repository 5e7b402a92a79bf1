"""Disease progression: a small regression network, its predictive band and calibration.

Run `python examples/diabetes.py --out out/demo-regression`. The observation noise is the standard
deviation of the residuals on the training set, and the prior precision is the
evidence's choice. The test set is only ever predicted.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_diabetes
from tqdm import tqdm

import laplace_kit as lk

NUM_TRAIN = 300


def load_data(seed: int) -> tuple[tuple, tuple]:
    """Return training and test patients, standardised by the training ones: (N, 10) and (N, 1)."""
    diabetes = load_diabetes(scaled=False)
    order = np.random.default_rng(seed).permutation(len(diabetes.target))
    x, y = diabetes.data[order], diabetes.target[order, None]

    def standardise(values):
        centre, spread = values[:NUM_TRAIN].mean(axis=0), values[:NUM_TRAIN].std(axis=0)
        return ((values - centre) / spread).astype(np.float32)

    x, y = standardise(x), standardise(y)
    return (x[:NUM_TRAIN], y[:NUM_TRAIN]), (x[NUM_TRAIN:], y[NUM_TRAIN:])


def train(x, y, *, seed: int, num_steps: int = 3000, decay: float = 5.0) -> nnx.Module:
    """Return a 10-50-1 network at the mode of squared error plus a Gaussian prior's penalty."""
    rngs = nnx.Rngs(seed)
    module = nnx.Sequential(nnx.Linear(10, 50, rngs=rngs), nnx.tanh, nnx.Linear(50, 1, rngs=rngs))
    schedule = optax.cosine_decay_schedule(1e-2, num_steps)
    optimizer = nnx.Optimizer(module, optax.adam(schedule), wrt=nnx.Param)

    def loss(module, x, y):
        weights = jax.tree.leaves(nnx.state(module, nnx.Param))
        penalty = decay * sum(jnp.sum(w**2) for w in weights)
        return 0.5 * (jnp.sum((module(x) - y) ** 2) + penalty) / len(x)

    @nnx.jit
    def step(module, optimizer, x, y):
        value, gradient = nnx.value_and_grad(loss)(module, x, y)
        optimizer.update(module, gradient)
        return value

    x, y = jnp.asarray(x), jnp.asarray(y)
    bar = tqdm(range(num_steps), desc="training", unit="step")
    for number in bar:
        value = step(module, optimizer, x, y)
        if number % 250 == 0:
            bar.set_postfix(loss=f"{float(value):.4f}")
    return module


def main() -> None:
    """Train, fit, tune, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out/demo-regression", help="directory of the report")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the network")
    options = parser.parse_args()

    (x, y), test = load_data(options.seed)
    model_fn, params = lk.model.from_nnx(train(x, y, seed=options.seed))
    noise_std = float(jnp.std(model_fn(params, x) - y))

    la = lk.fit(model_fn, params, (x, y), likelihood=lk.Gaussian(noise_std), progress=True)
    la = la.tune()
    report = la.report(test, options.out, title="Disease progression: MAP and Laplace")
    print(f"noise_std {noise_std:.3f}", la, report, f"\nreport: {report.index}", sep="\n")


if __name__ == "__main__":
    main()
