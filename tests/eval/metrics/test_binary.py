"""Two classes by the probability of one, against scikit-learn."""

import jax
import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
from predictions import DTYPES, tolerance
from twins import precision

from laplace_kit.eval import metrics as mt


def binary_examples(dtype, num=300):
    rng = np.random.default_rng(0)
    p = ((rng.integers(0, 64, size=num) + 0.5) / 64).astype(dtype)
    return p, rng.uniform(size=num) < p**2, rng.uniform(size=num)


@jax.jit
def binary_metrics(p, y, weights=None):
    options = {"weights": weights}
    return (
        mt.binary_brier_score(p, y, **options),
        mt.negative_log_likelihood(mt.from_binary(p), y, **options),
        mt.binary_reliability_bins(p, y, **options),
        mt.binary_brier_decomposition(p, y, **options),
        mt.brier_score(mt.from_binary(p), y, **options),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_metrics_match_scikit_learn(dtype):
    p, y, proportions = binary_examples(dtype)
    with precision(dtype):
        for weights in (None, proportions):
            *scores, bins, parts, brier = binary_metrics(p, y, weights)
            expected = [sklearn.metrics.brier_score_loss(y, p, sample_weight=weights)]
            both = np.stack([1 - p.astype(float), p], axis=1)
            tiny = np.finfo(dtype).tiny
            logs = -np.log(np.maximum(both[np.arange(300), y.astype(int)], tiny))
            expected.append(np.average(logs, weights=weights))
            assert all(value.dtype == dtype for value in (*scores, *parts))
            np.testing.assert_allclose(scores, expected, rtol=tolerance(dtype))
            np.testing.assert_allclose(brier, 2 * expected[0], rtol=tolerance(dtype))
            whole = parts.reliability - parts.resolution + parts.uncertainty + parts.remainder
            np.testing.assert_allclose(whole, expected[0], rtol=tolerance(dtype))
        *_, bins, _, _ = binary_metrics(p, y)
        true, predicted = sklearn.calibration.calibration_curve(y, p, n_bins=15)
        np.testing.assert_allclose(bins.accuracy, true, rtol=tolerance(dtype))
        np.testing.assert_allclose(bins.confidence, predicted, rtol=tolerance(dtype))


def test_one_class_alone():
    p = np.array([0.2, 0.9, 0.4], "float32")
    for y in (np.zeros(3, int), np.ones(3, int)):
        brier, nll, _, parts, _ = binary_metrics(p, y)
        assert np.isfinite([brier, nll, *parts]).all()
        assert parts.uncertainty == parts.resolution == 0


def test_perfect_constant_and_single():
    y = np.array([False, True, True])
    found = binary_metrics(y.astype("float32"), y)
    np.testing.assert_allclose(found[:2], [0, 0], atol=1e-6)
    constant = binary_metrics(np.full(3, 0.5, "float32"), y)
    np.testing.assert_allclose(constant[:2], [0.25, np.log(2)], rtol=1e-5)
    np.testing.assert_array_equal(mt.from_binary(np.array([0.25], "float32")), [[0.75, 0.25]])
