"""Coverage of conformal sets and intervals: its exact law, over many calibrations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from laplace_kit.eval.conformal import conformal_intervals, conformal_sets
from laplace_kit.eval.conformal_scores import RAPS
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
        conformal_sets(classifier(probs), np.zeros(20, int), score="saps")
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


# --- groups, classes, ranks, quantiles ------------------------------------------------------------


def test_coverage_within_each_group_has_its_exact_distribution():
    """The groups' noise differs tenfold: one radius for both covers one too often."""
    rng, covered, pooled = np.random.default_rng(3), [], []
    groups = np.repeat(["calm", "wild"], [NUM, NUM])
    for _ in range(REPEATS):
        scale = np.where(groups == "calm", 0.1, 1.0)
        mean, std = np.zeros(2 * NUM), np.ones(2 * NUM)
        y = scale * rng.normal(size=2 * NUM)
        found = conformal_intervals((mean, std), y, level=LEVEL, groups=groups)
        new = {name: s * rng.normal(size=NUM_TEST) for name, s in (("calm", 0.1), ("wild", 1.0))}
        low, high = found.radius * -1, found.radius
        ends = zip(found.groups, np.asarray(low), np.asarray(high), strict=True)
        covered.append([((a <= new[name]) & (new[name] <= b)).sum() for name, a, b in ends])
        one = float(conformal_intervals((mean, std), y, level=LEVEL).radius)
        pooled.append((np.abs(new["wild"]) <= one).mean())
    for of_group in np.asarray(covered).T:
        assert_coverage(of_group, rank=34)
    assert np.mean(pooled) < LEVEL - 0.05
    both = found((np.zeros(2), np.ones(2)), groups=["wild", "calm"])
    np.testing.assert_allclose(both[1], found.radius[::-1])


def test_sets_by_group_and_class_are_those_of_each_alone():
    rng = np.random.default_rng(4)
    probs = rng.dirichlet(np.ones(3), 300).astype("float32")
    y, groups = rng.integers(0, 3, 300), rng.integers(0, 2, 300)
    found = conformal_sets(probs, y, groups=groups, by_class=True)
    assert found.least.shape == (2, 3)
    members = np.asarray(found(probs, groups=groups))
    for group in (0, 1):
        for label in range(3):
            cell = (groups == group) & (y == label)
            alone = conformal_sets(probs[cell], y[cell])
            assert float(found.least[group, label]) == float(alone.least)
            inside = np.asarray(alone(probs))[:, label]
            np.testing.assert_array_equal(members[groups == group, label], inside[groups == group])
    by_group = conformal_sets(probs, y, groups=groups)
    alone = conformal_sets(probs[groups == 1], y[groups == 1])
    np.testing.assert_array_equal(
        np.asarray(by_group(probs, groups=groups))[groups == 1],
        np.asarray(alone(probs))[groups == 1],
    )


def test_rare_classes_are_covered_by_class():
    """The mean over repetitions of the coverage of a class of 10%, to four standard errors."""
    rng, found, plain = np.random.default_rng(5), [], []
    for _ in range(100):
        y = (rng.uniform(size=400) < 0.1).astype(int)
        p = special.expit(1.5 * (2 * y - 1) + rng.normal(size=400) - 2).astype("float32")
        first, rare = slice(0, 200), y[200:] == 1
        for by_class, into in ((True, found), (False, plain)):
            sets = conformal_sets(p[first], y[first], level=0.8, by_class=by_class)
            into.append(np.asarray(sets(p[200:]))[rare, 1].mean())
    error = 4 * np.std(found) / 10
    assert abs(np.mean(found) - 0.8) < error + 0.05  # at most 1 / (n + 1) more
    assert np.mean(found) > 0.8 - error
    assert np.mean(plain) < 0.7


def test_groups_of_examples_with_several_labels():
    rng = np.random.default_rng(6)
    probs = rng.uniform(size=(40, 2)).astype("float32")
    y, groups = rng.integers(0, 2, (40, 2)).astype("float32"), np.arange(40) % 2
    predictive = classifier(probs, Bernoulli())
    found = conformal_sets(predictive, y, groups=groups, by_class=True, level=0.5)
    assert found(predictive, groups=groups).shape == (40, 2, 2)
    own = np.where(y == 1, probs, 1 - probs)[groups == 1]
    label_one = np.sort(own[y[groups == 1] == 1])[::-1]
    rank = int(np.ceil((len(label_one) + 1) / 2))
    np.testing.assert_allclose(found.least[1, 1], label_one[rank - 1], rtol=1e-6)


