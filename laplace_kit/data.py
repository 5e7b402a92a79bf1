"""One type for data: arrays in memory, or a re-iterable stream of batches.

Sums over examples run through `sum_over`: in memory one compiled program scans over chunks of a
fixed size; over a stream the host loops over one compiled step. The last chunk is brought to size
with examples that were already there and a weight of zero, so that no padded zeros ever reach the
model and no ragged batch recompiles.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree, UInt32

from laplace_kit import streams
from laplace_kit.arrays import as_arrays, is_list_of_numbers
from laplace_kit.tree import pytree_dataclass
from laplace_kit.xla_cpu import adapted

# Kept with a posterior, for what is judged on training data after the fit.
NUM_EXAMPLES = 256


@pytree_dataclass()
class Chunk:
    """Some examples: inputs, targets, and a weight of 0 or 1 each; `prints` as in `InMemory`."""

    x: PyTree
    y: PyTree
    weight: Float[Array, " B"]
    prints: UInt32[Array, " B"] | None = None


@pytree_dataclass()
class InMemory:
    """Inputs and targets as arrays with one leading axis of examples.

    Inputs that were computed, by the frozen part of a model, come with the fingerprints of the
    examples that they were computed from, and may be infinite as a mask is.
    """

    x: PyTree
    y: PyTree
    prints: UInt32[Array, " N"] | None = None

    @property
    def of_features(self) -> bool:
        """Whether the inputs were computed."""
        return self.prints is not None

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        return jax.tree.leaves(self.x)[0].shape[0]

    @property
    def num_first(self) -> int:
        """The number of examples of the first batch: here all are one."""
        return self.num_examples


@pytree_dataclass(static=("batches", "first", "num_first", "progress"))
class Stream:
    """A re-iterable of `(x, y)` batches; `first` describes the first one's shapes, hashably."""

    batches: Iterable
    first: tuple
    num_first: int
    progress: bool


Data = InMemory | Stream
# What `as_data` reads; batches of torch are lists.
DataLike = Data | tuple[PyTree, PyTree] | Iterable[tuple[PyTree, PyTree] | list[PyTree]]


def as_data(data: Any, *, progress: bool = False, once: bool = False) -> Data:
    """Read a pair `(x, y)` as arrays in memory and any other re-iterable as a stream of batches.

    Parameters
    ----------
    data
        A tuple `(x, y)` of arrays or pytrees with one leading axis, or a list of such pairs, a
        torch `DataLoader`, or any object whose `iter()` starts afresh each time. What is already
        `InMemory` or `Stream` is returned as it is.
    progress
        Show a bar for each pass over a stream.
    once
        Whether a single pass will be made, for which an iterator, such as a generator, will do.

    Raises
    ------
    TypeError
        If `data` is not iterable, or cannot be iterated again.
    ValueError
        If it is empty, or the leading axes differ.
    """
    if isinstance(data, InMemory | Stream):
        return data
    if isinstance(data, tuple):
        return _in_memory(data)
    batches = streams.iterator_of(data)
    if not once:
        streams.check_restarts(data, batches)
    first = next(batches, None)
    if first is None:
        raise ValueError(
            "Found empty data: no batch came, expected at least one example; check the loader."
        )
    batch = _as_batch(first)
    spec = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (batch.x, batch.y)
    )
    leaves, structure = jax.tree.flatten(spec)
    hashable = (tuple((leaf.shape, leaf.dtype) for leaf in leaves), structure)
    source = itertools.chain([first], batches) if once else data
    return Stream(streams.ByIdentity(source), hashable, batch.num_examples, progress)


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


