"""The class-wise error of many classes from sparse and dense sums, block by block."""

import numpy as np
import pytest

from laplace_kit.eval import metrics
from laplace_kit.eval.statistics import classwise


@pytest.mark.parametrize("num_classes", [2, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_sum_to_the_metric(num_classes, dtype, monkeypatch):
    monkeypatch.setattr(classwise, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(num_classes, 0.3), 50).astype(dtype)
    y, rows = rng.integers(0, num_classes, 50), rng.integers(0, 3, (2, 50)).astype(float)
    found = classwise.mean_class_gap(classwise.class_gaps(probs, y, 15), rows)
    expected = [float(metrics.classwise_calibration_error(probs, y, weights=of)) for of in rows]
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_one_bin_is_the_gap_of_the_means():
    probs, y = np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1])
    gaps = classwise.class_gaps(probs, y, 1)
    np.testing.assert_allclose(classwise.mean_class_gap(gaps, np.ones((1, 2))), [0.25])