def test_raps_by_hand_and_smaller_than_aps():
    probs = np.asarray([[0.5, 0.3, 0.15, 0.05]], "float32")
    y = np.asarray([1] * 9)
    sets = conformal_sets(np.repeat(probs, 9, axis=0), y, score=RAPS(0.2, 1))
    np.testing.assert_allclose(sets.threshold, 0.8 + 0.2, rtol=1e-6)
    np.testing.assert_array_equal(sets(probs), [[1, 1, 0, 0]])  # 0.5, 0.8 + 0.2, 0.95 + 0.4
    rng = np.random.default_rng(7)
    logits = 2 * rng.normal(size=(800, 30))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    many = special.softmax(0.4 * logits, axis=1).astype("float32")  # long tails
    keys, sizes = jax.random.split(jax.random.key(0)), []
    for score in ("aps", RAPS(0.1, 3)):
        sets = conformal_sets(many[:400], labels[:400], score=score, key=keys[0])
        members = np.asarray(sets(many[400:], key=keys[1]))
        covered = members[np.arange(400), labels[400:]].mean()
        assert abs(covered - 0.9) < 4 * np.sqrt(2 * 0.09 / 400)
        sizes.append(members.sum(axis=1).mean())
    assert sizes[1] < sizes[0]
    by_name = conformal_sets(many, labels, score="raps")
    assert by_name.score == RAPS()


def test_quantiles_are_moved_by_the_score():
    rng, covered = np.random.default_rng(8), []
    for _ in range(REPEATS):
        x = rng.uniform(0.2, 2, NUM + NUM_TEST)
        y = x * rng.standard_t(3, x.shape)
        low, high = -x, x
        found = conformal_intervals(
            (low[:NUM], high[:NUM]), y[:NUM], level=LEVEL, score="quantiles"
        )
        new = np.asarray(found((low[NUM:], high[NUM:])))
        covered.append(((new[0] <= y[NUM:]) & (y[NUM:] <= new[1])).sum())
    assert_coverage(np.asarray(covered), rank=34)
    np.testing.assert_allclose(new[1] - high[NUM:], float(found.radius), rtol=1e-4)
    too_wide = conformal_intervals((low - 9, high + 9), 0 * y, level=LEVEL, score="quantiles")
    ends = np.asarray(too_wide((low, low + 1)))
    np.testing.assert_array_equal(ends[0], ends[1])  # none is the wrong way round


def test_quantiles_of_a_predictive():
    rng = np.random.default_rng(9)
    mean, var = rng.normal(size=(60, 2)), rng.uniform(0.5, 2, (60, 2))
    y = mean + 2 * np.sqrt(var) * rng.normal(size=mean.shape)
    predictive = regression(mean, var)
    found = conformal_intervals(predictive, y.astype("f"), score="quantiles")
    low, high = (np.asarray(end) for end in predictive.interval(0.9))
    scores = np.sort(np.maximum(low - y, y - high), axis=0)[54]  # ceil(61 * 0.9)
    np.testing.assert_allclose(found.radius, scores, rtol=1e-4)
    np.testing.assert_allclose(found(predictive)[1], high + scores, rtol=1e-4)


def test_plain_arrays_are_calibrated_as_predictives():
    rng = np.random.default_rng(10)
    probs, y = rng.dirichlet(np.ones(3), 60).astype("float32"), rng.integers(0, 3, 60)
    assert conformal_sets(probs, y).least == conformal_sets(classifier(probs), y).least
    p, hits = probs[:, 0], rng.integers(0, 2, 60) > 0
    both = np.stack([1 - p, p], axis=1)
    assert conformal_sets(p, hits).least == conformal_sets(both, hits * 1).least
    mean, var = rng.normal(size=(60, 1)), rng.uniform(1, 2, (60, 1))
    y = mean + rng.normal(size=mean.shape)
    plain = conformal_intervals((mean, np.sqrt(var)), y)
    same = conformal_intervals(regression(mean, var), y.astype("f"))
    np.testing.assert_allclose(plain.radius, same.radius, rtol=1e-5)


def test_refusals_of_groups():
    rng = np.random.default_rng(11)
    probs, y, groups = rng.dirichlet(np.ones(2), 30), rng.integers(0, 2, 30), ["a"] * 25 + ["b"] * 5
    with pytest.raises(ValueError, match="Found 5 calibration points of the group 'b' for level"):
        conformal_sets(probs, y, groups=groups)
    rare = np.asarray([1] * 27 + [0] * 3)
    with pytest.raises(ValueError, match="Found 3 calibration points with the label 0 for level"):
        conformal_sets(probs, rare, by_class=True)
    found = conformal_sets(probs, y, groups=groups, level=0.5)
    with pytest.raises(ValueError, match="Found no groups for a calibration by group"):
        found(probs)
    with pytest.raises(ValueError, match="Found the group 'c', expected one of 'a', 'b'"):
        found(probs, groups=["c"] * 30)
    with pytest.raises(ValueError, match="Found groups for a calibration without any"):
        conformal_sets(probs, y)(probs, groups=groups)
    with pytest.raises(ValueError, match=r"Found groups of shape \(3,\) for 30 examples"):
        conformal_sets(probs, y, groups=[1, 2, 3])
    with pytest.raises(ValueError, match="Found penalty=-1"):
        RAPS(-1.0)
    with pytest.raises(ValueError, match="expected one of 'std', 'quantiles'"):
        conformal_intervals((y * 1.0, y + 1.0), y * 1.0, score="cqr")
    with pytest.raises(ValueError, match="std with an entry that is not positive"):
        conformal_intervals((y * 1.0, y * 0.0), y * 1.0)
    with pytest.raises(ValueError, match="targets that are not finite"):
        conformal_intervals((y * 1.0, y + 1.0), y * np.nan)
