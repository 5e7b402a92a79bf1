"""One type for data: arrays in memory, or a re-iterable stream of batches."""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt32

from laplace_kit import streams
from laplace_kit.arrays import as_arrays, as_pair, common_length, is_list_of_numbers, listed
from laplace_kit.bars import Bars, is_shown, length_of
from laplace_kit.checkpoint import Checkpoint, Run, as_checkpoint, release
from laplace_kit.host import fetch_array
from laplace_kit.loaders import ShardedBatches as ShardedBatches
from laplace_kit.loaders import check_shared
from laplace_kit.loaders import shard_batches as shard_batches
from laplace_kit.placement import Placement, num_held, placement_of, spread
from laplace_kit.sharding import shard as shard
from laplace_kit.tree import pytree_dataclass, replace
from laplace_kit.weights import as_weights, check_some_count

__all__ = [
    "Data",
    "DataLike",
    "InMemory",
    "ShardedBatches",
    "Stream",
    "as_data",
    "shard",
    "shard_batches",
]

# Examples kept with a posterior, for checks on training data after the fit.
NUM_EXAMPLES = 256


@pytree_dataclass()
class Chunk:
    """A chunk of examples: inputs, targets and a weight for each; `prints` as in `InMemory`.

    The weight is that of the data, one by default, and zero for padding examples.
    """

    x: PyTree
    y: PyTree
    weight: Float[Array, " B"]
    prints: UInt32[Array, " B"] | None = None


@pytree_dataclass(static=("placement",))
class InMemory:
    """Inputs and targets as arrays with one leading axis of examples, which may have weights.

    If the inputs are features, computed by the frozen part of a model, `prints` holds the
    fingerprints of the original examples; features may be infinite, as masks are. `placement` tells
    over which devices examples are spread, if they are.
    """

    x: PyTree
    y: PyTree
    prints: UInt32[Array, " N"] | None = None
    weights: Float[Array, " N"] | None = None
    placement: Placement | None = None

    @property
    def has_features(self) -> bool:
        """Whether the inputs are features computed by the frozen part of a model."""
        return self.prints is not None

    @property
    def is_weighted(self) -> bool:
        """Whether examples have weights."""
        return self.weights is not None

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        return jax.tree.leaves(self.x)[0].shape[0]

    @property
    def num_first(self) -> int:
        """The number of examples in the first batch; in memory, all of them."""
        return self.num_examples

    @property
    def num_held(self) -> int:
        """The number of examples that each device holds."""
        return num_held(self.num_examples, self.placement)


@pytree_dataclass(
    static=("batches", "first", "num_first", "is_weighted", "placement", "bars", "checkpoint")
)
class Stream:
    """A re-iterable of `(x, y)` or `(x, y, weights)` batches.

    `first` holds the shapes and dtypes of the first batch in hashable form, and `placement` tells
    over which devices its examples are spread, if they are. Passes show `bars`, and save their sums
    to a `checkpoint`, where there are any.
    """

    batches: streams.ByIdentity
    first: tuple
    num_first: int
    is_weighted: bool
    placement: Placement | None = None
    bars: Bars | None = None
    checkpoint: Checkpoint | None = None

    @property
    def num_held(self) -> int:
        """The number of examples of the first batch that each device holds."""
        return num_held(self.num_first, self.placement)


Data = InMemory | Stream
# What `as_data` reads; batches of torch are lists, those of Hugging Face mappings.
DataLike = (
    Data
    | tuple[PyTree, ...]
    | Mapping[str, PyTree]
    | Iterable[tuple[PyTree, ...] | list[PyTree] | Mapping[str, PyTree]]
)


