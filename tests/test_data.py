"""Data in memory and in streams: what is accepted."""

import collections
import types

import jax
import numpy as np
import pytest
import twins

from laplace_kit.data import InMemory, Stream, as_data, batch_spec, with_weights
from laplace_kit.examples import gather


def arrays(num: int, dtype="float32") -> tuple:
    rng = np.random.default_rng(0)
    return rng.normal(size=(num, 3)).astype(dtype), rng.normal(size=num).astype(dtype)


# --- what is data ---------------------------------------------------------------------------------


def test_a_tuple_is_in_memory_and_a_list_is_a_stream():
    x, y = arrays(5)
    whole = as_data((x, y))
    assert isinstance(whole, InMemory)
    assert whole.num_examples == 5
    assert isinstance(whole.x, jax.Array)
    stream = as_data([(x, y)])
    assert isinstance(stream, Stream)
    assert as_data(stream) is stream
    assert as_data(whole) is whole


def test_inputs_and_targets_may_be_trees():
    x, y = arrays(5)
    pair = {"left": x, "right": (x[:, 0], x)}, {"label": y}
    whole = as_data(pair)
    assert whole.num_examples == 5
    assert jax.tree.structure((whole.x, whole.y)) == jax.tree.structure(pair)
    expected = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), pair)
    assert batch_spec(whole) == expected
    assert batch_spec(as_data([pair])) == expected


def test_the_first_batch_describes_a_stream():
    x, y = arrays(5)
    stream = as_data(twins.Loader(x, y, 2))
    assert [leaf.shape for leaf in batch_spec(stream)] == [(2, 3), (2,)]
    assert hash(stream.first) == hash(as_data(twins.Loader(x, y, 2)).first)


def test_a_stream_is_structure_compared_by_identity():
    x, y = arrays(4)
    batches = twins.batches(x, y, 2, 2)
    structure = jax.tree.structure(as_data(batches))
    assert structure == jax.tree.structure(as_data(batches))
    assert hash(structure) == hash(jax.tree.structure(as_data(batches)))
    assert structure != jax.tree.structure(as_data(twins.batches(x, y, 2, 2)))


