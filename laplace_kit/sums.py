"""Sums over examples, and maps over inputs: the only loops over data.

In memory one compiled program scans over chunks of a fixed size; over a stream the host loops over
one compiled step. The last chunk is filled up with examples seen before, at weight zero, so that no
zero padding reaches the model and no ragged batch recompiles.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Int, PyTree

from laplace_kit.bars import title_of
from laplace_kit.checkpoint import Run
from laplace_kit.data import (
    Chunk,
    Data,
    InMemory,
    Stream,
    chunk_spec,
    is_shared,
    read_batches,
    take,
    whole,
)
from laplace_kit.host import fetch_array
from laplace_kit.placement import (
    Placement,
    automatic,
    by_rows,
    check_devices,
    in_parts,
    num_held,
    placement_of,
    shapes,
    sharding_of_sums,
)
from laplace_kit.tree import replace
from laplace_kit.xla_cpu import adapted


def sum_over(
    fn: Callable, args: PyTree, data: Data, batch_size: int | None, *, together: bool = False
) -> PyTree:
    r"""Return $\sum_{\text{chunks}} \mathrm{fn}(\mathrm{args}, \text{chunk})$.

    Parameters
    ----------
    fn
        A module-level function `(args, chunk) -> pytree of sums`. It must weight each example by
        `chunk.weight`, and a factor that enters twice by its square root. It is static, and
        compiled once per shape of `args` and of the chunk. Bars show its `title`, see
        `laplace_kit.bars.titled`.
    args
        A pytree of arrays: everything that `fn` needs besides the chunk.
    data
        In memory, or a stream.
    batch_size
        The number of examples in a chunk, on each device, at most; `None` for all in memory (or a
        whole batch).
    together
        Whether all devices work on each chunk, of `batch_size` examples from every device, and keep
        a part each of the sums, along their leading axes: `fn` then sees the examples of all, and
        says by `laplace_kit.placement` what is to lie where. For data that are spread over devices.

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
        size = min(batch_size or data.num_held, data.num_held)
        return _scan_sum(fn, args, data, size, together)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args)):
        raise TypeError(
            "Found a stream of batches inside a JAX transformation (jit, vmap, grad), expected "
            "concrete values, as the host loops over the batches; call it outside, or pass the "
            "data in memory as a tuple (x, y)."
        )
    size = min(batch_size or data.num_held, data.num_held)
    return _sum_batches(fn, args, data, size, together)


@partial(jax.jit, static_argnums=0, inline=True)
def one_step(fn: Callable, args: PyTree, chunk: PyTree) -> PyTree:
    """Return `fn(args, chunk)`; one trace serves the cost estimate and the loop."""
    return fn(args, chunk)


@partial(jax.jit, static_argnames=("fn", "batch_size", "together"))
def _scan_sum(fn, args, data, batch_size, together=False):
    placement, rows = data.placement, replace(data, placement=None)
    if together and placement is not None:
        sums = partial(_sum_chunks, fn, batch_size, placement)
        return automatic(sums, args, rows, axes=placement.axes)
    return in_parts(partial(_sum_chunks, fn, batch_size, None), placement, args, rows, summed=True)


def _sum_chunks(fn, batch_size, placement, args, data):
    """Sum over chunks; with a placement each one has `batch_size` examples of every device."""
    fn, num = adapted(partial(one_step, fn)), num_held(data.num_examples, placement)
    if batch_size == num:
        return _accumulable(fn(args, _slice(data, 0, data.num_examples)))
    cut = partial(_slice_of_all, data, batch_size, placement)
    shapes = jax.eval_shape(lambda: _accumulable(fn(args, cut(0))))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(total, i):
        return by_rows(jax.tree.map(jnp.add, total, fn(args, cut(i))), placement), None

    steps = jnp.arange(-(-num // batch_size))
    return jax.lax.scan(body, by_rows(zeros, placement), steps)[0]


@partial(jax.jit, static_argnames=("fn", "batch_size", "together"), inline=True)
def _part_sum(fn, args, part, batch_size, together=False):
    if isinstance(part, InMemory):
        return _scan_sum(fn, args, part, min(batch_size, part.num_held), together)
    return _accumulable(adapted(partial(one_step, fn))(args, part))


@partial(jax.jit, static_argnames=("fn", "batch_size", "together"), donate_argnames="total")
def _step(fn, args, part, total, batch_size, together=False):
    return jax.tree.map(jnp.add, total, _part_sum(fn, args, part, batch_size, together))


def _sum_batches(fn: Callable, args: PyTree, data: Stream, size: int, together: bool) -> PyTree:
    title = title_of(fn)
    source, shared = data.batches.iterable, is_shared(data)
    run = Run(source, data.checkpoint, title, (args, size), shared=shared)
    total, is_first = None, True
    if run.saved.sums is not None:
        spec = one_step.eval_shape(fn, shapes(args), chunk_spec(data))
        total = jax.tree.unflatten(jax.tree.structure(spec), run.saved.sums)
    for batch in read_batches(data, title, run):
        for part in _parts(batch, size):
            if is_first:  # from zeros: a first step of its own would be one more program
                check_devices(args, part)
                if total is None:
                    spec = _part_sum.eval_shape(fn, args, part, size, together)
                    total = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), spec)
                axes = data.placement.axes if together and data.placement else None
                total = _placed(total, sharding_of_sums(part, args, axes=axes))
                is_first = False
            total = _step(fn, args, part, total, size, together)
        run.add(batch, batch.num_examples, total)
    if total is None:
        raise TypeError(
            "Found no batch in a pass over the data after the first one, expected the same batches "
            "in every pass; iter(data) must make a new iterator each time: wrap it as list(data)."
        )
    run.finish(total)
    return total


