"""Bootstrap weightings are draws with replacement, and intervals centred percentiles."""

import numpy as np
import pytest

from laplace_kit.eval.statistics import resampling
from laplace_kit.eval.statistics.resampling import interval, weightings


def drawn(samples, num=400, seed=0):
    chunks = zip(*weightings(samples, num, seed), strict=True)
    return [np.concatenate(parts) for parts in chunks]


def test_as_many_examples_are_drawn_as_there_are_in_every_chunk(monkeypatch):
    monkeypatch.setattr(resampling, "_CHUNK", 1000)
    (found,) = drawn([np.ones(50)])
    assert found.shape == (400, 50)
    np.testing.assert_array_equal(found.sum(axis=1), 50)
    assert found.mean() == 1
    assert found.var() == pytest.approx(1 - 1 / 50, rel=0.05)
    again, other = drawn([np.ones(50)])[0], drawn([np.ones(50)], seed=1)[0]
    np.testing.assert_array_equal(found, again)
    assert (found != other).any()


def test_counts_are_repeated_examples_and_proportions_factors():
    counts = np.array([3.0, 0.0, 1.0, 2.0])
    repeated = np.repeat(np.arange(4), counts.astype(int))
    (found,), (alone,) = drawn([counts]), drawn([np.ones(6)])
    expected = np.stack([alone[:, repeated == k].sum(axis=1) for k in range(4)], axis=1)
    np.testing.assert_array_equal(found, expected)
    proportions = np.array([0.5, 2.0, 0.25])
    (found,), (plain,) = drawn([proportions]), drawn([np.ones(3)])
    np.testing.assert_array_equal(found, plain * proportions)


@pytest.mark.parametrize("weights", [[3000.0, 0.0, 5000.0], [0.5, 0.25, 0.25]])
def test_many_examples_are_drawn_by_their_numbers(weights, monkeypatch):
    monkeypatch.setattr(resampling, "_MOST_DRAWN", 2)
    weights = np.array(weights)
    (found,) = drawn([weights], 2000)
    total = weights.sum() if weights[0] > 1 else 3
    share = weights / weights.sum() if weights[0] > 1 else np.full(3, 1 / 3)
    factor = 1 if weights[0] > 1 else weights
    np.testing.assert_allclose(found.mean(axis=0), total * share * factor, rtol=0.05)
    variance = total * share * (1 - share) * factor**2
    np.testing.assert_allclose(found.var(axis=0), variance, rtol=0.1)


def test_samples_are_resampled_apart():
    first, second = drawn([np.ones(20), np.ones(20)])
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_intervals_leave_unknown_replicates_out():
    replicates = np.append(np.linspace(0, 1, 101), np.nan)
    assert interval(0.7, replicates, 0.9) == pytest.approx((0.25, 1.15))
    assert np.isnan(interval(0.7, np.append(replicates, np.inf), 0.9)).all()
    assert np.isnan(interval(0.7, np.full(3, np.nan), 0.9)).all()


def test_examples_of_weight_zero_are_never_drawn():
    weights = np.array([0.5, 1.5, 0.0, 0.0, 0.0])
    (found,), (alone,) = drawn([weights]), drawn([weights[:2]])
    np.testing.assert_array_equal(found[:, :2], alone)
    assert not found[:, 2:].any()
