"""Models with their data, made by NumPy from a fixed seed so that nothing is downloaded."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from laplace_kit.model import from_nnx

NUM_CLASSES = 10
VOCABULARY, LENGTH = 100, 32


@dataclasses.dataclass(frozen=True)
class Workload:
    """A classifier at its parameters, and labelled examples; `model_fn` is a pytree."""

    name: str
    model_fn: Callable
    params: PyTree
    x: Array
    y: Array

    def describe(self) -> str:
        num_params = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"{self.name}: {num_params:,} parameters, {len(self.x):,} examples"


def mlp(params, x):
    """Apply a tanh network of `[(kernel, bias), ...]`."""
    *hidden, last = params
    for kernel, bias in hidden:
        x = jnp.tanh(x @ kernel + bias)
    return x @ last[0] + last[1]


def loss(model_fn, params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model_fn(params, x), y).sum()


def trained_mlp(name: str, widths: tuple[int, ...], num_examples: int) -> Workload:
    """Return a tanh network trained on the labels of another one.

    Inputs have a few large and many small directions, variances 1, 1/2, 1/3, ..., as images do.
    """
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / math.sqrt(shape[0]), jnp.float32)

    def network():
        return [(normal(n, m), jnp.zeros(m)) for n, m in itertools.pairwise(widths)]

    variances = 1 / np.arange(1, widths[0] + 1)
    scales = np.sqrt(variances / variances.mean())
    x = jnp.asarray(rng.normal(size=(num_examples, widths[0])) * scales, jnp.float32)
    y = mlp(network(), x).argmax(axis=1)
    return Workload(name, Partial(mlp), _train(network(), x, y), x, y)


@partial(jax.jit, static_argnames="num_steps")
def _train(params, x, y, num_steps=300):
    optimizer = optax.adam(1e-3)

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(loss, argnums=1)(mlp, params, x, y)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)[0][0]


def lenet(num_examples: int) -> Workload:
    """Return LeNet-5 for images of 28 x 28 pixels, as initialised."""
    rngs = nnx.Rngs(0)
    pool = partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
    module = nnx.Sequential(
        nnx.Conv(1, 6, (5, 5), rngs=rngs),
        nnx.tanh,
        pool,
        nnx.Conv(6, 16, (5, 5), padding="VALID", rngs=rngs),
        nnx.tanh,
        pool,
        _flatten,
        nnx.Linear(400, 120, rngs=rngs),
        nnx.tanh,
        nnx.Linear(120, 84, rngs=rngs),
        nnx.tanh,
        nnx.Linear(84, NUM_CLASSES, rngs=rngs),
    )
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(num_examples, 28, 28, 1)), jnp.float32)
    return Workload("LeNet", *from_nnx(module), x, _labels(rng, num_examples))


def _flatten(x):
    return x.reshape(len(x), -1)


def transformer(num_examples: int) -> Workload:
    """Return two self-attention blocks of width 64 on sequences of 32 tokens, as initialised."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, VOCABULARY, (num_examples, LENGTH)))
    module = _Transformer(width=64, num_blocks=2, rngs=nnx.Rngs(0))
    return Workload("transformer", *from_nnx(module), x, _labels(rng, num_examples))


class _Transformer(nnx.Module):
    def __init__(self, width: int, num_blocks: int, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(VOCABULARY, width, rngs=rngs)
        self.positions = nnx.Embed(LENGTH, width, rngs=rngs)
        self.blocks = nnx.List([_Block(width, rngs) for _ in range(num_blocks)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, NUM_CLASSES, rngs=rngs)

    def __call__(self, tokens):
        x = self.tokens(tokens) + self.positions(jnp.arange(LENGTH))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))


class _Block(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


def _labels(rng: np.random.Generator, num_examples: int) -> Array:
    return jnp.asarray(rng.integers(0, NUM_CLASSES, num_examples))
