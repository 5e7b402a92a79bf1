"""Directories of arrays that are spread over devices, each part written where it lies, by orbax.

The content is that of a file of `storage.py`: a text that describes the tree, and arrays. No device
and no process needs more of an array than its own part.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from laplace_kit.host import agree, fetch_array, spans_processes
from laplace_kit.storage import decoded, encoded, refusing_damage

_HEADER = "header"


def write(path: str | os.PathLike, value: PyTree) -> None:
    """Write a tree to a directory, an existing one of this kind replaced; all processes call it.

    Parameters
    ----------
    path
        The directory, on a file system that all processes share.
    value
        As for `storage.write`.

    Raises
    ------
    ImportError
        If orbax-checkpoint is not installed.
    TypeError
        If the tree holds anything that cannot be stored.
    ValueError
        If there is a file, or a directory of something else.
    """
    checkpoints, path = _orbax(), _on_file_system(path)
    is_other = path.exists() and not _is_checkpoint(path)
    if agree(int(is_other)).any():  # all refuse, and none removes what another still looks at
        raise ValueError(
            f"Found {os.fspath(path)!r}, which holds something other than a saved posterior, "
            "expected a new directory, or one to be replaced; pass another path."
        )
    header, arrays = encoded(value)
    # What a process has by itself is the same in all, and one of them writes it.
    entries = {
        name: array if spans_processes(array) or jax.process_count() == 1 else fetch_array(array)
        for name, array in arrays.items()
    }
    with checkpoints.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {_HEADER: header} | entries, force=True)


def read(path: str | os.PathLike, mesh: Mesh | None) -> PyTree:
    """Read a tree that `write` wrote.

    Parameters
    ----------
    path
        The directory.
    mesh
        Devices over which arrays are spread as they were, by the names of its axes, where it has
        these axes and they divide the arrays; others lie on all of its devices. `None` for one
        device, which then has all.

    Raises
    ------
    ImportError
        If orbax-checkpoint is not installed.
    ValueError
        As `storage.read`.
    """
    checkpoints, path = _orbax(), _on_file_system(path)
    if not _is_checkpoint(path):
        raise ValueError(
            f"Found {os.fspath(path)!r}, a directory that holds something other than a posterior, "
            "or one that was not finished; expected one written by la.save(path, sharded=True)."
        )
    with refusing_damage(path), checkpoints.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(path).item_metadata
        like = {
            name: _like(part, mesh if name != _HEADER else None) for name, part in found.items()
        }
        arrays = checkpointer.restore(path, like)

        def load(name: str, dtype: str) -> Array:
            array = arrays[name]
            return jnp.asarray(array) if isinstance(array, np.ndarray) else array

        return decoded(arrays[_HEADER], load)


def _like(stored: Any, mesh: Mesh | None) -> np.ndarray | jax.ShapeDtypeStruct:
    """Return what an array is to be like: of NumPy, or of JAX and spread over a mesh."""
    if mesh is None:
        return np.broadcast_to(np.zeros((), stored.dtype), stored.shape)
    dtype = jax.dtypes.canonicalize_dtype(stored.dtype)
    where = NamedSharding(mesh, _spec(stored, mesh))
    return jax.ShapeDtypeStruct(stored.shape, dtype, sharding=where)


def _spec(stored: Any, mesh: Mesh) -> PartitionSpec:
    """Return the axes of a mesh over which an array is spread, those it was spread over."""
    spec = getattr(stored.sharding, "partition_spec", None) or ()

    def kept(entry: Any, size: int) -> Any:
        names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        known = all(name in mesh.axis_names for name in names)
        parts = int(np.prod([mesh.shape[name] for name in names])) if known else 0
        return names if parts and size % parts == 0 and names else None

    return PartitionSpec(*map(kept, spec, stored.shape))


def _on_file_system(path: str | os.PathLike) -> Path:
    if "://" in os.fspath(path):
        raise ValueError(
            f"Found {os.fspath(path)!r}, an address, expected a directory on a file system that "
            "all processes share; mount it, or copy the directory there afterwards."
        )
    return Path(path).absolute()


def _is_checkpoint(path: Path) -> bool:
    """Return whether orbax has finished a directory."""
    return (
        path.is_dir()
        and _orbax().utils.is_checkpoint_finalized(path)
        and any(path.glob("_METADATA"))
    )


def _orbax() -> ModuleType:
    """Import orbax where it is used: it takes a second."""
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            "Found no orbax-checkpoint, expected it for a posterior in a directory, of which each "
            "device writes its part; install it by `pip install orbax-checkpoint`, or use one "
            "file, la.save(path)."
        ) from error
    return orbax.checkpoint
