"""The bootstrap: the same numbers as resampling by hand, and intervals that hold the truth."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from predictions import classification, regression

from laplace_kit.eval import metrics as mt
from laplace_kit.eval.metrics import resampling
from laplace_kit.memory import Limits

KEY = jax.random.key(0)


def counts_of(key, num, num_resamples):
    """Return how often each example is drawn, by replicate."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_resamples))
    return jax.vmap(lambda k: resampling._counts(jax.random.split(k, 1)[0], num))(keys)


@pytest.mark.usefixtures("x64")
def test_replicates_are_metrics_of_examples_drawn_by_hand():
    mean, _, y = regression((40, 2))
    found = mt.bootstrap(mt.mae, mean, y, key=KEY, num_resamples=50, level=0.8)
    counts = np.asarray(counts_of(KEY, 40, 50))
    assert (counts.sum(axis=1) == 40).all()
    rows = [np.repeat(np.arange(40), count) for count in counts]
    replicates = np.array([np.abs(mean - y)[row].mean() for row in rows])
    shift = np.abs(mean - y).mean() - replicates.mean()
    np.testing.assert_allclose(found.value, np.abs(mean - y).mean(), rtol=1e-12)
    np.testing.assert_allclose(found.low, np.quantile(replicates, 0.1) + shift, rtol=1e-12)
    np.testing.assert_allclose(found.high, np.quantile(replicates, 0.9) + shift, rtol=1e-12)
    np.testing.assert_allclose(found.standard_error, replicates.std(ddof=1), rtol=1e-12)


def test_chunks_change_nothing(monkeypatch):
    mean, _, y = regression((30,), dtype="float32")
    whole = mt.bootstrap(mt.rmse, mean, y, key=KEY, num_resamples=25)
    monkeypatch.setattr(Limits, "working_set", lambda _: 8 * 90 * 4)
    assert resampling._chunks(25, [mean, y, mean]) == (7, 4)
    pieces = mt.bootstrap(mt.rmse, mean, y, key=KEY, num_resamples=25)
    np.testing.assert_allclose(whole, pieces, rtol=1e-6)


def test_the_standard_error_of_a_mean_is_that_of_textbooks():
    probs, labels = classification(400, dtype="float32")
    share = mt.accuracy(probs, labels)
    found = mt.bootstrap(mt.accuracy, probs, labels, key=KEY)
    np.testing.assert_allclose(found.standard_error, np.sqrt(share * (1 - share) / 400), rtol=0.1)
    assert found.low < share < found.high


def test_intervals_hold_the_truth_as_often_as_they_say():
    """90% intervals for 300 data sets of 80 examples; the truth is an integral."""

    @jax.jit
    @jax.vmap
    def holds(key):
        for_data, for_bootstrap = jax.random.split(key)
        y = jax.random.normal(for_data, (80,))
        options = {"key": for_bootstrap, "num_resamples": 200, "level": 0.9}
        found = mt.bootstrap(mt.crps_gaussian, jnp.zeros(80), 1.0, y, **options)
        return (found.low <= truth) & (truth <= found.high)

    truth = 1 / np.sqrt(np.pi)
    share = np.asarray(holds(jax.random.split(KEY, 300))).mean()
    assert 0.84 <= share <= 0.95


