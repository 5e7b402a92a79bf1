"""Scores of doubt against their definitions."""

import jax
import numpy as np
import pytest
import scipy.stats
from predictions import DTYPES, classification, tolerance
from twins import precision

from laplace_kit.eval import metrics as mt


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_match_their_definitions(dtype):
    probs = classification(20, dtype=dtype)[0]

    @jax.jit
    def scores(probs):
        return mt.max_probability_score(probs), mt.entropy_score(probs)

    with precision(dtype):
        found = scores(probs)
        expected = (1 - probs.max(axis=1), scipy.stats.entropy(probs, axis=1))
        for value, reference in zip(found, expected, strict=True):
            assert value.dtype == dtype
            np.testing.assert_allclose(value, reference, atol=tolerance(dtype))


def test_certain_and_unsure():
    probs = np.array([[1, 0], [0.5, 0.5], [1 + 1e-6, -1e-6]], "float32")
    np.testing.assert_allclose(mt.max_probability_score(probs), [0, 0.5, 0], atol=2e-6)
    np.testing.assert_allclose(mt.entropy_score(probs), [0, np.log(2), 0], atol=2e-6)


def test_near_certainty_scores_tell_apart_what_rounds_to_one():
    rest = np.array([1e-3, 1e-6, 1e-9, 1e-20, 1e-30])
    probs = np.stack([1 - rest, rest / 4, 3 * rest / 4], axis=1)
    found = mt.max_probability_score(probs.astype(np.float32))
    np.testing.assert_allclose(found, rest, rtol=1e-4)
    equal = np.array([[0.7, 0.3, 0.0], [0.7, 0.2, 0.1]], np.float32)
    first, second = np.asarray(mt.max_probability_score(equal))
    assert first == second
