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
    areas = mt.aurc(probs, y, **options), mt.excess_aurc(probs, y, **options)
    return *areas, mt.risk_coverage_curve(probs, y, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_selective_prediction_matches_its_definition(dtype):
    probs, labels = classification(dtype=dtype)
    confidence, wrong = probs.max(axis=1), probs.argmax(axis=1) != labels
    order = np.argsort(-confidence)
    risks = np.cumsum(wrong[order]) / np.arange(1, 201)
    # Geifman et al. (2019), equation 3.
    num, error = 200, wrong.mean()
    best = sum(i / (num * (1 - error) + i) for i in range(1, wrong.sum() + 1)) / num
    with precision(dtype):
        area, excess, curve = selective(probs, labels)
        assert area.dtype == excess.dtype == dtype
        np.testing.assert_allclose(area, risks.mean(), atol=tolerance(dtype))
        np.testing.assert_allclose(excess, risks.mean() - best, atol=tolerance(dtype))
        np.testing.assert_allclose(curve.risk, risks, atol=tolerance(dtype))
        np.testing.assert_allclose(curve.coverage, np.arange(1, 201) / 200, rtol=tolerance(dtype))
        np.testing.assert_array_equal(curve.thresholds, confidence[order])


def test_equal_confidences_are_accepted_together():
    probs, labels = classification(dtype="float32")
    confidence = np.repeat([3.0, 1.0, 2.0, 2.0], 50).astype("float32")
    wrong = probs.argmax(axis=1) != labels
    area, _, curve = selective(probs, labels, confidence)
    risks = [wrong[confidence >= level].mean() for level in (3, 2, 1)]
    np.testing.assert_allclose(curve.risk, np.repeat(risks, [50, 100, 50]), rtol=1e-6)
    np.testing.assert_allclose(curve.coverage, np.repeat([0.25, 0.75, 1], [50, 100, 50]))
    np.testing.assert_allclose(area, np.mean(curve.risk), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_oracle_has_no_excess_and_ignorance_the_error_rate():
    probs, labels = classification()
    wrong = probs.argmax(axis=1) != labels
    _, excess, _ = selective(probs, labels, np.where(wrong, -1.0, 1.0) * np.arange(1.0, 201))
    np.testing.assert_allclose(excess, 0, atol=1e-12)
    area, _, _ = selective(probs, labels, np.zeros(200))
    np.testing.assert_allclose(area, wrong.mean(), atol=1e-12)


def test_always_right_always_wrong_and_single():
    probs, labels = np.tile(np.array([[0.8, 0.2]], "float32"), (200, 1)), np.zeros(200, int)
    np.testing.assert_allclose(selective(probs, labels)[:2], [0, 0], atol=1e-6)
    # Errors alike in confidence are accepted together, all of them.
    np.testing.assert_allclose(selective(probs, labels + 1)[:2], [1, 0], atol=1e-5)
    np.testing.assert_allclose(mt.aurc(probs[:1], labels[:1] + 1), 1)


@pytest.mark.parametrize(("num", "wrong"), [(30, 20), (30, 1), (200, 180), (10_000, 100)])
def test_the_oracle_of_few_errors_among_many_is_not_lost_to_rounding(num, wrong):
    """Against the sum over errors: from digammas in float32, 100 of 10,000 are 2% off."""
    probs = np.tile(np.array([[0.75, 0.25]], "float32"), (num, 1))
    labels = (np.arange(num) < wrong).astype(int)
    least = np.sum(np.arange(1, wrong + 1) / (num - wrong + np.arange(1, wrong + 1))) / num
    found = mt.aurc(probs, labels) - mt.excess_aurc(probs, labels)
    # The area of no information is the error rate, rounded.
    np.testing.assert_allclose(found, least, rtol=1e-6, atol=2e-8 * (1 + 10 * wrong / num))


def test_confidences_that_round_to_one_are_ranked():
    """As float64 ranks them: the least certain of the three is the one that is wrong."""
    rest = np.array([1e-9, 1e-12, 1e-20])
    probs = np.stack([1 - rest, rest], axis=1).astype(np.float32)
    y = np.array([1, 0, 0])
    assert float(mt.aurc(probs, y)) == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert float(mt.excess_aurc(probs, y)) == pytest.approx(0, abs=1e-6)
    curve = mt.risk_coverage_curve(probs, y)
    np.testing.assert_allclose(curve.risk, [0, 0, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(curve.thresholds, 1)
