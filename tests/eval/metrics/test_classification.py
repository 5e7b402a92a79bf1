"""Scores of class probabilities against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from predictions import DTYPES, classification, tolerance
from twins import precision

from laplace_kit.eval import metrics as mt

SCORES = (mt.negative_log_likelihood, mt.accuracy, mt.top_k_accuracy, mt.brier_score)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [2, 6])
def test_scores_match_scikit_learn(num_classes, dtype):
    probs, labels = classification(num_classes=num_classes, dtype=dtype)
    weights = np.random.default_rng(1).uniform(size=len(labels))
    one_hot = np.eye(num_classes, dtype=dtype)[labels]
    reference = probs.astype(float)
    reference = reference / reference.sum(axis=1, keepdims=True)

    @jax.jit
    def scores(probs, y, weights):
        return (
            mt.negative_log_likelihood(probs, y, weights=weights),
            mt.accuracy(probs, y, weights=weights),
            mt.brier_score(probs, y, weights=weights),
            mt.top_k_accuracy(probs, y, num_classes - 1, weights=weights),
        )

    with precision(dtype):
        for w in (None, weights):
            top = sklearn.metrics.top_k_accuracy_score(
                labels if num_classes > 2 else np.eye(2)[labels].argmax(axis=1),
                reference if num_classes > 2 else reference[:, 1],
                k=num_classes - 1,
                labels=range(num_classes),
                sample_weight=w,
            )
            expected = (
                sklearn.metrics.log_loss(
                    labels, reference, labels=range(num_classes), sample_weight=w
                ),
                sklearn.metrics.accuracy_score(labels, probs.argmax(axis=1), sample_weight=w),
                np.average(((reference - one_hot) ** 2).sum(axis=1), weights=w),
                top,
            )
            for y in (labels, one_hot):
                found = scores(probs, y, w)
                assert all(value.dtype == dtype for value in found)
                np.testing.assert_allclose(found, expected, rtol=tolerance(dtype))


def test_top_k():
    probs = np.array([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]], "float32")
    labels = np.array([2, 2])
    # Of equal probabilities the first classes count.
    found = [float(mt.top_k_accuracy(probs, labels, k)) for k in (1, 2, 3, 4)]
    assert found == [0, 0, 1, 1]
    assert mt.top_k_accuracy(probs, labels, 1) == mt.accuracy(probs, labels)
    for k in (0, 5):
        with pytest.raises(ValueError, match=rf"k={k} for 4 classes, .*from 1 to 4"):
            mt.top_k_accuracy(probs, labels, k)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_perfect_predictions(num_classes):
    labels = np.arange(30) % num_classes
    probs = np.eye(num_classes, dtype="float32")[labels]
    assert mt.negative_log_likelihood(probs, labels) == 0
    assert mt.accuracy(probs, labels) == 1
    assert mt.brier_score(probs, labels) == 0


def test_certain_and_wrong():
    probs, labels = np.array([[1.0, 0.0]] * 5, "float32"), np.ones(5, int)
    assert mt.negative_log_likelihood(probs, labels) == np.inf
    assert mt.negative_log_likelihood(probs, 0 * labels) == 0
    some = np.array([0, 0, 0, 0, 1])
    assert mt.negative_log_likelihood(probs, some, weights=np.array([1, 1, 1, 1, 0])) == 0
    np.testing.assert_allclose(mt.brier_score(probs, labels), 2)


def test_soft_labels_give_the_cross_entropy():
    probs, _ = classification(dtype="float32")
    soft, _ = classification(seed=1, dtype="float32")
    expected = -(soft * np.log(probs)).sum(axis=1).mean()
    np.testing.assert_allclose(mt.negative_log_likelihood(probs, soft), expected, rtol=1e-5)


def test_half_precision_is_averaged_in_float32():
    probs, labels = classification(num_examples=2000, num_classes=6, dtype="float32")
    half = jnp.asarray(probs, jnp.bfloat16)
    for metric in SCORES:
        found = metric(half, labels)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, metric(probs, labels), atol=0.02)
