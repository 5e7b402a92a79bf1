"""Handwritten digits: a small flax.nnx classifier, and what its Laplace posterior adds.

Run `python examples/digits.py --out out/demo`. The network is trained without regularisation, as
many are, and ends up too sure of itself. The prior precision is tuned on a validation set; the test
set, the rotated digits and the out-of-distribution inputs are only ever predicted.

The set-up (few examples, many steps, no penalty) was picked because it makes a network that is too
sure of itself. One that is calibrated already has less to gain, and can lose.
"""

import argparse

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from tqdm import tqdm

import laplace_kit as lk

NUM_TRAIN, NUM_VALIDATION = 600, 297


def load_data(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the training, validation and test digits, (N, 64) in [0, 1], and their labels."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    x = (digits.data[order] / 16).astype(np.float32)
    y = digits.target[order].astype(np.int32)
    cuts = [NUM_TRAIN, NUM_TRAIN + NUM_VALIDATION]
    names = ("train", "validation", "test")
    return dict(zip(names, zip(np.split(x, cuts), np.split(y, cuts), strict=True), strict=True))


def rotated(x: np.ndarray, degrees: float) -> np.ndarray:
    """Return the digits turned counter-clockwise."""
    images = rotate(
        x.reshape(-1, 8, 8), degrees, axes=(1, 2), reshape=False, order=1, mode="grid-constant"
    )
    return images.reshape(-1, 64)


def train(x: np.ndarray, y: np.ndarray, *, seed: int, num_steps: int = 3000) -> nnx.Module:
    """Return a 64-32-10 network fitted by Adam on all the examples at once."""
    rngs = nnx.Rngs(seed)
    module = nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, rngs=rngs))
    optimizer = nnx.Optimizer(module, optax.adam(1e-2), wrt=nnx.Param)

    def loss(module, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(module(x), y).mean()

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
            bar.set_postfix(loss=f"{float(value):.5f}")
    return module


def main() -> None:
    """Train, fit, tune, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out/demo", help="directory of the report")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the network and noise")
    options = parser.parse_args()

    data = load_data(options.seed)
    module = train(*data["train"], seed=options.seed)

    model_fn, params = lk.model.from_nnx(module)
    la = lk.fit(model_fn, params, data["train"], likelihood="categorical", progress=True)
    print("tuning the prior precision on the validation set ...")
    la = la.tune(method="validation", data=data["validation"])

    rng = np.random.default_rng(options.seed)
    x, y = data["test"]
    report = la.report(
        (x, y),
        options.out,
        shifted={f"rotated-{angle}": (rotated(x, angle), y) for angle in (15, 30)},
        ood={
            "shuffled-pixels": rng.permuted(x, axis=1),
            "noise": rng.uniform(0, 1, x.shape).astype(np.float32),
        },
        title="Handwritten digits: MAP and Laplace",
    )
    print(la, report, f"\nreport: {report.index}", sep="\n")


if __name__ == "__main__":
    main()
