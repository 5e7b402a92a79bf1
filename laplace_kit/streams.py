"""Iterables of batches: checks that they can be iterated again, identity, and a progress bar."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


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


def with_bar(batches: Iterable) -> Iterable:
    """Return the batches with a progress bar."""
    from tqdm.auto import tqdm

    return tqdm(batches, desc="batches", leave=False)
