"""Risk and coverage against loops over thresholds and published formulae."""

import jax
import numpy as np
import pytest
from predictions import DTYPES, classification, tolerance
from twins import precision

from laplace_kit.eval import metrics as mt


@jax.jit
def selective(probs, y, confidence=None):
    options = {"confidence": confidence}
    return mt.aurc(probs, y, **options), mt.risk_coverage_curve(probs, y, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_selective_prediction_matches_its_definition(dtype):
    probs, labels = classification(dtype=dtype)
    confidence, wrong = probs.max(axis=1), probs.argmax(axis=1) != labels
    order = np.argsort(-confidence)
    risks = np.cumsum(wrong[order]) / np.arange(1, 201)
    with precision(dtype):
        area, curve = selective(probs, labels)
        assert area.dtype == dtype
        np.testing.assert_allclose(area, risks.mean(), atol=tolerance(dtype))
        np.testing.assert_allclose(curve.risk, risks, atol=tolerance(dtype))
        np.testing.assert_allclose(curve.coverage, np.arange(1, 201) / 200, rtol=tolerance(dtype))
        np.testing.assert_array_equal(curve.thresholds, confidence[order])


def test_equal_confidences_are_accepted_together():
    probs, labels = classification(dtype="float32")
    confidence = np.repeat([3.0, 1.0, 2.0, 2.0], 50).astype("float32")
    wrong = probs.argmax(axis=1) != labels
    area, curve = selective(probs, labels, confidence)
    risks = [wrong[confidence >= level].mean() for level in (3, 2, 1)]
    np.testing.assert_allclose(curve.risk, np.repeat(risks, [50, 100, 50]), rtol=1e-6)
    np.testing.assert_allclose(curve.coverage, np.repeat([0.25, 0.75, 1], [50, 100, 50]))
    np.testing.assert_allclose(area, np.mean(curve.risk), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_oracle_has_the_least_area_and_ignorance_the_error_rate():
    probs, labels = classification()
    wrong = probs.argmax(axis=1) != labels
    area, _ = selective(probs, labels, np.where(wrong, -1.0, 1.0) * np.arange(1.0, 201))
    # Geifman et al. (2019), equation 3.
    right, errors = 200 - wrong.sum(), np.arange(1, wrong.sum() + 1)
    np.testing.assert_allclose(area, np.sum(errors / (right + errors)) / 200, atol=1e-12)
    area, _ = selective(probs, labels, np.zeros(200))
    np.testing.assert_allclose(area, wrong.mean(), atol=1e-12)


def test_always_right_always_wrong_and_single():
    probs, labels = np.tile(np.array([[0.8, 0.2]], "float32"), (200, 1)), np.zeros(200, int)
    np.testing.assert_allclose(selective(probs, labels)[0], 0, atol=1e-6)
    # Errors alike in confidence are accepted together, all of them.
    np.testing.assert_allclose(selective(probs, labels + 1)[0], 1, atol=1e-5)
    np.testing.assert_allclose(mt.aurc(probs[:1], labels[:1] + 1), 1)


def test_confidences_that_round_to_one_are_ranked():
    """The ranking is that of float64: the least certain of the three is wrong."""
    rest = np.array([1e-9, 1e-12, 1e-20])
    probs = np.stack([1 - rest, rest], axis=1).astype(np.float32)
    y = np.array([1, 0, 0])
    assert float(mt.aurc(probs, y)) == pytest.approx((0 + 0 + 1 / 3) / 3)
    curve = mt.risk_coverage_curve(probs, y)
    np.testing.assert_allclose(curve.risk, [0, 0, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(curve.thresholds, 1)


@pytest.mark.parametrize("weights", [None, np.arange(300) % 3])
def test_augrc_in_closed_form_of_auroc_and_accuracy(weights):
    from sklearn.metrics import roc_auc_score

    probs, y = classification(300, 3)
    probs = np.round(probs, 1)  # many ties
    probs[:, 0] += 1 - probs.sum(axis=1)
    right, confidence = probs.argmax(axis=1) == y, probs.max(axis=1)
    accuracy = np.average(right, weights=weights)
    area = roc_auc_score(right, np.round(confidence, 6), sample_weight=weights)
    expected = (1 - area) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    found = mt.augrc(probs, y, confidence=np.round(confidence, 6), weights=weights)
    assert float(found) == pytest.approx(expected, rel=1e-5)
