"""Loaders whose batches are spread over devices: in each process a loader of its own examples."""

import dataclasses
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from laplace_kit import streams
from laplace_kit.arrays import as_pair, on_host
from laplace_kit.host import agree, spans_processes


@dataclasses.dataclass(frozen=True, eq=False)
class ShardedBatches:
    """The batches of a loader, spread over the devices of a mesh; made by `shard_batches`.

    Iterated, it yields `(x, y, weights)` of global arrays, all of one shape: rows that only fill a
    batch up repeat others, at weight zero.
    """

    loader: Iterable
    mesh: Mesh
    axis: str | tuple[str, ...]

    def __iter__(self) -> Iterator[tuple[PyTree, PyTree, Float[Array, " B"]]]:
        return (batch for batch, _ in self.with_rows())

    def with_rows(self) -> Iterator[tuple[tuple, np.ndarray]]:
        """Yield each batch, and which of its rows are examples and do not only fill it up."""
        iterator = streams.iterator_of(self.loader)
        streams.check_restarts(self.loader, iterator)
        batches = (_read(item) for item in iterator)
        first = next(batches, None)
        size = self._agreed_size(first)
        parts, filling = _parts(first, batches, size), first
        while True:
            own = next(parts, None)
            num = 0 if own is None else own.num
            found = self._agree(num)
            if not found.any():
                return
            filling = filling if own is None else own
            whole = jax.tree.map(partial(_global, self._by_rows), filling.filled(num, size))
            yield whole, self._is_example(found, size)

    @property
    def _by_rows(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(self.axis))

    @property
    def _num_parts(self) -> int:
        """The number of parts into which the rows of a global batch are cut."""
        axes = (self.axis,) if isinstance(self.axis, str) else self.axis
        return int(np.prod([self.mesh.shape[axis] for axis in axes]))

    def _agreed_size(self, first: "_Batch | None") -> int:
        """Return the number of rows of this process in every batch, the same in all processes."""
        kind = 0 if first is None else first.kind
        nums, kinds = self._agree(0 if first is None else first.num), self._agree(kind)
        if not nums.all():
            raise ValueError(
                f"Found no batch in the loader of process {int(np.argmin(nums))}, expected at "
                "least one in each process; let every process have a part of the data."
            )
        if len({*kinds.tolist()}) > 1:
            raise ValueError(
                "Found batches whose examples differ in shape, dtype or whether they have weights "
                f"between the processes (here {first.described}), expected the same in each; check "
                "how their loaders prepare examples."
            )
        places = self._by_rows.addressable_devices_indices_map((self._num_parts,)).values()
        num_own = len({place.start for (place,) in places})
        return -(-int(nums.max()) // num_own) * num_own

    def _agree(self, number: int) -> np.ndarray:
        """Return the number that each process has; a mesh of one process has no others to ask."""
        owners = {device.process_index for device in self.mesh.devices.flat}
        if owners == {jax.process_index()}:
            return np.full(jax.process_count(), number)
        return agree(number)

    @property
    def _owners(self) -> np.ndarray:
        """The process of each part of a global batch; the first of those that hold the same."""
        owners = np.full(self._num_parts, jax.process_count())
        places = self._by_rows.devices_indices_map((self._num_parts,))
        for device, (place,) in places.items():
            part = place.start or 0
            owners[part] = min(owners[part], device.process_index)
        return owners

    def _is_example(self, nums: np.ndarray, size: int) -> np.ndarray:
        """Return for each row of a global batch whether it is an example, from numbers of rows."""
        owners = self._owners
        parts = np.zeros((self._num_parts, size * len({*owners.tolist()}) // self._num_parts), bool)
        for owner in {*owners.tolist()}:
            own = np.arange(size) < nums[owner]
            parts[owners == owner] = own.reshape(-1, parts.shape[1])
        return parts.reshape(-1)


def shard_batches(
    loader: Iterable[Any], mesh: Mesh, axis: str | tuple[str, ...] = "data"
) -> ShardedBatches:
    """Return the batches of a loader, spread over the devices of a mesh.

    In a program of several processes every process passes a loader of its own examples, and each
    gets the same global batches, of the examples of all. The loaders may have different numbers of
    batches, and batches different numbers of examples: what is missing is filled up at weight zero,
    so that sums are those over the union of all examples.

    Parameters
    ----------
    loader
        A re-iterable of `(x, y)` or `(x, y, weights)`.
    mesh
        The mesh of all devices.
    axis
        The axis of the mesh over which examples are spread, or several.

    Returns
    -------
    batches
        For `lk.fit` and all that takes data. Cost of a batch: that of its transfer to the devices,
        and that processes tell each other how many examples they have.

    Raises
    ------
    ValueError
        If the mesh has no such axis. When iterated: if the loader of a process is empty, or
        processes have examples of different shapes.
    """
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    unknown = [name for name in axes if name not in mesh.axis_names]
    if unknown or not axes:
        raise ValueError(
            f"Found axis={axis!r} for a mesh with the axes {mesh.axis_names}, expected one of "
            "these, or a tuple of them; name the axis over which examples are spread."
        )
    return ShardedBatches(loader, mesh, axes)


def check_shared(batches: Iterable, first: PyTree) -> None:
    """Refuse a loader of one process alone in a program of several.

    Parameters
    ----------
    batches
        The loader.
    first
        The arrays of its first batch.

    Raises
    ------
    ValueError
        If it is neither of `shard_batches` nor yields arrays that span processes: each process
        would have another result, of its own examples.
    """
    if jax.process_count() == 1 or isinstance(batches, ShardedBatches) or spans_processes(first):
        return
    raise ValueError(
        f"Found a loader ({type(batches).__name__}) of the examples of one process in a program of "
        f"{jax.process_count()} processes, expected batches that all of them share; wrap the "
        "loader, lk.data.shard_batches(loader, mesh, axis), where mesh has the devices of all "
        "processes, or of this one alone if it works by itself."
    )


# --- the batches of one process -------------------------------------------------------------------


class _Batch(NamedTuple):
    """Examples of this process, on the host; `weights` is `None` if they have none."""

    x: PyTree
    y: PyTree
    weights: np.ndarray | None

    @property
    def num(self) -> int:
        return len(jax.tree.leaves(self.x)[0])

    @property
    def described(self) -> str:
        shapes = [f"{leaf.shape[1:]} {leaf.dtype}" for leaf in jax.tree.leaves((self.x, self.y))]
        return ", ".join(shapes) + ("" if self.weights is None else ", with weights")

    @property
    def kind(self) -> int:
        """A number that tells shapes, dtypes and structures apart, never zero."""
        return zlib.crc32(f"{self.described} {jax.tree.structure((self.x, self.y))}".encode()) | 1

    def filled(self, num: int, size: int) -> tuple[PyTree, PyTree, np.ndarray]:
        """Return the first rows, filled up to a size by the last of them at weight zero."""
        rows = np.minimum(np.arange(size), max(num - 1, 0))
        weights = np.ones(self.num, np.float32) if self.weights is None else self.weights
        x, y, weights = jax.tree.map(lambda leaf: leaf[rows], (self.x, self.y, weights))
        return x, y, np.where(np.arange(size) < num, weights, 0)


def _read(item: Any) -> _Batch:
    """Read a batch; what it holds is checked as any batch of a stream is, once it is global."""
    item = as_pair(item)
    if not isinstance(item, tuple | list) or len(item) not in (2, 3):
        raise ValueError(
            f"Found a {type(item).__name__} as a batch, expected (x, y) or (x, y, weights); make "
            "the loader yield pairs, of inputs and targets."
        )
    x, y, *weights = on_host(tuple(item), "examples")
    return _Batch(x, y, weights[0] if weights else None)


def _parts(first: _Batch, rest: Iterator[_Batch], size: int) -> Iterator[_Batch]:
    """Yield batches of at most one size, cut from batches of any size."""
    for batch in (one for several in ((first,), rest) for one in several):
        for low in range(0, batch.num, size):
            rows = slice(low, low + size)
            yield jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch)


def _global(sharding: NamedSharding, rows: np.ndarray) -> Array:
    rows = rows.astype(jax.dtypes.canonicalize_dtype(rows.dtype))
    if sharding.mesh.size == 1:  # nothing is spread: types need not name the mesh
        return jax.device_put(rows, sharding.mesh.devices.item())
    return jax.make_array_from_process_local_data(sharding, rows)