def test_two_samples_are_drawn_apart():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=200), rng.normal(1, 1, size=100)
    inside, outside = inside.astype("float32"), outside.astype("float32")
    found = mt.bootstrap_two_sample(mt.auroc, inside, outside, key=KEY)
    assert found.value == mt.auroc(inside, outside)
    # DeLong, DeLong and Clarke-Pearson (1988): the variances of either sample's placements.
    wins = (outside[:, None] > inside).astype(float)
    variance = wins.mean(axis=0).var(ddof=1) / 200 + wins.mean(axis=1).var(ddof=1) / 100
    np.testing.assert_allclose(found.standard_error, np.sqrt(variance), rtol=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_metric_may_have_options_a_structure_and_weights():
    probs, labels = classification(60)
    four_bins = partial(mt.reliability_bins, num_bins=4)
    weights = np.arange(60) % 3
    found = mt.bootstrap(four_bins, probs, labels, key=KEY, num_resamples=20, weights=weights)
    assert isinstance(found.low, mt.ReliabilityBins)
    expected = four_bins(probs, labels, weights=weights)
    jax.tree.map(np.testing.assert_array_equal, found.value, expected)
    assert (found.low.counts <= expected.counts).all()
    np.testing.assert_array_equal(found.standard_error.edges, 0)
    # Examples of no weight are drawn, and stay without one.
    kept = weights > 0
    only = mt.bootstrap(mt.accuracy, probs[kept], labels[kept], key=KEY, num_resamples=20)
    masked = mt.bootstrap(mt.accuracy, probs, labels, key=KEY, num_resamples=20, weights=kept)
    np.testing.assert_allclose(masked.value, only.value)


def test_new_values_do_not_recompile():
    probs, labels = classification(50, dtype="float32")

    def run(probs, seed):
        ten_bins = partial(mt.expected_calibration_error, num_bins=10)
        options = {"key": jax.random.key(seed), "num_resamples": 20}
        return mt.bootstrap(ten_bins, probs, labels, **options)

    run(probs, 0)
    with twins.compilations() as names:
        run(probs[::-1], 1)
    assert names == []


def auroc_of_labelled(p, y, weights):
    return mt.auroc(p, p, in_weights=weights * (1 - y), out_weights=weights * y)


def test_replicates_without_a_value_are_left_out():
    """Those without an example of one of the classes."""
    p, y = np.array([0.2, 0.4, 0.9], "float32"), np.array([0, 0, 1])
    weights = np.ones(3, int)
    found = mt.bootstrap(auroc_of_labelled, p, y, key=KEY, num_resamples=50, weights=weights)
    np.testing.assert_allclose(found, [1, 1, 1, 0])


def test_what_is_refused():
    probs, labels = classification(10, dtype="float32")
    with pytest.raises(ValueError, match=r"num_resamples=1, expected a whole number"):
        mt.bootstrap(mt.accuracy, probs, labels, key=KEY, num_resamples=1)
    with pytest.raises(ValueError, match=r"level=95.0, expected a number between 0 and 1"):
        mt.bootstrap(mt.accuracy, probs, labels, key=KEY, level=95.0)
    with pytest.raises(ValueError, match=r"the label 4 at y\[0\]"):
        mt.bootstrap(mt.accuracy, probs, labels + 4, key=KEY)
    with pytest.raises(ValueError, match=r"weights of shape \(9,\) for 10 examples"):
        mt.bootstrap(mt.accuracy, probs, labels, key=KEY, weights=np.ones(9))


def test_a_single_example_says_nothing_of_others():
    probs, labels = classification(1, dtype="float32")
    found = mt.bootstrap(mt.brier_score, probs, labels, key=KEY, num_resamples=5)
    np.testing.assert_allclose(found.value, mt.brier_score(probs, labels))
    assert np.isnan([found.low, found.high, found.standard_error]).all()
    scores = jnp.arange(4.0)
    found = mt.bootstrap_two_sample(mt.auroc, scores, scores[2:3], key=KEY, num_resamples=5)
    assert float(found.value) == 0.625
    assert np.isnan([found.low, found.high]).all()


def test_replicates_need_memory_only_for_what_depends_on_their_weights(monkeypatch):
    """Probabilities of many classes are larger by far than what a resample of an accuracy takes."""
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet(np.ones(200), size=40), rng.integers(200, size=40)
    probs = probs.astype(np.float32)
    statistic = resampling._OneSample(resampling._hashable(mt.accuracy))
    decided = resampling._replicate_bytes(statistic, (probs, labels), [jnp.ones(40)])
    assert 40 * 4 <= decided < probs.nbytes / 10
    whole = mt.bootstrap(mt.accuracy, probs, labels, key=KEY, num_resamples=25)
    monkeypatch.setattr(Limits, "working_set", lambda _: 8 * probs.size)
    found = mt.bootstrap(mt.accuracy, probs, labels, key=KEY, num_resamples=25)
    np.testing.assert_allclose(jax.tree.leaves(found), jax.tree.leaves(whole), rtol=1e-6)
    assert resampling._chunks(25, [probs], decided) == (1, 25)
