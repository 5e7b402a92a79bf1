"""Coverage of conformal sets and intervals: its exact law, over many calibrations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from laplace_kit.eval.conformal import conformal_intervals, conformal_sets
from laplace_kit.eval.outputs import Predictive
from laplace_kit.likelihood import Bernoulli, Categorical, FromLoss, Gaussian
from laplace_kit.targets import BinaryTargets, ClassTargets, NormalTargets, Outputs

C = 4


def classifier(probs, likelihood=None) -> Predictive:
    probs = jnp.asarray(probs)
    likelihood = likelihood or Categorical()
    kind = BinaryTargets if isinstance(likelihood, Bernoulli) else ClassTargets
    return Predictive(kind(Outputs(jnp.zeros(probs.shape), probs), probs), likelihood)


def regression(mean, var) -> Predictive:
    mean, var = jnp.asarray(mean), jnp.asarray(var)
    return Predictive(NormalTargets(Outputs(mean, var), 0 * var), Gaussian())


# --- the law of the coverage ----------------------------------------------------------------------

REPEATS, NUM, NUM_TEST, LEVEL = 300, 39, 100, 0.85


def assert_coverage(covered: np.ndarray, rank: int) -> None:
    """Compare `(R,)` counts of covered test points with the beta-binomial law, in moments."""
    law = stats.betabinom(NUM_TEST, rank, NUM + 1 - rank)
    mean, var, kurtosis = (float(m) for m in law.stats(moments="mvk"))
    assert abs(covered.mean() - mean) < 4 * np.sqrt(var / REPEATS)
    assert abs(covered.var(ddof=1) - var) < 4 * var * np.sqrt((kurtosis + 2) / REPEATS)


def labelled(rng):
    """Return predictions of a classifier that is too sure, and labels."""
    logits = 2 * rng.normal(size=(NUM + NUM_TEST, C))
    gumbel = rng.gumbel(size=logits.shape)
    return special.softmax(3 * logits, axis=1), (logits + gumbel).argmax(axis=1)


@pytest.mark.parametrize("score", ["lac", "aps"])
def test_coverage_of_sets_has_its_exact_distribution(score, x64):
    rng, covered = np.random.default_rng(0), []
    for _ in range(REPEATS):
        probs, y = labelled(rng)
        sets = conformal_sets(classifier(probs[:NUM]), y[:NUM], level=LEVEL, score=score)
        inside = np.asarray(sets(classifier(probs[NUM:])))
        covered.append(inside[np.arange(NUM_TEST), y[NUM:]].sum())
    assert_coverage(np.asarray(covered), rank=34)  # ceil(40 * 0.85)


def test_randomised_sets_of_two_classes_cover_with_the_level(x64):
    """Sets that are not randomised hold both classes for every input."""
    rng, covered = np.random.default_rng(2), []
    likelihood = Bernoulli()
    for key in jax.random.split(jax.random.key(0), REPEATS):
        logits = rng.normal(size=(NUM + NUM_TEST, 1))
        y = (rng.logistic(size=logits.shape) < logits).astype(float)
        parts = np.split(special.expit(logits), [NUM])
        predictive = [classifier(part, likelihood) for part in parts]
        first, second = jax.random.split(key)
        sets = conformal_sets(predictive[0], y[:NUM], level=LEVEL, score="aps", key=first)
        inside = np.asarray(sets(predictive[1], key=second))[:, 0]
        covered.append(inside[np.arange(NUM_TEST), y[NUM:, 0].astype(int)].sum())
    assert_coverage(np.asarray(covered), rank=34)
    plain = conformal_sets(predictive[0], y[:NUM], level=LEVEL, score="aps")
    np.testing.assert_allclose(plain.threshold, 1)
    assert np.asarray(plain(predictive[1])).mean() > 0.9


def test_coverage_of_intervals_has_its_exact_distribution_for_every_output(x64):
    rng, covered = np.random.default_rng(1), []
    for _ in range(REPEATS):
        mean = rng.normal(size=(NUM + NUM_TEST, 2))
        var = rng.uniform(0.5, 2.0, mean.shape)
        y = mean + np.sqrt(var) * rng.standard_t(2, mean.shape)  # the predictive is wrong
        intervals = conformal_intervals(regression(mean[:NUM], var[:NUM]), y[:NUM], level=LEVEL)
        low, high = intervals(regression(mean[NUM:], var[NUM:]))
        covered.append(((low <= y[NUM:]) & (y[NUM:] <= high)).sum(axis=0))
    for of_output in np.asarray(covered).T:
        assert_coverage(of_output, rank=34)


# --- definitions ----------------------------------------------------------------------------------


def test_sets_by_hand():
    probs = np.asarray([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.4, 0.35, 0.25]])
    y = np.asarray([0, 2, 2, 1])
    lac = conformal_sets(classifier(probs), y, level=0.6)  # third of 0.2, 0.4, 0.65, 0.7
    np.testing.assert_allclose(lac.threshold, 0.65, rtol=1e-6)
    np.testing.assert_array_equal(lac(classifier(probs))[1], [0, 1, 0])
    aps = conformal_sets(classifier(probs), y, level=0.6, score="aps")  # of 0.6, 0.75, 0.8, 0.8
    np.testing.assert_allclose(aps.threshold, 0.8, rtol=1e-6)
    np.testing.assert_array_equal(aps(classifier(probs))[0], [1, 0, 0])
    np.testing.assert_array_equal(jax.jit(lambda s, p: s(p))(aps, classifier(probs))[1], [0, 1, 1])


def test_binary_labels_and_missing_ones():
    probs, y = (
        np.asarray([[0.9, 0.2], [0.6, 0.4], [0.7, 0.5]]),
        [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]],
    )
    predictive = classifier(probs, Bernoulli())
    found = conformal_sets(predictive, np.asarray(y), level=0.5)
    own = np.where(np.asarray(y) == 1, 1 - probs, probs)
    np.testing.assert_allclose(found.threshold, np.sort(own.ravel())[3], rtol=1e-6)  # ceil(7 / 2)
    assert found(predictive).shape == (3, 2, 2)
    mask = np.asarray([[1, 1], [0, 1], [1, 0]])
    masked = conformal_sets(predictive, (np.asarray(y), mask), level=0.5)
    np.testing.assert_allclose(masked.threshold, np.sort(own[mask == 1])[2], rtol=1e-6)


def test_intervals_leave_missing_targets_out(x64):
    rng = np.random.default_rng(2)
    mean, var, y = rng.normal(size=(12, 2)), rng.uniform(1, 2, (12, 2)), rng.normal(size=(12, 2))
    mask = np.ones((12, 2))
    mask[4:, 1] = 0
    found = conformal_intervals(regression(mean, var), (y, mask), level=0.5)
    scores = np.abs(y - mean) / np.sqrt(var)
    expected = [np.sort(scores[:, 0])[6], np.sort(scores[:4, 1])[2]]
    np.testing.assert_allclose(found.radius, expected)


# --- errors ---------------------------------------------------------------------------------------


def test_too_few_points_for_a_level_are_refused():
    mean = np.zeros((8, 1))
    y = np.linspace(0, 1, 8)[:, None]
    message = r"8 calibration points for level=0.9, expected at least 9: .* infinite .* most 0.8889"
    with pytest.raises(ValueError, match=message):
        conformal_intervals(regression(mean, mean + 1), y, level=0.9)
    conformal_intervals(regression(mean, mean + 1), y, level=8 / 9)
    nine = np.zeros((9, 1))
    found = conformal_intervals(regression(nine, nine + 1), np.arange(9.0)[:, None], level=0.9)
    np.testing.assert_allclose(found.radius, [8.0])  # the largest
    with pytest.raises(ValueError, match="expected at least 9"):
        conformal_sets(classifier(np.full((8, 2), 0.5)), np.zeros(8, int), level=0.9)


def test_what_cannot_be_calibrated_is_refused():
    probs = np.full((20, 2), 0.5)
    with pytest.raises(ValueError, match="expected one class"):
        conformal_sets(classifier(probs), probs)
    with pytest.raises(ValueError, match="score"):
        conformal_sets(classifier(probs), np.zeros(20, int), score="raps")
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="Found a key for score='lac'"):
        conformal_sets(classifier(probs), np.zeros(20, int), key=key)
    plain, randomised = (
        conformal_sets(classifier(probs), np.zeros(20, int), score="aps", key=k)
        for k in (None, key)
    )
    with pytest.raises(ValueError, match="Found no key for randomised scores"):
        randomised(classifier(probs))
    with pytest.raises(ValueError, match="Found a key for scores that were not randomised"):
        plain(classifier(probs), key=key)
    with pytest.raises(ValueError, match="between 0 and 1"):
        conformal_sets(classifier(probs), np.zeros(20, int), level=1.0)
    with pytest.raises(TypeError, match="expected classes"):
        conformal_sets(regression(probs, probs), probs)
    with pytest.raises(TypeError, match="no interval of numbers"):
        conformal_intervals(classifier(probs), np.zeros(20, int))
    loss = FromLoss(lambda f, y: (f - y).sum())
    unknown = Predictive(loss.targets(Outputs(*[jnp.asarray(probs)] * 2)), loss)
    with pytest.raises(TypeError, match="no interval of numbers"):
        conformal_intervals(unknown, probs)
    with pytest.raises(ValueError, match="expected the same shape"):
        conformal_intervals(regression(probs, probs), probs[:, 0])


# --- certainty and what is missing ----------------------------------------------------------------


@pytest.mark.parametrize("score", ["lac", "aps"])
@pytest.mark.parametrize("randomised", [False, True])
def test_sets_of_certain_predictions_hold_what_is_certain(score, randomised):
    """Probabilities of exactly zero and one, of which 3% are wrong."""
    y = np.arange(200) % C
    labels = np.where(np.arange(200) < 6, (y + 1) % C, y)
    predictive = classifier(np.eye(C, dtype="float32")[y])
    if randomised and score == "lac":
        return
    keys = jax.random.split(jax.random.key(0)) if randomised else [None, None]
    sets = conformal_sets(predictive, labels, score=score, key=keys[0])
    members = np.asarray(sets(predictive, key=keys[1]))
    assert not members[np.arange(C) != y[:, None]].any()
    assert members[np.arange(200), labels].mean() > 0.85
    # A level that so many errors do not allow is reached by everything, and by nothing less.
    everything = conformal_sets(predictive, labels, level=0.99, score=score, key=keys[0])
    assert np.asarray(everything(predictive, key=keys[1])).all()
    assert everything.threshold == (np.inf if score == "aps" else 1)


@pytest.mark.parametrize("score", ["lac", "aps"])
def test_scores_that_round_to_one_are_told_apart(score):
    """Labels are of the second class one time in five; the others have less than 1e-10."""
    probs = np.tile(np.asarray([1.0, 1e-9, 1e-11, 1e-12], "float32"), (100, 1))
    labels = (np.arange(100) % 5 == 0).astype(int)
    sets = conformal_sets(classifier(probs), labels, level=0.9, score=score)
    np.testing.assert_array_equal(sets(classifier(probs[:1])), [[1, 1, 0, 0]])


def test_targets_that_are_not_finite_are_refused_or_masked():
    mean, y = np.zeros((20, 1)), np.linspace(-1, 1, 20)[:, None]
    predictive = regression(mean, mean + 1)
    for bad in (np.nan, np.inf):
        hole = np.where(np.arange(20)[:, None] == 3, bad, y)
        message = r"first at example 3 \(1 in all\), expected finite numbers; .* \(y, mask\)"
        with pytest.raises(ValueError, match=message):
            conformal_intervals(predictive, hole)
        found = conformal_intervals(predictive, (hole, np.isfinite(hole)))
        dropped = conformal_intervals(regression(mean[1:], mean[1:] + 1), np.delete(y, 3, axis=0))
        np.testing.assert_allclose(found.radius, dropped.radius, rtol=1e-6)
    with pytest.raises(ValueError, match="NaN among the predictive's means"):
        conformal_intervals(regression(mean * np.nan, mean + 1), y)
    probs = np.full((20, 2), 0.5)
    with pytest.raises(ValueError, match="targets out of range, the first at example 0"):
        conformal_sets(classifier(probs), np.full(20, 2))
    for score in ("lac", "aps"):
        with pytest.raises(ValueError, match="NaN among the predictive's probabilities"):
            conformal_sets(classifier(probs * np.nan), np.zeros(20, int), score=score)


def test_targets_may_be_lists():
    probs, y = np.tile([[0.7, 0.3]], (20, 1)), [0, 1] * 10
    found = conformal_sets(classifier(probs), y, level=0.5)
    np.testing.assert_allclose(found.threshold, 0.7, rtol=1e-6)
