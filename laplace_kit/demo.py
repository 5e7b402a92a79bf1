"""A demonstration on synthetic data: train a network, fit, tune, and write a report.

It needs no dependencies beyond those of the library, and no network access.
"""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from laplace_kit.eval.report import Report
from laplace_kit.eval.report.checks import usable_directory
from laplace_kit.fitting import fit
from laplace_kit.laplace import Laplace

NUM_CLASSES = 3
PRIOR_PRECISION = 0.1
NUM_TRAINING, NOISE = 300, 0.3
_WIDTHS = (2, 20, 20, NUM_CLASSES)
_NUM_STEPS = 2000


def spirals(
    rng: np.random.Generator, num: int, noise: float
) -> tuple[Float[np.ndarray, "N 2"], Int[np.ndarray, " N"]]:
    """Return `num` points `(N, 2)` on three spiral arms, and the arms `(N,)`.

    Each coordinate has Gaussian noise with standard deviation `noise`; large noise makes the arms
    overlap.
    """
    y = rng.integers(NUM_CLASSES, size=num)
    along = np.sqrt(rng.uniform(0.02, 1.0, num))
    angle = 2 * np.pi * (y / NUM_CLASSES + 0.6 * along)
    arm = 2.0 * along[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (arm + noise * rng.normal(size=arm.shape)).astype(np.float32), y


def far_away(rng: np.random.Generator, num: int) -> Float[np.ndarray, "N 2"]:
    """Return `num` out-of-distribution points on a ring around the arms."""
    radius, angle = rng.uniform(4.0, 6.0, num), rng.uniform(0.0, 2 * np.pi, num)
    ring = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return ring.astype(np.float32)


def model_fn(params: PyTree, x: Float[ArrayLike, "N 2"]) -> Float[Array, "N 3"]:
    """Return the logits of a multi-layer perceptron at points `x` `(N, 2)`.

    `params` is a list of layers, each a dictionary with `kernel` and `bias`.
    """
    *hidden, last = params
    for layer in hidden:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ last["kernel"] + last["bias"]


def initial_params(rng: np.random.Generator) -> PyTree:
    """Return random parameters of `model_fn`."""
    return [
        {
            "kernel": jnp.asarray(rng.normal(0.0, fan_in**-0.5, (fan_in, fan_out)), jnp.float32),
            "bias": jnp.zeros(fan_out, jnp.float32),
        }
        for fan_in, fan_out in itertools.pairwise(_WIDTHS)
    ]


@jax.jit
def train(params: PyTree, x: Float[ArrayLike, "N 2"], y: Int[ArrayLike, " N"]) -> PyTree:
    """Return the mode under a Gaussian prior, found by full-batch Adam from `params`."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, _NUM_STEPS))

    def loss(params):
        nll = optax.softmax_cross_entropy_with_integer_labels(model_fn(params, x), y).sum()
        decay = 0.5 * PRIOR_PRECISION * optax.tree.norm(params, squared=True)
        return (nll + decay) / len(x)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=_NUM_STEPS)[0][0]


def demo(directory: str | os.PathLike, *, seed: int = 0) -> tuple[Laplace, Report]:
    """Classify points on three spiral arms, and report on the mode and the Laplace posterior.

    Parameters
    ----------
    directory
        The directory of the report; created if it does not exist.
    seed
        Seed of the data and of the network.

    Returns
    -------
    la, report
        The tuned posterior, and the report.

    Raises
    ------
    OSError, ValueError
        If `directory` cannot be created, or is a file, before anything is computed.
    """
    usable_directory(directory).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    x, y = spirals(rng, NUM_TRAINING, NOISE)
    params = train(initial_params(rng), x, y)
    la = fit(model_fn, params, (x, y), likelihood="categorical", prior_precision=PRIOR_PRECISION)
    la = la.tune()
    report = la.report(
        spirals(rng, 1000, NOISE),
        directory,
        shifted={"noisier": spirals(rng, 1000, 1.5 * NOISE)},
        ood={"far-away": far_away(rng, 500)},
        title="Three spiral arms: MAP and Laplace",
    )
    return la, report
