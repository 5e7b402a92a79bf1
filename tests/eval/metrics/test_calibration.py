"""Calibration errors against brute force in numpy, and what chance alone makes of them."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from predictions import DTYPES, classification, tolerance
from twins import precision

from laplace_kit.eval import metrics as mt

TOP_LABEL = (
    mt.expected_calibration_error,
    mt.maximum_calibration_error,
    mt.adaptive_calibration_error,
)
ALL = (
    *TOP_LABEL,
    mt.classwise_calibration_error,
    mt.squared_calibration_error,
    mt.debiased_calibration_error,
)


@partial(jax.jit, static_argnames="num_bins")
def errors(probs, y, num_bins=15):
    return [metric(probs, y, num_bins) for metric in ALL]


def brute_force_gaps(predicted, observed, edges):
    """Share and |observed - predicted| of each occupied bin (lo, hi]."""
    gaps = []
    for lo, hi in itertools.pairwise(edges):
        inside = (predicted > lo) & (predicted <= hi)
        if inside.any():
            gaps.append((inside.mean(), abs(observed[inside].mean() - predicted[inside].mean())))
    return np.array(gaps).T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_bins", [7, 1000])
def test_calibration_errors_match_brute_force(num_bins, dtype):
    probs, labels = classification(dtype=dtype)
    edges = np.linspace(0, 1, num_bins + 1, dtype=dtype)
    confidence, hit = probs.max(axis=1), probs.argmax(axis=1) == labels
    share, gaps = brute_force_gaps(confidence, hit, edges)
    groups = [g for g in np.array_split(np.argsort(confidence), num_bins) if len(g)]
    adaptive = sum(abs(hit[g].mean() - confidence[g].mean()) * len(g) for g in groups) / len(hit)
    # Kumar et al. (2019), `unbiased_square_ce` of their package.
    squared = sum(
        len(g)
        * ((hit[g].mean() - confidence[g].mean()) ** 2 - hit[g].var() / (len(g) - 1))
        / len(hit)
        for g in groups
        if len(g) > 1
    )
    by_class = [
        np.prod(brute_force_gaps(probs[:, c], labels == c, edges), axis=0).sum() for c in range(4)
    ]
    expected = [share @ gaps, gaps.max(), adaptive, np.mean(by_class), squared]

    with precision(dtype):
        found = errors(probs, labels, num_bins)
        assert all(value.dtype == dtype for value in found)
        np.testing.assert_allclose(found[:5], expected, atol=tolerance(dtype))
        np.testing.assert_allclose(found[5], np.sqrt(max(found[4], 0)), rtol=tolerance(dtype))


def test_perfect_and_wrong_and_single():
    labels = np.arange(30) % 3
    probs = np.eye(3, dtype="float32")[labels]
    np.testing.assert_allclose(errors(probs, labels), 0, atol=1e-7)
    np.testing.assert_array_equal(errors(probs[:1, :1], labels[:1]), 0)  # one class, one example
    wrong = errors(probs, (labels + 1) % 3)
    np.testing.assert_allclose(wrong, [1, 1, 1, 2 / 3, 1, 1], rtol=1e-6)


def test_the_order_of_tied_examples_does_not_matter():
    rng = np.random.default_rng(0)
    top = rng.choice([0.6, 0.75, 1.0], size=40).astype("float32")
    probs, labels = np.stack([top, 1 - top], axis=1), rng.integers(2, size=40)
    order = rng.permutation(40)
    found = errors(probs[order], labels[order], 5)
    np.testing.assert_allclose(found, errors(probs, labels, 5), atol=1e-6)


def test_what_is_calibrated_has_no_debiased_error():
    """For small data sets, chance makes the plain errors positive, and the debiased one zero."""

    @jax.jit
    @jax.vmap
    def errors_of_few(key):
        for_probs, for_labels = jax.random.split(key)
        probs = jax.random.dirichlet(for_probs, jnp.full(4, 0.5), (200,))
        labels = jax.random.categorical(for_labels, jnp.log(probs))
        metrics = (mt.squared_calibration_error, *TOP_LABEL)
        return [metric(probs, labels) for metric in metrics]

    squared, *plain = map(np.asarray, errors_of_few(jax.random.split(jax.random.key(0), 400)))
    standard_error = squared.std() / np.sqrt(len(squared))
    # The confidences within a bin differ: that adds a little, far less than it takes away.
    assert abs(squared.mean()) < 3 * standard_error + 1e-4
    assert (squared < 0).mean() > 0.3
    ece, _, ace = plain
    assert ece.mean() > 0.05
    assert ace.mean() > 0.05
    assert ece.mean() ** 2 > 10 * abs(squared.mean())


def test_a_calibrated_classifier_has_a_small_error():
    probs, labels = classification(num_examples=20_000, dtype="float32")
    expected, _, adaptive, classwise, _, debiased = errors(probs, labels)
    assert max(expected, adaptive, classwise, debiased) < 0.02


def test_a_million_examples_in_float32():
    rng = np.random.default_rng(0)
    top = rng.uniform(0.9, 1, size=1_000_000)
    probs, labels = np.stack([top, 1 - top], axis=1), (rng.uniform(size=top.size) > top).astype(int)
    _, gaps = brute_force_gaps(top, labels == 0, np.linspace(0, 1, 16))
    found = mt.maximum_calibration_error(probs.astype("float32"), labels)
    np.testing.assert_allclose(found, gaps.max(), atol=1e-5)


def test_soft_labels_that_equal_the_predictions_are_calibrated():
    probs, _ = classification(60, dtype="float32")
    found = [metric(probs, probs) for metric in (*TOP_LABEL, mt.debiased_calibration_error)]
    np.testing.assert_allclose(found, np.zeros(len(found)), atol=1e-6)
    halved = (probs + np.eye(probs.shape[1], dtype=np.float32)[probs.argmax(axis=1)]) / 2
    expected = np.mean(halved.max(axis=1) - probs.max(axis=1))
    np.testing.assert_allclose(mt.expected_calibration_error(halved, probs), expected, rtol=1e-4)
