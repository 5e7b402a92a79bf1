"""Detection against scikit-learn and pairs."""

import jax
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from predictions import DTYPES, tolerance
from twins import precision

from laplace_kit.eval import metrics as mt


@jax.jit
def detection(inside, outside, in_weights=None, out_weights=None):
    weights = {"in_weights": in_weights, "out_weights": out_weights}
    return [metric(inside, outside, **weights) for metric in (mt.auroc, mt.aupr, mt.fpr95)]


@given(
    inside=hnp.arrays("float32", 12, elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0, np.inf])),
    outside=hnp.arrays("float32", 12, elements=st.sampled_from([-1.0, 0.0, 0.5, 3.0, -np.inf])),
)
def test_auroc_counts_pairs(inside, outside):
    wins = (outside[:, None] > inside) + 0.5 * (outside[:, None] == inside)
    np.testing.assert_allclose(detection(inside, outside)[0], wins.mean(), atol=1e-6)
    np.testing.assert_allclose(detection(outside, inside)[0], 1 - wins.mean(), atol=1e-6)


@pytest.mark.parametrize("decimals", [1, 6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_detection_matches_scikit_learn(dtype, decimals):
    rng = np.random.default_rng(0)
    inside = rng.normal(size=300).round(decimals).astype(dtype)
    outside = rng.normal(0.7, 1, size=200).round(decimals).astype(dtype)
    is_out, scores = np.repeat([0, 1], [300, 200]), np.r_[inside, outside]
    weights = rng.uniform(size=500)
    with precision(dtype):
        for w in (None, weights):
            fpr, tpr, _ = sklearn.metrics.roc_curve(
                is_out, scores, sample_weight=w, drop_intermediate=False
            )
            expected = (
                sklearn.metrics.roc_auc_score(is_out, scores, sample_weight=w),
                sklearn.metrics.average_precision_score(is_out, scores, sample_weight=w),
                fpr[np.argmax(tpr >= 0.95 - 1e-12)],
            )
            apart = (None, None) if w is None else (w[:300], w[300:])
            found = detection(inside, outside, *apart)
            assert all(value.dtype == dtype for value in found)
            np.testing.assert_allclose(found, expected, rtol=tolerance(dtype))
            curve = mt.roc_curve(inside, outside, in_weights=apart[0], out_weights=apart[1])
            points = np.unique(np.stack(curve[:2]).round(5), axis=1)
            reference = np.unique(np.stack([fpr, tpr]).round(5), axis=1)
            np.testing.assert_allclose(points, reference, atol=2e-5)


def test_fpr95_needs_nineteen_of_twenty():
    inside, outside = np.arange(20.0, dtype="float32"), np.arange(20.0, dtype="float32") + 0.5
    # The threshold 1.5 flags 19 of 20 outsiders, and the insiders from 2 on.
    np.testing.assert_allclose(detection(inside, outside)[2], 18 / 20, rtol=1e-6)
    assert detection(inside, outside + 100)[2] == 0


def test_perfect_and_constant_scores():
    ones, zeros = np.ones(7, "float32"), np.zeros(21, "float32")
    np.testing.assert_allclose(detection(zeros, ones), [1, 1, 0])
    np.testing.assert_allclose(detection(zeros, 0 * ones), [0.5, 0.25, 1])
    np.testing.assert_allclose(detection(ones[:1], ones[:1]), [0.5, 0.5, 1])


def test_the_curve_runs_from_corner_to_corner():
    inside, outside = np.array([0.0, np.inf], "float32"), np.array([1.0, np.inf], "float32")
    curve = mt.roc_curve(inside, outside)
    np.testing.assert_array_equal(curve.thresholds, [np.inf, np.inf, np.inf, 1, 0])
    np.testing.assert_array_equal(curve.false_positive_rate, [0, 0.5, 0.5, 0.5, 1])
    np.testing.assert_array_equal(curve.true_positive_rate, [0, 0.5, 0.5, 1, 1])