def _placed(sums: PyTree, where: Sharding | None) -> PyTree:
    """Return sums of the host where those of the first step will lie, for one program for all."""
    if where is None:
        return sums
    return jax.tree.map(
        lambda whole: jax.make_array_from_callback(
            whole.shape, where, lambda index: fetch_array(whole)[index]
        ),
        sums,
    )


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


def _slice_of_all(data: InMemory, size: int, placement: Placement | None, i: Any) -> Chunk:
    """Cut chunk `i` of the rows of every device, so that no row moves."""
    if placement is None:
        return _slice(data, i, size)
    cut = jax.vmap(lambda own: _slice(own, i, size))(_by_device(data, placement))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), cut)


def _by_device(rows: PyTree, placement: Placement) -> PyTree:
    """Return rows with an axis of devices before that of the rows that each of them has."""
    num = placement.num_parts
    return jax.tree.map(lambda leaf: leaf.reshape(num, -1, *leaf.shape[1:]), rows)


def chunks(data: Stream, batch_size: int | None, name: str | None = None) -> Iterator[Chunk]:
    """Cut the batches of a stream into chunks of one size, the last of each batch filled up.

    Batches that are spread over several devices are not cut. `name` is that of `read_batches`.
    """
    size = min(batch_size or data.num_held, data.num_held)
    for batch in read_batches(data, name):
        for part in _parts(batch, size):
            yield whole(part) if isinstance(part, InMemory) else part


def _parts(batch: InMemory, size: int) -> Iterator[Chunk | InMemory]:
    """Yield a batch that is spread over several devices as it is, and chunks of any other."""
    if batch.placement is not None:
        yield batch
        return
    num = batch.num_examples
    for low in range(0, num, size):
        rows = np.minimum(np.arange(low, low + size), num - 1)
        is_new = (np.arange(low, low + size) < num).astype(np.float32)
        part = batch if num == size else take(batch, rows)
        weight = is_new if part.weights is None else is_new * fetch_array(part.weights)
        yield Chunk(part.x, part.y, jnp.asarray(weight))


# --- maps over inputs ---------------------------------------------------------------------------


def map_over(
    fn: Callable,
    args: PyTree,
    x: PyTree,
    batch_size: int,
    placement: Placement | None = None,
    *,
    together: bool = False,
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
    together
        Whether all devices work on each chunk, as in `sum_over`, since arguments are spread over
        them.
    """
    check_devices(args, x)
    return _map_rows(fn, args, x, batch_size, placement or placement_of(x), together)


@partial(jax.jit, static_argnames=("fn", "batch_size", "placement", "together"))
def _map_rows(fn, args, x, batch_size, placement, together=False):
    if together and placement is not None:
        mapped = partial(_map_chunks, fn, batch_size, placement)
        return automatic(mapped, args, x, axes=placement.axes)
    mapped = partial(_map_chunks, fn, batch_size, None)
    return in_parts(mapped, placement, args, x, summed=False)


def _map_chunks(fn, batch_size, placement, args, x):
    fn, data = adapted(partial(one_step, fn)), InMemory(x, ())
    num = num_held(data.num_examples, placement)
    size = min(batch_size, num)
    if size == num:
        return by_rows(fn(args, x), placement)
    steps = -(-num // size)
    cut = partial(_slice_of_all, data, size, placement)
    out = jax.lax.map(lambda i: by_rows(fn(args, cut(i).x), placement), jnp.arange(steps))

    def join(stacked):
        head = stacked[:-1].reshape((steps - 1) * size, *stacked.shape[2:])
        return jnp.concatenate([head, stacked[-1][steps * size - num :]])

    if placement is None:
        return jax.tree.map(join, out)

    def join_all(stacked):
        of_each = stacked.reshape(steps, placement.num_parts, size, *stacked.shape[2:])
        joined = jax.vmap(join, in_axes=1)(of_each)
        return joined.reshape(-1, *joined.shape[2:])

    return by_rows(jax.tree.map(join_all, out), placement)
