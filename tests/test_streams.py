"""What can be iterated again and what cannot: objects of Python's, and loaders of torch's kind."""

import jax
import numpy as np
import pytest
import twins

from laplace_kit import storage, streams
from laplace_kit.data import as_data
from laplace_kit.examples import gather


class SameIterator:
    """Batches whose `__iter__` goes on where the last pass ended."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __iter__(self):
        return self.batches


class LoaderOver:
    """Like a torch `DataLoader` over an `IterableDataset`: a new iterator over the same source."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return Resettable(self.dataset)


class Resettable:
    """An iterator that can start afresh, as that of a loader with persistent workers."""

    def __init__(self, batches):
        self.batches = batches
        self.reset()

    def reset(self):
        self.iterator = iter(self.batches)
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.iterator)


class Persistent:
    """A re-iterable that returns one and the same iterator, reset."""

    def __init__(self, batches):
        self.iterator = Resettable(batches)

    def __iter__(self):
        return self.iterator.reset()


def one_shot(batches):
    yield from batches


RNG = np.random.default_rng(0)
X7, Y7 = RNG.normal(size=(7, 3)).astype("float32"), RNG.normal(size=7).astype("float32")
BATCHES = twins.batches(X7, Y7, 3, 3, 1)
ONE_PASS = {
    "generator": lambda: one_shot(BATCHES),
    "same iterator": lambda: SameIterator(BATCHES),
    "loader of a stream": lambda: LoaderOver(SameIterator(BATCHES)),
    "loader of a generator": lambda: LoaderOver(one_shot(BATCHES)),
}


@pytest.mark.parametrize("kind", ONE_PASS)
def test_one_pass_is_enough_to_gather_all(kind):
    jax.tree.map(np.testing.assert_array_equal, gather(ONE_PASS[kind]())[:2], (X7, Y7))


@pytest.mark.parametrize("kind", ONE_PASS)
def test_what_several_passes_cannot_be_made_over_is_refused(kind):
    with pytest.raises(TypeError, match=r"one-shot iterator.*expected a pair.*list\(data\)"):
        as_data(ONE_PASS[kind]())


def test_what_starts_afresh_is_a_stream():
    for data in (Persistent(BATCHES), LoaderOver(BATCHES), LoaderOver(Persistent(BATCHES))):
        stream = as_data(data)
        for _ in range(2):
            jax.tree.map(np.testing.assert_array_equal, gather(stream)[:2], (X7, Y7))


def test_torch_loaders_over_streams():
    torch_data = pytest.importorskip("torch.utils.data")

    class Rows(torch_data.IterableDataset):
        def __init__(self, rows):
            self.rows = rows

        def __iter__(self):
            return iter(self.rows)

    rows = [*zip(X7, Y7.tolist(), strict=True)]
    once = torch_data.DataLoader(Rows(iter(rows)), batch_size=3)
    x, y, _ = gather(once)
    np.testing.assert_array_equal(x, X7)
    np.testing.assert_allclose(y, Y7, rtol=1e-6)
    with pytest.raises(TypeError, match=r"one-shot iterator \(DataLoader\)"):
        as_data(torch_data.DataLoader(Rows(iter(rows)), batch_size=3))
    again = as_data(torch_data.DataLoader(Rows(rows), batch_size=3))
    for _ in range(2):
        np.testing.assert_array_equal(gather(again)[0], X7)


# --- the position of a loader ---------------------------------------------------------------------


class Positioned:
    """A loader whose state is whatever it is given."""

    def __init__(self, state=None):
        self.state = state

    def __iter__(self):
        return iter(())

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def through_a_file(state, path):
    """Return a loader's state as another process gets it back."""
    storage.write(path, streams.state_of(Positioned(state), iter(())))
    again = Positioned()
    streams.set_back(again, storage.read(path))
    return again.state


def test_the_state_of_a_loader_comes_back_from_a_file(tmp_path):
    state = {
        "step": 2**40,
        "worker": None,
        "done": False,
        "source": b"\x00\xff",
        "nested": [{"order": np.asarray([[2**40, -1]]), "seed": np.uint32(7)}, (1, "two", 3.5)],
    }
    found = through_a_file(state, tmp_path / "state")
    assert found["step"] == 2**40
    assert found["worker"] is None
    assert found["done"] is False
    assert found["source"] == b"\x00\xff"
    order, seed = found["nested"][0]["order"], found["nested"][0]["seed"]
    assert (order.dtype, seed.dtype) == ("int64", "uint32")
    np.testing.assert_array_equal(order, [[2**40, -1]])
    assert seed == 7
    order += 1  # it can be written to
    assert found["nested"][1] == (1, "two", 3.5)


def test_the_state_of_a_torch_generator_comes_back(tmp_path):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    found = through_a_file({"generator": generator.get_state()}, tmp_path / "state")
    again = torch.Generator()
    again.set_state(found["generator"])
    assert torch.equal(torch.rand(9, generator=again), torch.rand(9, generator=generator))


def test_a_loader_without_state_has_none():
    assert streams.state_of(BATCHES, iter(BATCHES)) is None
    assert not streams.orders_itself(BATCHES)
