"""Loaders whose batches are spread over devices; `test_processes.py` has those of two processes."""

import itertools

import jax
import numpy as np
import pytest

import laplace_kit as lk
from laplace_kit.data import Stream, as_data
from laplace_kit.loaders import ShardedBatches, shard_batches


def mesh():
    return jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def batches(*sizes, weights=False):
    starts = np.cumsum([0, *sizes])
    numbers = [np.arange(low, high) for low, high in itertools.pairwise(starts)]
    parts = [(n[:, None] + np.zeros((1, 2), np.float32), n.astype(np.int32)) for n in numbers]
    return [(*part, 1.0 + part[1]) for part in parts] if weights else parts


def rows(loader):
    """Return the targets of all examples, and their weights."""
    read = [(np.asarray(y), np.asarray(weights)) for _, y, weights in shard_batches(loader, mesh())]
    y, weights = (np.concatenate(part) for part in zip(*read, strict=True))
    return y[weights > 0], weights[weights > 0]


@pytest.mark.parametrize("sizes", [(4,), (4, 4), (4, 3), (3, 4), (2, 7, 1)])
def test_every_example_comes_once(sizes):
    y, weights = rows(batches(*sizes))
    np.testing.assert_array_equal(y, np.arange(sum(sizes)))
    np.testing.assert_array_equal(weights, 1)


def test_mappings_with_labels_are_pairs():
    ((x, y, _),) = shard_batches([{"ids": np.zeros((3, 2)), "labels": np.arange(3)}], mesh())
    assert x["ids"].shape == (3, 2)
    np.testing.assert_array_equal(y, np.arange(3))


def test_weights_are_kept():
    y, weights = rows(batches(3, 2, weights=True))
    np.testing.assert_array_equal(weights, 1.0 + y)


def test_all_batches_have_one_shape_and_repeat_examples():
    read = [*shard_batches(batches(4, 3, 6), mesh())]
    assert {(x.shape, y.shape, weights.shape) for x, y, weights in read} == {((4, 2), (4,), (4,))}
    assert all(np.isin(y, np.arange(13)).all() for _, y, _ in read)


def test_rows_that_only_fill_up_are_told_apart():
    found = [is_example for _, is_example in shard_batches(batches(4, 1), mesh()).with_rows()]
    np.testing.assert_array_equal(found, [[True] * 4, [True, False, False, False]])


def test_it_is_read_again_and_again():
    loader = shard_batches(batches(3, 2), mesh())
    assert isinstance(loader, ShardedBatches)
    assert len([*loader]) == len([*loader]) == 2


def test_it_is_a_stream_of_weighted_batches():
    data = as_data(shard_batches(batches(3, 2), mesh()))
    assert isinstance(data, Stream)
    assert data.is_weighted
    assert data.num_first == 3


def test_integers_of_64_bits_become_those_of_jax():
    x, y = np.zeros((2, 1)), np.array([0, 1])
    ((x, y, _),) = shard_batches([(x, y)], mesh())
    assert (x.dtype, y.dtype) == (np.float32, np.int32)


def test_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match=r"axis='rows'.*axes \('data',\).*name the axis"):
        shard_batches(batches(2), mesh(), "rows")


def test_an_empty_loader_is_refused():
    with pytest.raises(ValueError, match=r"no batch in the loader of process 0"):
        next(iter(shard_batches([], mesh())))


def test_a_generator_is_refused():
    with pytest.raises(TypeError, match="one-shot iterator"):
        next(iter(shard_batches(iter(batches(2)), mesh())))


@pytest.mark.parametrize("item", [np.zeros((4, 2)), (np.zeros((4, 2)),), {"x": 1, "y": 2}])
def test_what_is_no_batch_is_refused(item):
    with pytest.raises(ValueError, match=r"expected"):
        next(iter(shard_batches([item], mesh())))


def test_predictions_leave_out_what_only_fills_up():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 2)).astype(np.float32), rng.integers(2, size=7).astype(np.int32)
    params = {"w": rng.normal(size=(2, 2)).astype(np.float32)}
    la = lk.fit(
        lambda params, x: x @ params["w"],
        params,
        (x, y),
        likelihood="categorical",
        structure="diagonal",
    )
    loader = shard_batches([(x[:4], y[:4]), (x[4:], y[4:])], mesh())
    np.testing.assert_allclose(la.predict_over(loader).probs, la.predict(x).probs, rtol=1e-6)
    found, expected = la.evaluate(loader), la.evaluate((x, y))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-7)
