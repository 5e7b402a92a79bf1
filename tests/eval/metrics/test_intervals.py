"""Coverage and width of central intervals against scipy."""

import jax
import numpy as np
import pytest
import scipy.stats
from predictions import DTYPES, regression, tolerance
from twins import precision

from laplace_kit.eval import metrics as mt


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(50,), (10, 2, 3)])
def test_coverage_and_width_match_scipy(shape, dtype):
    mean, std, y = regression(shape, dtype=dtype)
    weights = np.random.default_rng(0).uniform(size=shape[0])
    levels = np.array([[0.1, 0.5, 0.95]], dtype)
    half = scipy.stats.norm.ppf((1 + levels.astype(float)) / 2)
    inside = np.abs((y - mean) / std)[..., None] <= half[0]
    by_example = inside.reshape(shape[0], -1, 3).mean(axis=1)
    deviation = std.reshape(shape[0], -1).mean(axis=1)

    @jax.jit
    def of_intervals(mean, std, y, levels, weights):
        coverage = mt.interval_coverage(mean, std, y, levels, weights=weights)
        return coverage, mt.interval_width(std, levels, weights=weights)

    with precision(dtype):
        coverage, width = of_intervals(mean, std, y, levels, weights)
        assert coverage.dtype == width.dtype == dtype
        expected = np.average(by_example, axis=0, weights=weights)
        np.testing.assert_allclose(coverage, expected[None], rtol=tolerance(dtype))
        expected = 2 * half * np.average(deviation, weights=weights)
        np.testing.assert_allclose(width, expected, rtol=tolerance(dtype))
        unweighted = mt.interval_coverage(mean, std, y, 0.5)
        np.testing.assert_allclose(unweighted, by_example[:, 1].mean(), rtol=tolerance(dtype))


def test_calibrated_gaussians_are_covered_as_often_as_they_say():
    mean, std, y = regression((20_000, 2), dtype="float32", spread=1)
    levels = np.linspace(0, 1, 11, dtype="float32")
    np.testing.assert_allclose(mt.interval_coverage(mean, std, y, levels), levels, atol=0.01)
    assert mt.interval_coverage(mean, 1.0, mean, 0.0) == 1  # an interval holds its ends
