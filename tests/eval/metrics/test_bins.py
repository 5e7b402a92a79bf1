"""Bins hold what they say."""

import jax.numpy as jnp
import numpy as np
import pytest
from predictions import classification

from laplace_kit.eval import metrics as mt
from laplace_kit.eval.metrics.bins import averages


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


@pytest.mark.parametrize("with_weights", [False, True])
def test_bins_count_past_what_their_dtype_can_count(with_weights):
    """In float16 one by one: sums stop at 2048 examples, as in float32 at 16 million."""
    num = 20_000
    observed = jnp.asarray(np.arange(num) % 8 > 0, jnp.float16)
    weights = jnp.ones(num, jnp.float16 if with_weights else jnp.int32)
    edges = jnp.linspace(0, 1, 5, dtype=jnp.float16)
    found = averages(jnp.full(num, 0.875, jnp.float16), observed, weights, edges)
    np.testing.assert_allclose(found.counts, [0, 0, 0, num], rtol=1e-3)
    np.testing.assert_allclose(found.confidence[3], 0.875, rtol=1e-3)
    np.testing.assert_allclose(found.accuracy[3], 0.875, rtol=1e-3)


@pytest.mark.slow
def test_twenty_million_examples():
    """Calibrated, and all in one bin: 0.164 if counted one by one in float32."""
    num = 20_000_000
    probs = np.broadcast_to(np.float32([0.999, 0.001]), (num, 2))
    labels = (np.arange(num, dtype="int32") % 1000 == 0).astype("int32")
    for error in (
        mt.expected_calibration_error,
        mt.maximum_calibration_error,
        mt.adaptive_calibration_error,
        mt.classwise_calibration_error,
    ):
        np.testing.assert_allclose(error(probs, labels), 0, atol=1e-5)
    weights = np.ones(num, "float32")
    found = mt.expected_calibration_error(probs, labels, weights=weights)
    np.testing.assert_allclose(found, 0, atol=1e-6)
    parts = mt.brier_decomposition(probs, labels)
    score = 2 * 0.001 * 0.999
    np.testing.assert_allclose(mt.brier_score(probs, labels), score, rtol=1e-6)
    np.testing.assert_allclose(parts, [0, 0, score, 0], atol=1e-9)
