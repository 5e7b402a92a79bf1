"""Examples as whole arrays: all of some data, and a few that stand for them."""

import jax
import numpy as np
import pytest
import twins

from laplace_kit.data import as_data
from laplace_kit.examples import Examples, first_examples, gather, joined

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
Y, WEIGHTS = np.arange(7), np.asarray([0, 1, 0, 2, 3, 0, 0.5], np.float32)


def batches(*sizes):
    parts = np.split(np.arange(7), np.cumsum(sizes)[:-1])
    return [(X[rows], Y[rows], WEIGHTS[rows]) for rows in parts]


def test_gather_joins_what_a_stream_yields():
    for data in ((X, Y), twins.Loader(X, Y, 3)):
        jax.tree.map(np.testing.assert_array_equal, gather(data), Examples(X, Y))
    for data in ((X, Y, WEIGHTS), batches(3, 2, 2)):
        jax.tree.map(np.testing.assert_array_equal, gather(data), Examples(X, Y, WEIGHTS))


def test_examples_without_weights_count_once_beside_others():
    found = joined([Examples(X[:2], Y[:2]), Examples(X[2:], Y[2:], WEIGHTS[2:])])
    np.testing.assert_array_equal(found.weights, [1, 1, *WEIGHTS[2:]])
    assert joined([Examples(X[:2], Y[:2]), Examples(X[2:], Y[2:])]).weights is None


@pytest.mark.parametrize("num", [2, 4, 5, 7, 9])
def test_examples_that_count_come_first(num):
    expected = np.flatnonzero(WEIGHTS)
    of_stream = first_examples(as_data(batches(3, 2, 2)), num)
    np.testing.assert_array_equal(of_stream.y, expected[:num])
    np.testing.assert_array_equal(of_stream.weights, WEIGHTS[of_stream.y])
    found = first_examples(as_data((X, Y, WEIGHTS)), num)
    assert len(found.y) == min(num, 7) == len(set(np.asarray(found.y)))
    np.testing.assert_array_equal(found.weights, WEIGHTS[found.y])
    np.testing.assert_array_equal(found.x, X[found.y])
    assert np.sum(found.weights > 0) == min(num, 4)


def test_examples_are_spread_over_all_of_them():
    num = 1000
    y, weights = np.arange(num), (np.arange(num) % 2).astype(np.float32)
    found = first_examples(as_data((y[:, None], y)), 10)
    np.testing.assert_array_equal(found.y, np.arange(10) * 100)
    found = first_examples(as_data((y[:, None], y, weights)), 10)
    np.testing.assert_array_equal(found.y, np.arange(10) * 100 + 1)
