"""Examples as whole arrays: all of a data set, or a small sample of it."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from laplace_kit.data import Data, DataLike, InMemory, as_data, read_batches, take
from laplace_kit.host import fetch
from laplace_kit.placement import automatic


class Examples(NamedTuple):
    """Inputs and targets as whole arrays, and weights `(N,)` if the data have any."""

    x: PyTree
    y: PyTree
    weights: Float[Array | np.ndarray, " N"] | None = None


def gather(data: DataLike) -> Examples:
    """Return all examples, from memory or from one pass over batches."""
    batches = read_batches(as_data(data, once=True), "reading examples")
    return joined([_examples_of(batch) for batch in batches])


def joined(parts: Sequence[Examples]) -> Examples:
    """Return the examples of all parts; parts without weights get ones if any part has weights."""
    if len(parts) == 1:
        return parts[0]
    if any(part.weights is not None for part in parts):
        parts = [part._replace(weights=_weights_or_ones(part)) for part in parts]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def first_examples(data: Data, num: int) -> Examples:
    """Return up to `num` examples of positive weight: evenly spaced in memory, or a stream's first.

    In memory, examples of weight zero fill up where too few have a positive weight.
    """
    if isinstance(data, InMemory):
        total, whole = data.num_examples, _examples_of(data)
        return whole if total <= num else _spread(whole, np.arange(num) * total // num)
    parts, found = [], 0
    for batch in read_batches(data):
        weights = np.ones(batch.num_examples) if batch.weights is None else batch.weights
        rows = np.flatnonzero(fetch(weights) > 0)[: num - found]
        parts.append(_examples_of(take(batch, rows)))
        found += len(rows)
        if found >= num:
            break
    return joined(parts)


def _examples_of(batch: InMemory) -> Examples:
    return Examples(batch.x, batch.y, batch.weights)


def _weights_or_ones(part: Examples) -> Array | np.ndarray:
    num = len(jax.tree.leaves(part.x)[0])
    return np.ones(num, np.float32) if part.weights is None else part.weights


@jax.jit
def _spread(examples: Examples, rows: Int[Array, " M"]) -> Examples:
    """Return these rows; with weights, evenly spaced rows among those of positive weight."""

    def select(examples, rows):
        if examples.weights is not None:
            counts, num = examples.weights > 0, len(rows)
            step = jnp.maximum(jnp.sum(counts), num) / num
            rows = jnp.argsort(~counts, stable=True)[(jnp.arange(num) * step).astype(int)]
        return jax.tree.map(lambda leaf: leaf[rows], examples)

    return automatic(select, examples, rows)
