"""Class-wise gaps: those of every class by itself in NumPy float64, whatever the weights."""

import jax
import numpy as np
import pytest
from scipy.special import softmax

from laplace_kit.eval import metrics
from laplace_kit.eval.metrics.classwise import class_gaps, mean_class_gap


def reference(probs, targets, weights, num_bins):
    """Return the error class by class and bin by bin, `(edges[b], edges[b + 1]]`."""
    edges = np.linspace(0, 1, num_bins + 1).astype(probs.dtype)
    indices = np.searchsorted(edges[1:-1], probs, side="left")
    gaps = targets.astype(float) - probs
    total = sum(
        abs(np.sum(weights * np.where(indices[:, c] == b, gaps[:, c], 0)))
        for c in range(probs.shape[1])
        for b in range(num_bins)
    )
    return total / probs.shape[1] / weights.sum()


@pytest.mark.parametrize(
    ("shape", "num_bins", "scale"),
    [
        ((300, 2), 15, 2.0),
        ((200, 5), 15, 3.0),
        ((60, 40), 4, 0.1),
        ((60, 40), 30, 5.0),
        ((9, 3), 1, 1),
    ],
)
def test_every_class_and_bin(shape, num_bins, scale):
    rng = np.random.default_rng(0)
    probs = softmax(scale * rng.normal(size=shape), axis=1).astype(np.float32)
    labels = rng.integers(shape[1], size=len(probs))
    weights = rng.integers(0, 4, len(probs))
    expected = reference(probs, np.eye(shape[1])[labels], weights, num_bins)
    found = metrics.classwise_calibration_error(probs, labels, num_bins, weights=weights)
    assert float(found) == pytest.approx(expected, rel=2e-6)


def test_soft_labels_and_probabilities_on_the_edges():
    edges = np.linspace(0, 1, 16).astype(np.float32)
    probs = np.stack([edges, 1 - edges], axis=1)
    targets = np.stack([1 - edges**2, edges**2], axis=1)
    found = metrics.classwise_calibration_error(probs, targets)
    assert float(found) == pytest.approx(reference(probs, targets, np.ones(16), 15), rel=2e-6)


def test_sums_over_blocks_keep_what_one_sum_would_lose():
    """A million equal examples, whose sequential sum in float32 would be off by a percent."""
    num = 2**20
    probs = np.tile(np.array([[0.999, 0.001]], np.float32), (num, 1))
    labels = (np.arange(num) % 1000 == 0).astype(np.int32)
    expected = abs(labels.mean() - probs[0, 1].astype(float))
    found = metrics.classwise_calibration_error(probs, labels)
    assert float(found) == pytest.approx(expected, abs=1e-7)


def test_what_is_unknown_stays_unknown_and_nothing_compiles_anew():
    rng = np.random.default_rng(0)
    probs = softmax(rng.normal(size=(20, 4)), axis=1).astype(np.float32)
    targets = np.eye(4, dtype=np.float32)[rng.integers(4, size=20)]
    gaps = class_gaps(probs, targets, 15)
    assert np.isfinite(mean_class_gap(gaps, np.ones(20, int), 15))
    num = mean_class_gap._cache_size()
    targets[3] = np.nan
    unknown = class_gaps(probs, targets, 15)
    assert np.isnan(mean_class_gap(unknown, np.full(20, 2), 15))
    assert mean_class_gap._cache_size() == num


def test_a_thousand_classes_are_resampled_without_a_pass_over_them():
    """Each replicate is a product with its weights: less than a tenth of sorting all into bins."""
    gaps = jax.eval_shape(
        lambda p, t: class_gaps(p, t, 15),
        *(jax.ShapeDtypeStruct((2000, 1000), np.float32),) * 2,
    )
    assert gaps.others.shape == gaps.places.shape == (2000, 16)
    weights = jax.ShapeDtypeStruct((2000,), np.float32)
    cost = mean_class_gap.lower(gaps, weights, 15).compile().cost_analysis()
    assert cost["flops"] < 3 * 2000 * 1000