def as_data(data: Any, *, progress: bool = False, once: bool = False) -> Data:
    """Read a tuple `(x, y)` as arrays in memory and any other re-iterable as a stream of batches.

    Parameters
    ----------
    data
        A tuple `(x, y)` of arrays or pytrees with one leading axis, or a list of such pairs, a
        torch `DataLoader`, or any object whose `iter()` starts again each time. The optional
        third part, `(x, y, weights)`, holds the weights of the examples, `(N,)`. A mapping with
        `"labels"`, such as a batch of Hugging Face, is the pair of what else it holds and these.
        `InMemory` and `Stream` are returned as they are.
    progress
        Show a bar for each pass over a stream: what is computed, and the examples a second.
    once
        Whether only a single pass will be made, so that an iterator, such as a generator, suffices.

    Raises
    ------
    TypeError
        If `data` is not iterable, or cannot be iterated again, or the weights are not an array.
    ValueError
        If it is empty, the leading axes differ, the weights are all zero or refused by
        `laplace_kit.fit`, or it is a loader of one process in a program of several, whose batches
        `shard_batches` makes global.
    """
    if isinstance(data, InMemory | Stream):
        return data
    data = as_pair(data)
    if isinstance(data, tuple):
        data = _in_memory(data)
        check_some_count(data.weights)
        return data
    batches = streams.iterator_of(data)
    if not once:
        streams.check_restarts(data, batches)
    first = next(batches, None)
    if first is None:
        raise ValueError(
            "Found empty data: no batch came, expected at least one example; check the loader."
        )
    batch = _as_batch(first)
    check_shared(data, (batch.x, batch.y))
    spec = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (batch.x, batch.y)
    )
    leaves, structure = jax.tree.flatten(spec)
    hashable = (tuple((leaf.shape, leaf.dtype) for leaf in leaves), structure)
    source = itertools.chain([first], batches) if once else data
    return Stream(
        streams.ByIdentity(source),
        hashable,
        batch.num_examples,
        batch.is_weighted,
        batch.placement,
        Bars() if is_shown(progress) else None,
    )


def with_weights(data: Data, weights: Any) -> Data:
    """Return data in memory with weights of examples; `None` leaves data as they are.

    Parameters
    ----------
    data
        In memory, without weights.
    weights
        As in `laplace_kit.weights.as_weights`.

    Raises
    ------
    TypeError, ValueError
        If the data are a stream or have weights, or the weights are not those of N examples.
    """
    if weights is None:
        return data
    if not isinstance(data, InMemory):
        raise TypeError(
            "Found weights= next to a stream of batches, expected them in the batches; make the "
            "loader yield (x, y, weights)."
        )
    if data.is_weighted:
        raise ValueError(
            "Found weights= next to data (x, y, weights), expected one of the two; leave out "
            "weights=, or pass (x, y)."
        )
    weights = as_weights(weights, data.num_examples)
    check_some_count(weights)
    _, weights = spread((data.x, weights), data.placement)
    return replace(data, weights=weights)


def _as_batch(item: Any) -> InMemory:
    item = as_pair(item)
    if isinstance(item, tuple | list) and not is_list_of_numbers(item):
        return _in_memory(item)
    kind = f"a {type(item).__name__}"
    if isinstance(item, Mapping):
        kind += f" with the keys {[*item]}"
    elif hasattr(item, "shape"):
        kind += f" of shape {tuple(item.shape)}"
    raise ValueError(
        f"Found {kind} where a batch (x, y) was expected; pass arrays in memory as a tuple (x, y), "
        "or an iterable that yields pairs, of inputs and targets, or mappings with 'labels'."
    )


def _in_memory(parts: Any) -> InMemory:
    if len(parts) not in (2, 3):
        raise ValueError(
            f"Found a {type(parts).__name__} of {len(parts)} as data, expected (x, y) or "
            "(x, y, weights); put several inputs or targets into one pytree, for example "
            "((x1, x2), y)."
        )
    x, y = as_arrays(parts[0], "inputs"), as_arrays(parts[1], "targets")
    num = common_length(x, y)
    weights = None
    if len(parts) == 3 and parts[2] is not None:
        weights = as_weights(parts[2], num)
    placement = placement_of((x, y))
    x, y, weights = spread((x, y, weights), placement)
    return InMemory(x, y, weights=weights, placement=placement)


