"""Bins hold what they say."""

import numpy as np
import pytest
from predictions import classification

from laplace_kit.eval import metrics as mt


def test_reliability_bins_hold_what_they_say():
    probs = np.array([[1.0, 0], [0.5, 0.5], [0.75, 0.25], [0.2, 0.8]], "float32")
    bins = mt.reliability_bins(probs, np.array([0, 1, 0, 0]), num_bins=4)
    np.testing.assert_array_equal(bins.edges, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(bins.counts, [0, 1, 1, 2])  # (lo, hi]: an edge is in the lower
    assert bins.counts.dtype == "int32"
    np.testing.assert_allclose(bins.confidence, [0, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(bins.accuracy, [0, 0, 1, 0.5])


def test_bins_of_equal_mass_hold_as_many():
    probs, labels = classification(num_examples=52, dtype="float32")
    bins = mt.equal_mass_bins(probs, labels, num_bins=10)
    np.testing.assert_array_equal(bins.counts, [6, 6, *[5] * 8])
    edges = np.sort(probs.max(axis=1))[np.cumsum(bins.counts)[:-1] - 1]
    np.testing.assert_array_equal(bins.edges, [0, *edges, 1])


@pytest.mark.parametrize("num_examples", [1, 3])
def test_fewer_examples_than_bins(num_examples):
    probs, labels = classification(num_examples, dtype="float32")
    for bins in (mt.equal_mass_bins(probs, labels, 5), mt.reliability_bins(probs, labels, 5)):
        assert bins.counts.sum() == num_examples
        empty = np.asarray(bins.counts) == 0
        assert not np.asarray(bins.confidence)[empty].any()
        np.testing.assert_allclose(
            (bins.counts * bins.confidence).sum(), probs.max(axis=1).sum(), rtol=1e-6
        )


def test_equal_confidences_share_a_bin():
    probs = np.tile(np.array([[0.7, 0.3]], "float32"), (9, 1))
    bins = mt.equal_mass_bins(probs, np.arange(9) % 2, 3)
    np.testing.assert_array_equal(bins.counts, [9, 0, 0])
