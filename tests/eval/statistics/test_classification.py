"""Sums over weighted examples give the metrics one by one, for ties, soft labels and zeros."""

import numpy as np
import pytest
from scipy.stats import entropy as scipy_entropy

from laplace_kit.eval import metrics
from laplace_kit.eval.calibration import (
    calibration_tests,
    corp_reliability,
    smooth_reliability,
)
from laplace_kit.eval.report import registry
from laplace_kit.eval.statistics import classification
from laplace_kit.eval.statistics.classification import class_scores, class_sums

METRICS = {
    "accuracy": metrics.accuracy,
    "nll": metrics.negative_log_likelihood,
    "brier": metrics.brier_score,
    "ece": metrics.expected_calibration_error,
    "mce": metrics.maximum_calibration_error,
    "ace": metrics.adaptive_calibration_error,
    "debiased_ce": metrics.debiased_calibration_error,
    "classwise_ece": metrics.classwise_calibration_error,
    "aurc": metrics.aurc,
    "augrc": metrics.augrc,
    "smooth_ece": lambda *args, weights: smooth_reliability(*args, weights=weights).error,
    "miscalibration": lambda *args, weights: (
        corp_reliability(*args, weights=weights).miscalibration
    ),
    "discrimination": lambda *args, weights: (
        corp_reliability(*args, weights=weights).discrimination
    ),
    "spiegelhalter_z": lambda *args, weights: (
        calibration_tests(*args, weights=weights).spiegelhalter.statistic
    ),
    "ks_error": lambda *args, weights: (
        calibration_tests(*args, weights=weights).kolmogorov_smirnov.statistic
    ),
    "kuiper_error": lambda *args, weights: (
        calibration_tests(*args, weights=weights).kuiper.statistic
    ),
}


def cases():
    rng = np.random.default_rng(0)
    plain = rng.dirichlet(np.ones(4), 60)
    tied = np.round(plain * 20) / 20
    tied[:, 0] += 1 - tied.sum(axis=1)
    y = rng.integers(0, 4, 60)
    return {"plain": (plain, y), "tied": (tied, y), "soft": (plain, rng.dirichlet(np.ones(4), 60))}


@pytest.mark.parametrize("name", METRICS)
def test_every_weighting_gives_the_metric_with_these_weights(name):
    rng = np.random.default_rng(1)
    rows = np.stack([np.ones(60), rng.integers(0, 4, 60)])
    shares = rng.uniform(size=(1, 60))
    for probs, y in cases().values():
        scores = class_scores(probs, y)
        for weights in (rows, shares):
            found = registry.METRICS[name].function(class_sums(scores, weights))
            expected = [float(METRICS[name](probs, y, weights=of)) for of in weights]
            np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)


def test_labels_of_probability_zero_have_infinite_losses_unless_logarithms_are_known():
    probs = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert class_scores(probs, np.array([1, 0])).losses.tolist() == [np.inf, np.log(2)]
    assert class_scores(probs, np.array([[1.0, 0.0]] * 2)).losses.tolist() == [0, np.log(2)]
    logs = np.array([[0.0, -800.0], [np.log(0.5)] * 2])
    assert class_scores(probs, np.array([1, 0]), logs).losses.tolist() == [800.0, np.log(2)]
    np.testing.assert_array_equal(
        class_sums(class_scores(probs, np.array([1, 0])), np.eye(2)).loss, [np.inf, np.log(2)]
    )


def test_doubt_near_certainty_is_the_sum_of_the_others():
    probs = np.array([[1.0, 1e-12, 3e-12], [0.5, 0.3, 0.2]])
    found = classification.one_minus_largest(probs)
    np.testing.assert_allclose(found, [4e-12, 0.5], rtol=1e-12)
    np.testing.assert_array_equal(probs[0], [1.0, 1e-12, 3e-12])


def test_entropies_in_nats():
    probs = np.random.default_rng(0).dirichlet(np.ones(5), 20)
    probs[0] = [1, 0, 0, 0, -1e-9]
    found = classification.entropy(probs)
    np.testing.assert_allclose(found[1:], scipy_entropy(probs[1:], axis=1), rtol=1e-12)
    assert found[0] == 0