def with_checkpoint(data: Data, directory: Checkpoint | str | os.PathLike) -> Stream:
    """Return a stream whose passes save their sums; see `laplace_kit.checkpoint`.

    Raises
    ------
    TypeError
        If the data are in memory.
    ValueError
        If there are several processes, and the batches are not spread over devices.
    """
    if isinstance(data, InMemory):
        raise TypeError(
            "Found checkpoint= with data in memory, expected a stream of batches, whose passes are "
            "resumed; leave out checkpoint=, or pass a loader of batches."
        )
    if jax.process_count() > 1 and data.placement is None:
        raise ValueError(
            f"Found checkpoint= in {jax.process_count()} processes whose batches are not spread "
            "over devices, expected those of lk.data.shard_batches(loader, mesh, axis); spread "
            "them, or leave out checkpoint=."
        )
    return replace(data, checkpoint=as_checkpoint(directory))


def forget(data: Data) -> None:
    """Remove the sums that a stream has saved, as those of data that are refused."""
    if isinstance(data, Stream) and data.checkpoint is not None:
        release(data.checkpoint, shared=is_shared(data))


def is_shared(data: Data) -> bool:
    """Return whether data are a stream over which several processes pass together."""
    is_placed = isinstance(data, Stream) and data.placement is not None
    return is_placed and data.placement.is_shared


def batch_spec(data: Data) -> tuple[PyTree, PyTree]:
    """Return shapes and dtypes of `(x, y)`: of all examples in memory, or of the first batch."""
    if isinstance(data, InMemory):
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (data.x, data.y))
    leaves, structure = data.first
    return jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])


def chunk_spec(data: Stream) -> Chunk:
    """Return shapes and dtypes of the first batch of a stream as one chunk."""
    weight = jax.ShapeDtypeStruct((data.num_first,), np.float32)
    return jax.eval_shape(Chunk, *batch_spec(data), weight)


def whole(data: InMemory) -> Chunk:
    """Return all examples as one chunk."""
    weights = data.weights
    weight = jnp.ones(data.num_examples, jnp.float32) if weights is None else weights
    return Chunk(data.x, data.y, weight, data.prints)


def read_batches(data: Data, name: str | None = None, run: Run | None = None) -> Iterator[InMemory]:
    """Yield the batches of one pass over data, each like the first; in memory all are one batch.

    Parameters
    ----------
    data
        In memory, or a stream.
    name
        What is computed, for the bar of a stream that shows any; `None` for a short look.
    run
        The pass, if it may go on where it was interrupted.
    """
    if isinstance(data, InMemory):
        yield data
        return
    batches = _like_first(data, data.batches if run is None else run.batches(_as_batch))
    if data.bars is None or name is None:
        yield from batches
        return
    num, done = length_of(data.batches), 0 if run is None else run.num_examples
    yield from data.bars.over(batches, name, _num_examples, num_batches=num, done=done)


def _num_examples(batch: InMemory) -> int:
    return batch.num_examples


def _like_first(data: Stream, items: Iterable) -> Iterator[InMemory]:
    """Yield batches as arrays, and refuse one unlike the first."""
    first = [leaf.shape[1:] for leaf in jax.tree.leaves(batch_spec(data))]
    for item in items:
        batch = _as_batch(item)
        found = [leaf.shape[1:] for leaf in jax.tree.leaves((batch.x, batch.y))]
        if found != first:
            raise ValueError(
                f"Found a batch whose examples have the shapes {listed(found)}, expected those of "
                f"the first batch, {listed(first)}; make batches differ only in their number of "
                "examples."
            )
        if batch.is_weighted != data.is_weighted:
            has = "with" if batch.is_weighted else "without"
            raise ValueError(
                f"Found a batch {has} weights although the first one was not, expected "
                "(x, y, weights) in every batch, or in none."
            )
        yield batch


def take(batch: InMemory, rows: np.ndarray) -> InMemory:
    """Select rows on the host: on the device each batch size would need its own program."""
    return replace(jax.tree.map(lambda leaf: fetch_array(leaf)[rows], batch), placement=None)