X, Y = arrays(5)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (((X, Y) for _ in range(3)), TypeError, ["one-shot", "generator", "list(data)"]),
        (iter([(X, Y)]), TypeError, ["one-shot", "list_iterator", "__iter__"]),
        ([X, Y], ValueError, ["ndarray of shape (5, 3)", "batch (x, y)", "tuple (x, y)"]),
        (X, TypeError, ["ndarray", "tuple (x, y)"]),
        (3.0, TypeError, ["float", "re-iterable"]),
        ({"x": X, "y": Y}, TypeError, ["type dict", "tuple (x, y)"]),
        ("path", TypeError, ["type str", "re-iterable of such pairs"]),
        ([{"x": X, "y": Y}], ValueError, ["a dict with the keys ['x', 'y']", "yields pairs"]),
        ([[1.0, 2.0], [3.0, 4.0]], ValueError, ["a list where", "tuple (x, y)"]),
        ([], ValueError, ["empty", "at least one example", "loader"]),
        ((X[:0], Y[:0]), ValueError, ["empty", "(0, 3)", "at least one example"]),
        ([(X[:0], Y[:0])], ValueError, ["empty", "(0, 3)"]),
        ((X, Y, Y, Y), ValueError, ["a tuple of 4", "(x, y, weights)", "((x1, x2), y)"]),
        ([[X]], ValueError, ["a list of 1", "(x, y)"]),
        ((X, Y, np.arange(5) - 2.0), ValueError, ["first -2.0 at example 0 (2 in all)", "zero"]),
        ((X, Y, [1, 2, np.nan, 1, 1]), ValueError, ["first nan at example 2 (1 in all)"]),
        ([(X, Y, [1, 2, np.inf, 1, 1])], ValueError, ["first inf at example 2"]),
        ((X, Y, np.zeros(5)), ValueError, ["all zero", "at least one example"]),
        ((X, Y, np.ones(4)), ValueError, ["weights of shape (4,) for 5 examples", "(5,)"]),
        ((X, Y, np.ones((5, 1))), ValueError, ["shape (5, 1)", "weights.reshape(-1)"]),
        ((X, Y, 2.0), ValueError, ["weights of shape () for 5 examples"]),
        (((X, Y), (X, Y), (X, Y)), TypeError, ["a tuple as the weights", "((x1, x2), y)"]),
        ((X, Y, [X, Y]), TypeError, ["a list as the weights", "shape (5,)"]),
        ((X, Y, {"w": Y}), TypeError, ["a dict as the weights", "one array"]),
        ((X, Y, ["a"] * 5), TypeError, ["weights of text"]),
        ((X, Y, np.ones(5) * 1j), TypeError, ["weights of dtype complex128", "real numbers"]),
        ((X.tolist(), [[0.0], [1.0, 2.0]]), ValueError, ["targets of type list", "one length"]),
        ((X, np.asarray(["a"] * 5)), TypeError, ["targets of text", "np.unique"]),
        ((np.asarray([["a"]]), Y), TypeError, ["inputs of text", "encode"]),
        (([*X], Y), ValueError, ["(3,), (3,), (3,)", "np.stack(x)"]),
        ((X, Y[:4]), ValueError, ["leading axes differ", "(5, 3), (4,)"]),
        (({"a": X, "b": X[:2]}, Y), ValueError, ["leading axes differ", "(2, 3)"]),
        ((X, 1.0), ValueError, ["()", "leading axis", "x[None]"]),
        (({}, Y), ValueError, ["leading axis"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_data_is_named(data, error, words):
    with pytest.raises(error, match="Found") as caught:
        as_data(data)
    assert "expected" in str(caught.value)
    assert all(word in str(caught.value) for word in words)


# --- weights --------------------------------------------------------------------------------------

WEIGHTS = np.asarray([0.5, 0, 2, 1, 3], np.float32)


def test_weights_of_one_are_no_weights_at_all():
    assert as_data((X, Y, None)).weights is None
    assert as_data((X, Y)).is_weighted is False
    assert as_data([(X, Y, WEIGHTS)]).is_weighted
    np.testing.assert_array_equal(as_data((X, Y, WEIGHTS.tolist())).weights, WEIGHTS)


def test_weights_are_given_once_and_in_the_place_for_them():
    found = with_weights(as_data((X, Y)), WEIGHTS)
    np.testing.assert_array_equal(found.weights, WEIGHTS)
    assert with_weights(found, None) is found
    with pytest.raises(
        ValueError, match=r"next to data \(x, y, weights\), expected one of the two"
    ):
        with_weights(found, WEIGHTS)
    with pytest.raises(TypeError, match=r"next to a stream.*yield \(x, y, weights\)"):
        with_weights(as_data([(X, Y)]), WEIGHTS)
    with pytest.raises(ValueError, match="weights that are all zero"):
        with_weights(as_data((X, Y)), np.zeros(5))


# --- what holds the numbers -----------------------------------------------------------------------

X7, Y7 = arrays(7)


def test_mappings_lists_and_tensors_are_read_in_memory_and_from_a_loader():
    x = collections.UserDict(ids=X7, more=types.MappingProxyType({"mask": X7.tolist()}))
    for data in ((x, Y7.tolist()), [(x, Y7.tolist())], [[x, Y7.tolist()]]):
        found, y, _ = gather(data)
        assert jax.tree.structure(found) == jax.tree.structure({"ids": 0, "more": {"mask": 0}})
        jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, X7), found)
        np.testing.assert_allclose(y, Y7, rtol=1e-6)


def test_mappings_with_labels_are_pairs_in_memory_and_from_a_loader():
    whole = collections.UserDict(ids=X7, mask=X7 > 0, labels=Y7)
    for data in (whole, dict(whole), [whole], [dict(whole)]):
        x, y, _ = gather(data)
        assert set(x) == {"ids", "mask"}
        np.testing.assert_array_equal(x["ids"], X7)
        np.testing.assert_array_equal(y, Y7)
    with pytest.raises(ValueError, match=r"a dict with the keys \['ids'\] where .* with 'labels'"):
        as_data([{"ids": X7}])


def test_tensors_that_require_gradients_and_in_bfloat16_from_a_loader():
    torch = pytest.importorskip("torch")
    x = torch.tensor(X7)
    pairs = [(x.clone().requires_grad_(), Y7), (x.bfloat16(), torch.tensor(Y7))]
    for pair, dtype in zip(pairs, ("float32", "bfloat16"), strict=True):
        for data in (pair, [pair]):
            found = gather(data).x
            assert found.dtype == dtype
            np.testing.assert_allclose(found.astype("float32"), X7, rtol=2**-8)
