"""Maps of probabilities against scikit-learn, and the guarantee of Venn-Abers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from laplace_kit.eval.evaluation import negative_log_likelihood
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.recalibration import recalibrate
from laplace_kit.likelihood import Bernoulli, Categorical
from laplace_kit.targets import BinaryTargets, ClassTargets, Outputs

RNG = np.random.default_rng(0)
N, C = 400, 3
LOGITS = 2 * RNG.normal(size=(N, C))
TRUE = special.softmax(
    LOGITS @ np.array([[0.5, 0.1, 0], [0, 0.8, 0], [0, 0, 0.3]]) + [0.5, 0, 0], 1
)
Y = (TRUE.cumsum(axis=1) < RNG.uniform(size=(N, 1))).sum(axis=1).clip(0, 2)
PROBS = special.softmax(LOGITS, axis=1)
P, HITS = special.expit(LOGITS[:, 0]), (RNG.uniform(size=N) < special.expit(0.5 * LOGITS[:, 0] - 1))
WEIGHTS = RNG.integers(1, 4, N)
METHODS = ("vector", "matrix", "beta", "isotonic", "venn_abers")


def classifier(probs):
    probs = jnp.asarray(probs)
    return Predictive(ClassTargets(Outputs(0 * probs, probs), probs), Categorical())


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_matrix_scaling_is_multinomial_regression_on_log_probabilities(weights):
    logs = np.log(PROBS)
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=5000).fit(logs, Y, weights)
    found = recalibrate(PROBS, Y, method="matrix", weights=weights)(PROBS)
    np.testing.assert_allclose(found, model.predict_proba(logs), atol=2e-4)


def test_vector_scaling_is_at_the_optimum():
    found = recalibrate(PROBS, Y, method="vector")

    def nll(weight, bias):
        logs = special.log_softmax(np.log(PROBS) * weight + bias, axis=1)
        return -logs[np.arange(N), Y].sum()

    best, step = nll(found.weight, found.bias), 1e-3
    for index in range(C):
        for sign in (-step, step):
            moved = np.eye(C)[index] * sign
            assert nll(found.weight + moved, found.bias) > best - 1e-5
            assert nll(found.weight, found.bias + moved) > best - 1e-5


def test_beta_calibration_is_logistic_regression_where_slopes_are_positive():
    features = np.stack([np.log(P), -np.log1p(-P)], axis=1)
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=5000).fit(features, HITS)
    assert (model.coef_ > 0).all()
    found = recalibrate(P, HITS, method="beta")
    np.testing.assert_allclose(found.slopes, model.coef_, rtol=1e-2)
    np.testing.assert_allclose(found(P), model.predict_proba(features)[:, 1], atol=1e-3)
    falling = recalibrate(P, ~HITS, method="beta")
    assert (np.asarray(falling.slopes) >= 0).all()


def test_isotonic_calibration_is_that_of_scikit_learn():
    new = RNG.uniform(size=30)
    model = IsotonicRegression(out_of_bounds="clip").fit(P, HITS, WEIGHTS)
    found = recalibrate(P, HITS, method="isotonic", weights=WEIGHTS)
    np.testing.assert_allclose(found(new), model.predict(new), atol=1e-6)
    each = [
        IsotonicRegression(out_of_bounds="clip").fit(PROBS[:, c], c == Y).predict(PROBS[:, c])
        for c in range(C)
    ]
    columns = np.stack(each, axis=1)
    several = recalibrate(PROBS, Y, method="isotonic")(PROBS)
    np.testing.assert_allclose(several, columns / columns.sum(axis=1, keepdims=True), atol=1e-6)


def test_one_of_both_venn_abers_probabilities_is_calibrated():
    """The mean of the outcome minus the probability of its label: zero, to four standard errors."""
    rng, gaps, widths = np.random.default_rng(1), [], []
    for _ in range(400):
        p = rng.uniform(size=40)
        y = rng.uniform(size=40) < p**3
        low, high = recalibrate(p[:-1], y[:-1], method="venn_abers").bounds(p[-1:])
        assert low[0] <= high[0]
        gaps.append(y[-1] - (high[0] if y[-1] else low[0]))
        widths.append(high[0] - low[0])
    assert abs(np.mean(gaps)) < 4 * np.std(gaps) / np.sqrt(400)
    assert 0 < np.mean(widths) < 0.3


def test_venn_abers_merges_both_and_normalises():
    found = recalibrate(P, HITS, method="venn_abers")
    low, high = found.bounds(P)
    np.testing.assert_allclose(found(P), high / (1 - low + high))
    both = recalibrate(np.stack([1 - P, P], axis=1), HITS * 1, method="venn_abers")
    two = np.stack([1 - P, P], axis=1)
    np.testing.assert_allclose(both(two)[:, 1], found(P), atol=1e-12)
    ends = both.bounds(two)
    np.testing.assert_allclose(ends[0], np.stack([1 - high, low], axis=1))
    several = recalibrate(PROBS, Y, method="venn_abers")
    np.testing.assert_allclose(several(PROBS).sum(axis=1), 1)
    assert several.bounds(PROBS)[0].shape == (N, C)


@pytest.mark.parametrize("method", ["beta", "isotonic", "matrix"])
def test_maps_are_fitted_where_probabilities_round_to_one(method):
    """The same by logits in float32 as by probabilities in float64."""
    logits = np.float32(np.linspace(-25, 25, N))
    y = RNG.uniform(size=N) < special.expit(0.2 * logits)
    assert (special.expit(logits) == 1).sum() > N / 8
    outputs = jnp.asarray(logits)
    predictive = Predictive(
        BinaryTargets(
            Outputs(outputs, 0 * outputs), jax.nn.sigmoid(outputs), logits=jnp.asarray(logits)
        ),
        Bernoulli(),
    )
    found = recalibrate(predictive, y.astype("float32"), method=method)(predictive)
    p = special.expit(logits.astype(float))
    expected = recalibrate(p, y, method=method)(p)
    np.testing.assert_allclose(found.probs, expected, atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_predictives_are_recalibrated_as_arrays(method):
    predictive = classifier(PROBS)
    found = recalibrate(predictive, Y, method=method)
    new, others = found(predictive), special.softmax(0.9 * LOGITS[::-1], axis=1)
    expected = recalibrate(PROBS.astype("float32"), Y, method=method)(others)
    np.testing.assert_allclose(found(classifier(others)).probs, expected, atol=2e-3)
    before, after = (
        float(negative_log_likelihood(Categorical(), of, jnp.asarray(Y)))
        for of in (predictive, new)
    )
    assert after < before
    leaves, structure = jax.tree.flatten(found)
    again = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(again(predictive).probs, new.probs)


def test_binary_predictives_and_missing_labels():
    p = jnp.asarray(P[:, None], jnp.float32)
    predictive = Predictive(BinaryTargets(Outputs(0 * p, p), p), Bernoulli())
    mask = (np.arange(N) % 4 > 0)[:, None]
    found = recalibrate(predictive, (HITS[:, None] * 1.0, mask), method="beta")
    seen = mask[:, 0]
    expected = recalibrate(P[seen], HITS[seen], method="beta")(P)
    np.testing.assert_allclose(found(predictive).probs[:, 0], expected, atol=1e-4)


def test_certain_probabilities_and_perfect_ones_stay_finite():
    certain = np.eye(C)[Y]
    for method in METHODS:
        probs = recalibrate(certain, Y, method=method)(certain)
        assert np.isfinite(probs).all()
        assert (probs.argmax(axis=1) == Y).all()


def test_soft_labels_count_in_parts():
    soft = np.repeat(PROBS, 2, axis=0)
    labels, weights = np.stack([Y, (Y + 1) % C], axis=1).ravel(), np.tile([0.7, 0.3], N)
    shares = 0.7 * np.eye(C)[Y] + 0.3 * np.eye(C)[(Y + 1) % C]
    for method in ("vector", "beta", "isotonic"):
        expected = recalibrate(soft, labels, method=method, weights=weights)(PROBS)
        found = recalibrate(PROBS, shares, method=method)(PROBS)
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_refusals():
    with pytest.raises(ValueError, match="Found method='platt', expected one of 'temperature'"):
        recalibrate(PROBS, Y, method="platt")
    with pytest.raises(ValueError, match="per_output=True for ndarray and method='vector'"):
        recalibrate(PROBS, Y, method="vector", per_output=True)
    with pytest.raises(ValueError, match="sum to one"):
        recalibrate(2 * PROBS, Y, method="matrix")
