"""One type for data: arrays in memory, or a re-iterable stream of batches.

Sums over examples run through `sum_over`: in memory one compiled program scans over chunks of a
fixed size; over a stream the host loops over one compiled step. The last chunk is filled up with
examples seen before, at weight zero, so that no zero padding reaches the model and no ragged batch
recompiles.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt32

from laplace_kit import streams
from laplace_kit.arrays import as_arrays, common_length, is_list_of_numbers, listed
from laplace_kit.host import fetch_array
from laplace_kit.loaders import ShardedBatches as ShardedBatches
from laplace_kit.loaders import check_shared
from laplace_kit.loaders import shard_batches as shard_batches
from laplace_kit.placement import (
    Placement,
    check_devices,
    in_parts,
    num_held,
    placement_of,
    spread,
)
from laplace_kit.sharding import shard as shard
from laplace_kit.tree import pytree_dataclass, replace
from laplace_kit.weights import as_weights, check_some_count
from laplace_kit.xla_cpu import adapted

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


@pytree_dataclass(static=("batches", "first", "num_first", "progress", "is_weighted", "placement"))
class Stream:
    """A re-iterable of `(x, y)` or `(x, y, weights)` batches.

    `first` holds the shapes and dtypes of the first batch in hashable form, and `placement` tells
    over which devices its examples are spread, if they are.
    """

    batches: Iterable
    first: tuple
    num_first: int
    progress: bool
    is_weighted: bool
    placement: Placement | None = None

    @property
    def num_held(self) -> int:
        """The number of examples of the first batch that each device holds."""
        return num_held(self.num_first, self.placement)


Data = InMemory | Stream
# What `as_data` reads; batches of torch are lists.
DataLike = Data | tuple[PyTree, ...] | Iterable[tuple[PyTree, ...] | list[PyTree]]


def as_data(data: Any, *, progress: bool = False, once: bool = False) -> Data:
    """Read a tuple `(x, y)` as arrays in memory and any other re-iterable as a stream of batches.

    Parameters
    ----------
    data
        A tuple `(x, y)` of arrays or pytrees with one leading axis, or a list of such pairs, a
        torch `DataLoader`, or any object whose `iter()` starts again each time. The optional
        third part, `(x, y, weights)`, holds the weights of the examples, `(N,)`. `InMemory` and
        `Stream` are returned as they are.
    progress
        Show a bar for each pass over a stream.
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
        progress,
        batch.is_weighted,
        batch.placement,
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
    return replace(data, weights=spread(weights, data.placement))


def _as_batch(item: Any) -> InMemory:
    if isinstance(item, tuple | list) and not is_list_of_numbers(item):
        return _in_memory(item)
    kind = f"a {type(item).__name__}"
    if isinstance(item, Mapping):
        kind += f" with the keys {[*item]}"
    elif hasattr(item, "shape"):
        kind += f" of shape {tuple(item.shape)}"
    raise ValueError(
        f"Found {kind} where a batch (x, y) was expected; pass arrays in memory as a tuple (x, y), "
        "or an iterable that yields pairs, of inputs and targets."
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


def batch_spec(data: Data) -> tuple[PyTree, PyTree]:
    """Return shapes and dtypes of `(x, y)`: of all examples in memory, or of the first batch."""
    if isinstance(data, InMemory):
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (data.x, data.y))
    leaves, structure = data.first
    return jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])


def read_batches(data: Data) -> Iterator[InMemory]:
    """Yield the batches of one pass over data, each like the first; in memory all are one batch."""
    if isinstance(data, InMemory):
        yield data
        return
    first = [leaf.shape[1:] for leaf in jax.tree.leaves(batch_spec(data))]
    for item in streams.with_bar(data.batches) if data.progress else data.batches:
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


# --- sums over examples -------------------------------------------------------------------------


def sum_over(fn: Callable, args: PyTree, data: Data, batch_size: int | None) -> PyTree:
    r"""Return $\sum_{\text{chunks}} \mathrm{fn}(\mathrm{args}, \text{chunk})$.

    Parameters
    ----------
    fn
        A module-level function `(args, chunk) -> pytree of sums`. It must weight each example by
        `chunk.weight`, and a factor that enters twice by its square root. It is static, and
        compiled once per shape of `args` and of the chunk.
    args
        A pytree of arrays: everything that `fn` needs besides the chunk.
    data
        In memory, or a stream.
    batch_size
        The number of examples in a chunk, on each device, at most; `None` for all in memory (or a
        whole batch).

    Returns
    -------
    sums
        Accumulated over chunks in float32 or better.

    Raises
    ------
    TypeError
        If a stream is summed inside a transformation such as `jit`, where the host cannot loop.
    """
    if isinstance(data, InMemory):
        check_devices(args, data)
        return _scan_sum(fn, args, data, min(batch_size or data.num_held, data.num_held))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args)):
        raise TypeError(
            "Found a stream of batches inside a JAX transformation (jit, vmap, grad), expected "
            "concrete values, as the host loops over the batches; call it outside, or pass the "
            "data in memory as a tuple (x, y)."
        )
    size = min(batch_size or data.num_held, data.num_held)
    total = None
    for part in _parts(data, size):
        if total is None:  # zeros from the host: a separate first step would be one more program
            check_devices(args, part)
            spec = _part_sum.eval_shape(fn, args, part, size)
            total = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), spec)
        total = _step(fn, args, part, total, size)
    if total is None:
        raise TypeError(
            "Found no batch in a pass over the data after the first one, expected the same batches "
            "in every pass; iter(data) must make a new iterator each time: wrap it as list(data)."
        )
    return total


