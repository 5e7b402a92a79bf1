"""Suites return what the metrics return, and weights repeat examples."""

import numpy as np
import pytest

from laplace_kit.eval import metrics
from laplace_kit.eval.report.suites import classification_metrics, regression_metrics


def test_classifiers_are_measured_as_by_each_metric_alone():
    rng = np.random.default_rng(0)
    probs, y = rng.dirichlet(np.ones(4), 200), rng.integers(0, 4, 200)
    weights = rng.uniform(size=200)
    expected = {
        "accuracy": metrics.accuracy,
        "nll": metrics.negative_log_likelihood,
        "ece": metrics.expected_calibration_error,
        "mce": metrics.maximum_calibration_error,
        "ace": metrics.adaptive_calibration_error,
        "brier": metrics.brier_score,
    }
    for given in (None, weights, rng.integers(0, 4, 200)):
        found = classification_metrics(probs, y, weights=given)
        confidence = np.average(probs.max(axis=1), weights=given)
        assert found.pop("confidence") == pytest.approx(confidence, rel=1e-12)
        assert found == pytest.approx(
            {name: float(metric(probs, y, weights=given)) for name, metric in expected.items()},
            rel=1e-6,
        )


def test_regressors_are_measured_with_weights_as_with_repeated_rows():
    rng = np.random.default_rng(0)
    mean, y = rng.normal(size=(20, 2)), rng.normal(size=(20, 2))
    std, weights = rng.uniform(0.5, 1.5, size=(20, 2)), rng.integers(0, 3, 20)
    repeated = np.repeat(np.arange(20), weights)
    expected = regression_metrics(mean[repeated], std[repeated], y[repeated])
    assert regression_metrics(mean, std, y, weights=weights) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3), r"weights of shape \(3,\) for 2 examples"),
        (np.array([1.0, -1.0]), r"-1.0 at weights\[1\]"),
        (np.array([1.0, np.nan]), r"nan at weights\[1\]"),
        (np.zeros(2), "weights that are all zero"),
    ],
)
def test_weights_that_are_not_valid(weights, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(np.eye(2), np.arange(2), weights=weights)