def _in_memory(pair: Any) -> InMemory:
    if len(pair) != 2:
        raise ValueError(
            f"Found a {type(pair).__name__} of {len(pair)} as data, expected a pair (x, y); put "
            "several inputs into one pytree, for example ((x1, x2), y). Examples have no weights: "
            "a loss of your own may take them with the targets, (x, (y, w)) for "
            "lk.FromLoss(lambda f, target: target[1] * loss(f, target[0]))."
        )
    x, y = as_arrays(pair[0], "inputs"), as_arrays(pair[1], "targets")
    leaves = jax.tree.leaves((x, y))
    shapes = _listed([leaf.shape for leaf in leaves])
    if not jax.tree.leaves(x) or any(leaf.ndim == 0 for leaf in leaves):
        raise ValueError(
            f"Found data with the shapes {shapes or '()'}, expected arrays with a leading axis of "
            "examples; add one with x[None]."
        )
    if len({leaf.shape[0] for leaf in leaves}) > 1:
        is_rows = isinstance(x, list) and len(x) == leaves[-1].shape[0]
        remedy = "; of a list of examples make one array, np.stack(x)" if is_rows else ""
        raise ValueError(
            f"Found data whose leading axes differ ({shapes}), expected the same number of "
            f"examples in every array of x and y{remedy}."
        )
    if leaves[0].shape[0] == 0:
        raise ValueError(
            f"Found empty data (shapes {shapes}), expected at least one example; check how the "
            "data were selected."
        )
    return InMemory(x, y)


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
                f"Found a batch whose examples have the shapes {_listed(found)}, expected those of "
                f"the first batch, {_listed(first)}; make every batch alike but for the number of "
                "examples."
            )
        yield batch


def gather(data: DataLike) -> tuple[PyTree, PyTree]:
    """Return inputs and targets as whole arrays, from memory or from one pass over batches."""
    pairs = [(batch.x, batch.y) for batch in read_batches(as_data(data, once=True))]
    return pairs[0] if len(pairs) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a), *pairs)


def first_examples(data: Data, num: int) -> tuple[PyTree, PyTree]:
    """Return some examples: in memory evenly spread over all, of a stream the first that come."""
    if isinstance(data, InMemory):
        total = data.num_examples
        if total <= num:
            return data.x, data.y
        return _rows((data.x, data.y), np.arange(num) * total // num)
    pairs, found = [], 0
    for batch in read_batches(data):
        pairs.append(_take(batch, np.arange(min(batch.num_examples, num - found))))
        found += batch.num_examples
        if found >= num:
            break
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pairs)


@jax.jit
def _rows(arrays: PyTree, rows: Int[Array, " M"]) -> PyTree:
    def take(arrays, rows):
        return jax.tree.map(lambda leaf: leaf[rows], arrays)

    return _automatic(take, _sharding_of(arrays, PartitionSpec()))(arrays, rows)


# --- sums over examples -------------------------------------------------------------------------