@partial(jax.jit, static_argnums=0, inline=True)
def one_step(fn: Callable, args: PyTree, chunk: PyTree) -> PyTree:
    """Return `fn(args, chunk)`; one trace serves the cost estimate and the loop."""
    return fn(args, chunk)


@partial(jax.jit, static_argnames=("fn", "batch_size"))
def _scan_sum(fn, args, data, batch_size):
    sums, rows = partial(_sum_chunks, fn, batch_size), replace(data, placement=None)
    return in_parts(sums, data.placement, args, rows, summed=True)


def _sum_chunks(fn, batch_size, args, data):
    fn, num = adapted(partial(one_step, fn)), data.num_examples
    if batch_size == num:
        return _accumulable(fn(args, _slice(data, 0, num)))
    shapes = jax.eval_shape(lambda: _accumulable(fn(args, _slice(data, 0, batch_size))))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(total, i):
        return jax.tree.map(jnp.add, total, fn(args, _slice(data, i, batch_size))), None

    return jax.lax.scan(body, zeros, jnp.arange(-(-num // batch_size)))[0]


@partial(jax.jit, static_argnames=("fn", "batch_size"), inline=True)
def _part_sum(fn, args, part, batch_size):
    if isinstance(part, InMemory):
        return _scan_sum(fn, args, part, min(batch_size, part.num_held))
    return _accumulable(adapted(partial(one_step, fn))(args, part))


@partial(jax.jit, static_argnames=("fn", "batch_size"), donate_argnames="total")
def _step(fn, args, part, total, batch_size):
    return jax.tree.map(jnp.add, total, _part_sum(fn, args, part, batch_size))


def _accumulable(sums: PyTree) -> PyTree:
    """Cast floating sums to at least float32, so that many small terms are not lost."""
    return jax.tree.map(
        lambda s: (
            s.astype(jnp.promote_types(s.dtype, jnp.float32))
            if jnp.issubdtype(s.dtype, jnp.floating)
            else s
        ),
        sums,
    )


def _slice(data: InMemory, i: int | Int[Array, ""], batch_size: int) -> Chunk:
    """Cut chunk `i`; the last one starts earlier, with weight zero for examples seen before."""
    if batch_size == data.num_examples:
        return whole(data)
    start = jnp.minimum(i * batch_size, data.num_examples - batch_size)
    part = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, batch_size), data)
    is_new = start + jnp.arange(batch_size) >= i * batch_size
    chunk = whole(part)
    return replace(chunk, weight=jnp.where(is_new, chunk.weight, 0))


def whole(data: InMemory) -> Chunk:
    """Return all examples as one chunk."""
    weights = data.weights
    weight = jnp.ones(data.num_examples, jnp.float32) if weights is None else weights
    return Chunk(data.x, data.y, weight, data.prints)


def chunks(data: Stream, batch_size: int | None) -> Iterator[Chunk]:
    """Cut the batches of a stream into chunks of one size, the last of each batch filled up.

    Batches that are spread over several devices are not cut.
    """
    for part in _parts(data, min(batch_size or data.num_held, data.num_held)):
        yield whole(part) if isinstance(part, InMemory) else part


def _parts(data: Stream, size: int) -> Iterator[Chunk | InMemory]:
    """Yield batches that are spread over several devices as they are, and chunks of the others."""
    for batch in read_batches(data):
        if batch.placement is not None:
            yield batch
            continue
        num = batch.num_examples
        for low in range(0, num, size):
            rows = np.minimum(np.arange(low, low + size), num - 1)
            is_new = (np.arange(low, low + size) < num).astype(np.float32)
            part = batch if num == size else take(batch, rows)
            weight = is_new if part.weights is None else is_new * fetch_array(part.weights)
            yield Chunk(part.x, part.y, jnp.asarray(weight))


def take(batch: InMemory, rows: np.ndarray) -> InMemory:
    """Select rows on the host: on the device each batch size would need its own program."""
    return jax.tree.map(lambda leaf: fetch_array(leaf)[rows], batch)


# --- maps over inputs ---------------------------------------------------------------------------


def map_over(
    fn: Callable, args: PyTree, x: PyTree, batch_size: int, placement: Placement | None = None
) -> PyTree:
    """Return `fn(args, x)` row by row, computed in chunks of `batch_size` inputs.

    Parameters
    ----------
    fn
        A module-level function `(args, x) -> pytree` that keeps the leading axis of `x`.
    args, x
        Pytrees of arrays; `x` with a leading axis of N inputs.
    batch_size
        The number of inputs held at a time, on each device.
    placement
        Over which devices the inputs are spread; by default as `placement_of` finds, which inside
        `jit` does not know of meshes of automatic axes. Rows of the result stay where they are.
    """
    check_devices(args, x)
    return _map_rows(fn, args, x, batch_size, placement or placement_of(x))


@partial(jax.jit, static_argnames=("fn", "batch_size", "placement"))
def _map_rows(fn, args, x, batch_size, placement):
    return in_parts(partial(_map_chunks, fn, batch_size), placement, args, x, summed=False)


def _map_chunks(fn, batch_size, args, x):
    fn, data = adapted(partial(one_step, fn)), InMemory(x, ())
    num = data.num_examples
    size = min(batch_size, num)
    if size == num:
        return fn(args, x)
    steps = -(-num // size)
    out = jax.lax.map(lambda i: fn(args, _slice(data, i, size).x), jnp.arange(steps))

    def join(stacked):
        head = stacked[:-1].reshape((steps - 1) * size, *stacked.shape[2:])
        return jnp.concatenate([head, stacked[-1][steps * size - num :]])

    return jax.tree.map(join, out)
