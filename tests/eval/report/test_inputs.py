"""Predictions and targets are read as NumPy arrays, and refused where they are not valid."""

import jax.numpy as jnp
import numpy as np
import pytest

from laplace_kit.eval.report.inputs import classified, floating, numbers

PROBS = np.array([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.float16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.int32, np.float64),
        (bool, np.float64),
        (jnp.bfloat16, np.float32),
    ],
)
def test_numbers_keep_their_precision(given, expected):
    found = floating(np.ones(2, given))
    assert found.dtype == expected
    np.testing.assert_array_equal(found, 1)


def test_labels_are_integers_or_distributions():
    for y in (np.array([0, 1, 1]), np.array([False, True, True]), jnp.array([0, 1, 1])):
        probs, labels = classified(PROBS, y)
        np.testing.assert_array_equal(probs, PROBS)
        np.testing.assert_array_equal(labels, [0, 1, 1])
        assert labels.dtype.kind == "i"
    np.testing.assert_array_equal(classified(PROBS, PROBS[::-1])[1], PROBS[::-1])


@pytest.mark.parametrize(
    ("probs", "y", "message"),
    [
        (PROBS, [0, 2, 1], r"label 2 at y\[1\].*from 0 to 1"),
        (PROBS, [0, 1, -1], r"label -1 at y\[2\]"),
        (PROBS * [[1], [1.2], [1]], [0, 1, 1], r"probs\[1\] with the sum 1.2"),
        (PROBS * [[1], [1], [np.nan]], [0, 1, 1], r"probs\[2\]"),
        (PROBS, 2 * PROBS, r"y\[0\] with the sum 2"),
        (PROBS, [0, 1], r"y of shape \(2,\)"),
    ],
)
def test_what_is_no_classification_is_refused(probs, y, message):
    with pytest.raises(ValueError, match=message):
        classified(probs, np.asarray(y))


def test_moments_and_targets_are_rows_in_double_precision():
    mean = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    found = numbers(mean, np.ones_like(mean), jnp.zeros((3, 2, 2)))
    assert [of.shape for of in found] == [(3, 4)] * 3
    assert {of.dtype for of in found} == {np.dtype(float)}
    np.testing.assert_array_equal(found[0], mean.reshape(3, 4))
    assert [of.shape for of in numbers(np.zeros(3), np.ones(3), np.zeros(3))] == [(3, 1)] * 3


@pytest.mark.parametrize("std", [0.0, -1.0, np.nan])
def test_deviations_are_positive(std):
    with pytest.raises(ValueError, match="std"):
        numbers(np.zeros(3), np.array([1, std, 1]), np.zeros(3))
