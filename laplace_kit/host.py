"""Looks of the host at arrays, also at those of which several processes hold a part each.

A program of several processes runs the same lines in each of them. What spans the processes is
gathered, which all of them must do together; what one process has by itself it reads by itself.
"""

import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

_T = TypeVar("_T")


def fetch(tree: PyTree) -> PyTree:
    """Return a pytree with its arrays on the host, as NumPy arrays.

    Arrays that this process has, or that are the same on every device, are read. Those sharded over
    several processes are gathered: every process must call this then, and gets the whole array, as
    does each device on the way. Reduce what is large before.

    Parameters
    ----------
    tree
        Arrays of JAX or NumPy, and numbers.
    """
    if any(is_scattered(leaf) for leaf in jax.tree.leaves(tree)):
        tree = jax.tree.map(lambda leaf: _gathered(leaf) if is_scattered(leaf) else leaf, tree)
    return jax.tree.map(np.asarray, jax.device_get(tree))


def fetch_array(values: Any, dtype: Any = None) -> np.ndarray:
    """Return one array-like on the host, as `fetch` reads arrays; lists become one array."""
    return np.asarray(fetch(values) if isinstance(values, jax.Array) else values, dtype)


def is_scattered(leaf: Any) -> bool:
    """Return whether this is an array of which this process has only a part."""
    return _is_known(leaf) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)


def spans_processes(tree: PyTree) -> bool:
    """Return whether any array lies on devices of several processes, whole or in parts."""
    return jax.process_count() > 1 and any(
        _is_known(leaf) and not leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)
    )


def is_first() -> bool:
    """Return whether this is process 0, which writes and shows what is the same in all."""
    return jax.process_index() == 0


def by_first(work: Callable[[], None], *, shared: bool) -> None:
    """Do something in process 0 alone, such as writing a file; see `in_step`."""
    in_step(work if not shared or is_first() else _nothing, shared=shared)


def in_step(work: Callable[[], _T], *, shared: bool) -> _T:
    """Do something in every process, and wait until process 0 has done it.

    Parameters
    ----------
    work
        A function without arguments.
    shared
        Whether all processes do this together; otherwise this process works for itself.

    Raises
    ------
    OSError
        In every process, if the work raised one in process 0.
    """
    if not shared:
        return work()
    from jax.experimental import multihost_utils

    result, failed = None, None
    try:
        result = work()
    except OSError as error:
        failed = error
    is_done = multihost_utils.broadcast_one_to_all(np.array(failed is None))
    if failed is not None:
        raise failed
    if not is_done:
        raise OSError("Found an error in process 0, which writes for all; see its own message.")
    return result


def _is_known(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)


def _nothing() -> None:
    pass


def _gathered(array: Array) -> np.ndarray:
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)


def extremes(values: ArrayLike) -> tuple[float, float]:
    """Return the smallest and the largest of some values, both NaN if any value is.

    Parameters
    ----------
    values
        At least one. On the host no program is compiled; sharded over processes, each device looks
        at its own part.
    """
    found = _extremes_on_device(values) if is_scattered(values) else fetch_array(values)
    if isinstance(found, np.ndarray):
        return float(found.min()), float(found.max())
    low, high = fetch(found)
    return float(low), float(high)


@jax.jit
def _extremes_on_device(values: Array) -> tuple[Array, Array]:
    return values.min(), values.max()


def check_same(what: str, tree: PyTree, *, shared: bool = False) -> None:
    """Refuse arrays of single processes that differ, next to arrays that all processes share.

    A program over the devices of all processes takes what is not spread over them to be the same in
    each. Every process must call this.

    Parameters
    ----------
    what
        What the arrays are, in the plural, for the message.
    tree
        Arrays of which some may span the processes; those that do are not read.
    shared
        Whether the processes share more than these arrays, such as the batches of a stream.

    Raises
    ------
    ValueError
        If the others differ between processes.
    """
    if not (shared or spans_processes(tree)):
        return
    leaves = (leaf for leaf in jax.tree.leaves(tree) if not isinstance(leaf, jax.core.Tracer))
    own = [leaf for leaf in leaves if not spans_processes(leaf)]
    number = 0
    for leaf in fetch(own):
        number = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8), number)
    if len({*agree(number).tolist()}) > 1:
        raise ValueError(
            f"Found {what} on the host of each of {jax.process_count()} processes that differ "
            "between them, expected the same in each next to arrays that all of them share; make "
            "parts of the data one array, jax.make_array_from_process_local_data(sharding, own), "
            "and batches global ones, lk.data.shard_batches(loader, mesh, axis)."
        )


def agree(number: int) -> np.ndarray:
    """Return the number that each process has, in the order of the processes; all must call it."""
    if jax.process_count() == 1:
        return np.array([number])
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(np.array(number, np.uint32))
