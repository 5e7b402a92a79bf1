"""Loaders of batches that are interrupted, and that know their position."""

from collections.abc import Iterator

import numpy as np
import twins


class Interrupted(OSError):
    """What a loader raises in place of a batch."""


class Plain(twins.Loader):
    """A loader without state, which raises at the read after `stop` and counts those of a pass."""

    def __init__(self, *args, stop: int | None = None):
        super().__init__(*args)
        self.stop = stop
        self.reads = []

    def __iter__(self) -> Iterator:
        self.reads.append(0)
        yield from map(self.read, super().__iter__())

    def read(self, batch):
        """Count a batch."""
        if sum(self.reads) == self.stop:
            raise Interrupted
        self.reads[-1] += 1
        return batch


class _Iterator:
    """An iterator with the interface of grain's."""

    def __init__(self, loader, place: int = 0):
        self.loader, self.place = loader, place
        loader.reads.append(0)

    def __iter__(self):
        return self

    def __next__(self):
        if self.place == len(self.loader):
            raise StopIteration
        batch = self.loader.read(self.loader.batch(self.place))
        self.place += 1
        return batch

    def get_state(self):
        """Return the position, as bytes and in a dictionary, as grain's iterators do."""
        return {"next_index": self.place, "more": (str(self.place).encode(), None)}

    def set_state(self, state):
        """Go on at a position."""
        assert state["more"] == (str(state["next_index"]).encode(), None)
        self.place = state["next_index"]


class LikeGrain(Plain):
    """A loader whose iterators know their position."""

    def __iter__(self):
        return _Iterator(self)

    def batch(self, place: int):
        """Return the batch at a place."""
        rows = slice(place * self.batch_size, (place + 1) * self.batch_size)
        return self.x[rows], self.y[rows]


class LikeTorchdata(LikeGrain):
    """A loader that knows its position, and shuffles: in another order in each pass and process."""

    def __init__(self, *args, stop: int | None = None, seed: int = 0):
        super().__init__(*args, stop=stop)
        self.rng, self.iterator, self.state = np.random.default_rng(seed), None, None

    def __iter__(self):
        place, order = self.state or (0, self.rng.permutation(len(self.y)))
        self.state, self.order = None, np.asarray(order)
        self.iterator = _Iterator(self, place)
        return self.iterator

    def batch(self, place: int):
        rows = self.order[place * self.batch_size : (place + 1) * self.batch_size]
        return self.x[rows], self.y[rows]

    def state_dict(self):
        """Return the position and the order, in 64 bits, as torch's generators have them."""
        return {"place": self.iterator.place, "order": self.order.astype(np.int64)}

    def load_state_dict(self, state):
        """Let the next iterator go on at a position."""
        assert state["order"].dtype == np.int64
        self.state = state["place"], state["order"]
