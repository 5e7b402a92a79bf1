"""The Brier score is the sum of its parts."""

import jax
import numpy as np
import pytest
from predictions import DTYPES, classification, tolerance
from twins import precision

from laplace_kit.eval import metrics as mt


def total(parts):
    return parts.reliability - parts.resolution + parts.uncertainty + parts.remainder


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_parts_sum_to_the_score(dtype):
    probs, labels = classification(dtype=dtype)
    soft, _ = classification(seed=1, dtype=dtype)
    proportions = np.random.default_rng(0).uniform(size=len(labels))

    @jax.jit
    def parts_and_score(probs, y, weights):
        parts = mt.brier_decomposition(probs, y, 5, weights=weights)
        return parts, mt.brier_score(probs, y, weights=weights)

    with precision(dtype):
        for y in (np.eye(4, dtype=dtype)[labels], soft):
            parts, score = parts_and_score(probs, y, proportions)
            assert {part.dtype for part in parts} == {np.dtype(dtype)}
            assert abs(parts.remainder) > 1e-3
            np.testing.assert_allclose(total(parts), score, rtol=tolerance(dtype))


@pytest.mark.usefixtures("x64")
def test_murphys_identity_holds_for_forecasts_in_steps():
    rng = np.random.default_rng(0)
    p = rng.integers(0, 11, 300) / 10
    y = rng.uniform(size=300) < p**2
    parts = mt.binary_brier_decomposition(p, y, num_bins=20)
    groups = [y[p == step] for step in np.unique(p)]
    sizes = np.array([len(group) for group in groups]) / 300
    means = np.array([group.mean() for group in groups])
    np.testing.assert_allclose(parts.reliability, sizes @ (np.unique(p) - means) ** 2, atol=1e-12)
    np.testing.assert_allclose(parts.resolution, sizes @ (means - y.mean()) ** 2, atol=1e-12)
    np.testing.assert_allclose(parts.uncertainty, y.mean() * (1 - y.mean()), atol=1e-12)
    np.testing.assert_allclose(parts.remainder, 0, atol=1e-12)
    np.testing.assert_allclose(total(parts), ((p - y) ** 2).mean(), atol=1e-12)


def test_constant_and_perfect_forecasts():
    labels = np.arange(12) % 3
    parts = mt.brier_decomposition(np.full((12, 3), 1 / 3, "float32"), labels)
    np.testing.assert_allclose(parts, [0, 0, 2 / 3, 0], atol=1e-6)
    parts = mt.brier_decomposition(np.eye(3, dtype="float32")[labels], labels)
    np.testing.assert_allclose(parts, [0, 2 / 3, 2 / 3, 0], atol=1e-6)
    one_class = mt.brier_decomposition(np.full((12, 3), 1 / 3, "float32"), 0 * labels)
    np.testing.assert_allclose(one_class, [2 / 3, 0, 0, 0], atol=1e-6)
