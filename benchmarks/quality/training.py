"""Networks trained on all splits of a data set at once, by one compiled program."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree


class Scale(NamedTuple):
    """What makes training rows have mean zero and variance one, column by column."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> "Scale":
        std = rows.std(axis=0)
        return cls(rows.mean(axis=0), np.where(std > 0, std, 1.0))

    def __call__(self, rows: np.ndarray) -> Float[Array, "N ..."]:
        return jnp.asarray((rows - self.mean) / self.std, jnp.float32)


class Examples(NamedTuple):
    """The training examples of S splits, `(S, N, ...)`; those of weight zero are padding."""

    x: Array
    y: Array
    weight: Float[Array, "S N"]


def stack(pairs: Sequence[tuple[ArrayLike, ArrayLike]]) -> Examples:
    """Stack the `(x, y)` of splits, whose numbers of examples may differ."""
    longest = max(len(x) for x, _ in pairs)

    def padded(rows):
        return jnp.pad(rows, [(0, longest - len(rows)), *[(0, 0)] * (jnp.ndim(rows) - 1)])

    parts = ((padded(x), padded(y), padded(jnp.ones(len(x)))) for x, y in pairs)
    return Examples(*map(jnp.stack, zip(*parts, strict=True)))


def init_mlp(key: PRNGKeyArray, widths: Sequence[int]) -> list[tuple[Array, Array]]:
    """Return the parameters of `benchmarks.workloads.mlp`: each unit starts with variance one."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        (jax.random.normal(key, (n, m)) / math.sqrt(n), jnp.zeros(m))
        for key, (n, m) in zip(keys, itertools.pairwise(widths), strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train: Adam on minibatches, with a learning rate that falls to zero along a cosine."""

    num_steps: int = 10_000
    batch_size: int = 128
    learning_rate: float = 1e-2

    def sizes(self, num_examples: int) -> tuple[int, int, int]:
        """Return the numbers of epochs, of minibatches in each, and of examples in each of these.

        The minibatches are as even as they can be.
        """
        per_epoch = -(-num_examples // self.batch_size)
        return -(-self.num_steps // per_epoch), per_epoch, -(-num_examples // per_epoch)


# From parameters and a batch `(n, ...)` of inputs and of targets, to the n losses.
Loss = Callable[[PyTree, Array, Array], Float[Array, " n"]]


@partial(jax.jit, static_argnames=("loss", "recipe"))
def train(
    loss: Loss,
    params: PyTree,
    examples: Examples,
    precision: PyTree,
    key: PRNGKeyArray,
    recipe: Recipe,
) -> PyTree:
    r"""Minimise $\sum_n w_n \ell_n(\theta) + \tfrac12 \theta^\top d \theta$ for every split.

    Parameters
    ----------
    loss
        `(params, x, y) -> (n,)`, the losses of a batch; hashable.
    params
        Where to start, with a leading axis S in every leaf.
    examples
        The training data of S splits.
    precision
        The prior precision d: a prefix of `params`, whose leaves are `(S,)`.
    key
        Shuffles the examples.
    recipe
        How to train.

    Returns
    -------
    params
        With a leading axis S. Compiled once for all data of the same shapes.
    """
    keys = jax.random.split(key, len(examples.weight))
    return jax.vmap(partial(_train, loss, recipe))(params, examples, precision, keys)


def _train(loss, recipe, params, examples, precision, key):
    num_epochs, per_epoch, size = recipe.sizes(len(examples.weight))
    optimizer = optax.adam(
        optax.cosine_decay_schedule(recipe.learning_rate, num_epochs * per_epoch)
    )
    num_data = jnp.sum(examples.weight)

    def objective(params, batch):
        losses = jnp.dot(batch.weight, loss(params, batch.x, batch.y))
        # A minibatch stands for all examples; the prior counts once.
        return (losses * (len(examples.weight) / size) + _penalty(params, precision)) / num_data

    def step(state, rows):
        params, moments = state
        batch = jax.tree.map(lambda leaf: leaf[rows], examples)
        updates, moments = optimizer.update(jax.grad(objective)(params, batch), moments)
        return (optax.apply_updates(params, updates), moments), None

    def epoch(state, key):
        order = jax.random.permutation(key, len(examples.weight))
        return jax.lax.scan(step, state, jnp.resize(order, (per_epoch, size)))

    state = (params, optimizer.init(params))
    (params, _), _ = jax.lax.scan(epoch, state, jax.random.split(key, num_epochs))
    return params


def _penalty(params, precision):
    def part_penalty(one, part):
        return 0.5 * one * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(part))

    return sum(jax.tree.leaves(jax.tree.map(part_penalty, precision, params)))


def nth(stacked: PyTree, i: int) -> PyTree:
    """Return the parameters of one split."""
    return jax.tree.map(lambda leaf: leaf[i], stacked)
