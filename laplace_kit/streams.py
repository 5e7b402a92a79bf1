"""Iterables of batches: which can be iterated again, compared by identity, and with a bar."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class ByIdentity:
    """Any iterable, hashable by identity: lists are not, and compare by content."""

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
    """Refuse data whose next pass would go on where this one, `iterator`, ends.

    So does every iterator, an object whose `__iter__` returns the same one each time, and a loader
    of a data set like that. Whatever else shares its source is found by a second pass alone.

    Raises
    ------
    TypeError
        With the remedy.
    """
    source = getattr(data, "dataset", None)  # of a torch loader
    shared = isinstance(data, Iterator) or _goes_on(data, iterator)
    if shared or (isinstance(source, Iterable) and _goes_on(source, iter(source))):
        raise TypeError(
            f"Found a one-shot iterator ({type(data).__name__}) as data, expected a pair (x, y) or "
            "something that can be iterated again and again, as several passes are made; wrap it "
            "as list(data), or in a class whose __iter__ makes a new iterator."
        )


def _goes_on(data: Iterable, iterator: Iterator) -> bool:
    """Return whether `iter` gives the same iterator again, and that one has no reset.

    Generators and other iterators of Python's own have none; that of a torch loader with persistent
    workers is reset by `iter`.
    """
    has_no_reset = type(iterator).__module__ in ("builtins", "itertools")
    return has_no_reset and iter(data) is iterator


def with_bar(batches: Iterable) -> Iterable:
    """Show how many batches have passed."""
    from tqdm.auto import tqdm

    return tqdm(batches, desc="batches", leave=False)