def sum_over(fn: Callable, args: PyTree, data: Data, batch_size: int | None) -> PyTree:
    r"""Return $\sum_{\text{chunks}} \mathrm{fn}(\mathrm{args}, \text{chunk})$.

    Parameters
    ----------
    fn
        A module-level function `(args, chunk) -> pytree of sums`. It must weigh each example by
        `chunk.weight`. Being static, it is compiled once per shape of `args` and of the chunk.
    args
        A pytree of arrays: everything that `fn` needs besides the chunk.
    data
        In memory, or a stream.
    batch_size
        The number of examples in a chunk, at most; `None` for all in memory (or a whole batch).

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
        num = data.num_examples
        return _scan_sum(fn, args, data, min(batch_size or num, num))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args)):
        raise TypeError(
            "Found a stream of batches inside a JAX transformation (jit, vmap, grad), expected "
            "concrete values, as the host loops over the batches; call it outside, or pass the "
            "data in memory as a tuple (x, y)."
        )
    total = None
    for chunk in chunks(data, batch_size):
        if total is None:  # zeros made on the host: a first step of its own would be a program more
            spec = _of_chunk.eval_shape(fn, args, chunk)
            total = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), spec)
        total = _step(fn, args, chunk, total)
    if total is None:
        raise TypeError(
            "Found no batch in a pass over the data after the first one, expected the same batches "
            "in every pass; iter(data) must make a new iterator each time: wrap it as list(data)."
        )
    return total


@partial(jax.jit, static_argnums=0, inline=True)
def one_step(fn: Callable, args: PyTree, chunk: PyTree) -> PyTree:
    """Return `fn(args, chunk)`, traced once for whoever counts the step and whoever loops it."""
    return fn(args, chunk)


@partial(jax.jit, static_argnames=("fn", "batch_size"))
def _scan_sum(fn, args, data, batch_size):
    replicated = _sharding_of(data, PartitionSpec())
    return _automatic(partial(_sum_chunks, fn, batch_size), replicated)(args, data)


def _sum_chunks(fn, batch_size, args, data):
    fn, num = adapted(partial(one_step, fn)), data.num_examples
    if batch_size == num:
        return _accumulable(fn(args, _slice(data, 0, num)))
    shapes = jax.eval_shape(lambda: _accumulable(fn(args, _slice(data, 0, batch_size))))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(total, i):
        return jax.tree.map(jnp.add, total, fn(args, _slice(data, i, batch_size))), None

    return jax.lax.scan(body, zeros, jnp.arange(-(-num // batch_size)))[0]


def _automatic(fn: Callable, out_sharding: NamedSharding | None) -> Callable:
    """Leave shardings to the compiler within `fn`, where arrays have explicit ones.

    Otherwise every product over examples would have to name its own.
    """
    if out_sharding is None:
        return fn
    return jax.sharding.auto_axes(fn, out_sharding=out_sharding)


def _sharding_of(arrays: PyTree, spec: PartitionSpec) -> NamedSharding | None:
    """Return a sharding on the mesh over which any of these arrays is explicitly sharded."""
    for leaf in jax.tree.leaves(arrays):
        found = jax.typeof(leaf).sharding
        if any(found.spec):
            return NamedSharding(found.mesh, spec)
    return None


@partial(jax.jit, static_argnames="fn", inline=True)
def _of_chunk(fn, args, chunk):
    return _accumulable(adapted(partial(one_step, fn))(args, chunk))


@partial(jax.jit, static_argnames="fn", donate_argnames="total")
def _step(fn, args, chunk, total):
    return jax.tree.map(jnp.add, total, _of_chunk(fn, args, chunk))


def _accumulable(sums: PyTree) -> PyTree:
    """Give floating sums at least float32, so that many small terms are not lost."""
    return jax.tree.map(
        lambda s: (
            s.astype(jnp.promote_types(s.dtype, jnp.float32))
            if jnp.issubdtype(s.dtype, jnp.floating)
            else s
        ),
        sums,
    )


def _slice(data: InMemory, i: int | Int[Array, ""], batch_size: int) -> Chunk:
    """Cut chunk `i`; the last one starts earlier and gives the examples seen before no weight."""
    if batch_size == data.num_examples:
        return Chunk(data.x, data.y, jnp.ones(batch_size, jnp.float32), data.prints)
    start = jnp.minimum(i * batch_size, data.num_examples - batch_size)
    x, y, prints = jax.tree.map(
        lambda a: jax.lax.dynamic_slice_in_dim(a, start, batch_size), (data.x, data.y, data.prints)
    )
    is_new = start + jnp.arange(batch_size) >= i * batch_size
    return Chunk(x, y, is_new.astype(jnp.float32), prints)


def chunks(data: Stream, batch_size: int | None) -> Iterator[Chunk]:
    """Cut the batches of a stream into chunks of one size, the last of each batch filled up."""
    size = min(batch_size or data.num_first, data.num_first)
    for batch in read_batches(data):
        num = batch.num_examples
        for low in range(0, num, size):
            rows = np.minimum(np.arange(low, low + size), num - 1)
            weight = (np.arange(low, low + size) < num).astype(np.float32)
            x, y = (batch.x, batch.y) if num == size else _take(batch, rows)
            yield Chunk(x, y, jnp.asarray(weight))


def _listed(shapes: list[tuple[int, ...]]) -> str:
    """Return shapes as text, the first of many."""
    return ", ".join(map(str, shapes[:6])) + (", ..." if len(shapes) > 6 else "")


def _take(batch: InMemory, rows: np.ndarray) -> tuple[PyTree, PyTree]:
    """Select rows on the host: on the device each size of batch would need a program of its own."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], (batch.x, batch.y))


# --- maps over inputs ---------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("fn", "batch_size"))
def map_over(fn: Callable, args: PyTree, x: PyTree, batch_size: int) -> PyTree:
    """Return `fn(args, x)` row by row, computed in chunks of `batch_size` inputs.

    Parameters
    ----------
    fn
        A module-level function `(args, x) -> pytree` that keeps the leading axis of `x`.
    args, x
        Pytrees of arrays; `x` with a leading axis of N inputs.
    batch_size
        The number of inputs held at a time.
    """
    first = jax.typeof(jax.tree.leaves(x)[0]).sharding
    by_rows = _sharding_of(x, PartitionSpec(*first.spec[:1]))
    return _automatic(partial(_map_chunks, fn, batch_size), by_rows)(args, x)


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
