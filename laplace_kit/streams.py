"""Iterables of batches: checks that they can be iterated again, identity, and their own state."""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from laplace_kit.host import fetch_array
from laplace_kit.storage import storable
from laplace_kit.tree import pytree_dataclass


class ByIdentity:
    """An iterable, hashable and compared by identity, unlike lists."""

    def __init__(self, iterable: Iterable):
        self.iterable = iterable

    def __iter__(self):
        return iter(self.iterable)

    def __len__(self):
        return len(self.iterable)

    def __eq__(self, other):
        return isinstance(other, ByIdentity) and self.iterable is other.iterable

    def __hash__(self):
        return id(self.iterable)


def iterator_of(data: Any) -> Iterator:
    """Return an iterator over batches; refuse one array, a mapping of arrays, and text."""
    is_one = hasattr(data, "shape") or isinstance(data, Mapping | str | bytes)
    if is_one or not isinstance(data, Iterable):
        raise TypeError(
            f"Found data of type {type(data).__name__}, expected a tuple (x, y) of arrays or a "
            "re-iterable of such pairs (a list of batches, a DataLoader)."
        )
    return iter(data)


def check_restarts(data: Iterable, iterator: Iterator) -> None:
    """Raise a `TypeError` for data whose next pass would continue where `iterator` ends.

    These are iterators, objects whose `__iter__` returns the same iterator each time, and loaders
    of such a data set. Other shared sources are found only by a second pass.
    """
    source = getattr(data, "dataset", None)  # a torch loader has one
    shared = isinstance(data, Iterator) or _continues(data, iterator)
    if shared or (isinstance(source, Iterable) and _continues(source, iter(source))):
        raise TypeError(
            f"Found a one-shot iterator ({type(data).__name__}) as data, expected a pair (x, y) or "
            "something that can be iterated again and again, as several passes are made; wrap it "
            "as list(data), or in a class whose __iter__ makes a new iterator."
        )


def _continues(data: Iterable, iterator: Iterator) -> bool:
    """Return whether `iter` returns the same iterator again without resetting it.

    Generators and Python's built-in iterators are not reset; that of a torch loader with persistent
    workers is.
    """
    has_no_reset = type(iterator).__module__ in ("builtins", "itertools")
    return has_no_reset and iter(data) is iterator


# --- the position of a loader --------------------------------------------------------------------


def has_state(loader: Iterable, iterator: Iterator) -> bool:
    """Return whether a loader can report its position, and be set back to it.

    Iterators of grain have `get_state` and `set_state`; loaders of torchdata have `state_dict` and
    `load_state_dict`.
    """
    return hasattr(iterator, "get_state") or orders_itself(loader)


def orders_itself(loader: Iterable) -> bool:
    """Return whether a loader's state holds its order too, which may be another in each process."""
    return hasattr(loader, "load_state_dict")


def state_of(loader: Iterable, iterator: Iterator) -> Any:
    """Return the state of a loader for a file, or `None` if it has none."""
    if orders_itself(loader):
        return jax.tree.map(_packed, loader.state_dict())
    return jax.tree.map(_packed, iterator.get_state()) if has_state(loader, iterator) else None


def set_back(loader: Iterable, state: Any) -> Iterator:
    """Return an iterator that goes on after the batch at which `state_of` found the state."""
    state = jax.tree.map(_unpacked, state, is_leaf=lambda leaf: isinstance(leaf, _Buffer))
    if orders_itself(loader):
        loader.load_state_dict(state)
        return iter(loader)
    iterator = iter(loader)
    iterator.set_state(state)
    return iterator


@storable("LoaderBuffer")
@pytree_dataclass(static=("kind", "dtype", "shape"))
class _Buffer:
    """Bytes, or an array of NumPy or torch, whose dtype a file keeps whatever JAX's precision."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    values: np.ndarray


def _packed(leaf: Any) -> Any:
    if isinstance(leaf, bytes):
        return _Buffer("bytes", "uint8", (len(leaf),), np.frombuffer(leaf, np.uint8))
    if isinstance(leaf, np.ndarray | np.generic):
        kind, array = "numpy", fetch_array(leaf)
    elif hasattr(type(leaf), "detach"):
        kind, array = "torch", leaf.numpy()
    else:
        return leaf
    return _Buffer(kind, str(array.dtype), array.shape, np.frombuffer(array.tobytes(), np.uint8))


def _unpacked(leaf: Any) -> Any:
    if not isinstance(leaf, _Buffer):
        return leaf
    data = fetch_array(leaf.values).tobytes()
    if leaf.kind == "bytes":
        return data
    array = np.frombuffer(data, leaf.dtype).reshape(leaf.shape).copy()
    return importlib.import_module("torch").from_numpy(array) if leaf.kind == "torch" else array
