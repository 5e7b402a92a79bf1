"""Claims are judged by the exact distribution of the number of events, and by weights."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom, norm

from laplace_kit.eval.report import claims
from laplace_kit.eval.report.claims import accuracy_claim, coverage_claim


def of_classes(probs, y):
    return accuracy_claim(probs, y, np.ones(len(y)))


def test_claims_are_judged_by_what_chance_would_do(classified, regressed):
    predictions, y, written = classified
    probs = predictions["map"].probs.astype(float)
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == y
    chances = np.ones(1)
    for claim in confidence:
        chances = np.convolve(chances, [1 - claim, claim])
    assert right.mean() < confidence.mean()
    assert written.metrics["claims"]["map"] == pytest.approx(
        {
            "claimed": confidence.mean(),
            "kept": right.mean(),
            "p_value": 2 * chances[: right.sum() + 1].sum(),
            "impossible": 0,
        },
        abs=1e-12,
    )
    expected = binom.pmf(np.arange(8), 7, 0.3)
    found = claims._poisson_binomial(np.full(7, 0.3))
    np.testing.assert_allclose(found, [*expected, *[0.0] * (len(found) - 8)], atol=1e-14)
    assert written.metrics["claims"]["laplace"]["p_value"] == pytest.approx(1, abs=1e-3)
    assert regressed[-1].metrics["claims"]["laplace"]["p_value"] > 0.05
    assert regressed[-1].metrics["claims"]["map"]["p_value"] < 1e-6


def test_certainty_is_calibrated_only_where_it_is_right():
    certain = np.eye(2)[[0, 1, 1]]
    right = of_classes(certain, np.array([0, 1, 1]))
    wrong = of_classes(certain, np.array([0, 1, 0]))
    assert (right["p_value"], wrong["p_value"]) == (1.0, 0.0)


def test_booleans_are_labels():
    probs = np.array([[0.9, 0.1], [0.3, 0.7], [1.0, 0.0]])
    y = np.array([False, True, True])
    assert of_classes(probs, y) == of_classes(probs, y.astype(int))
    assert of_classes(probs, y)["impossible"] == 1


@pytest.mark.parametrize("num", [50, 500, 5000])
def test_miscalibration_is_told_in_sign_and_size(num):
    rng = np.random.default_rng(num)
    logits = rng.normal(0.0, 1.5, (num, 5))
    honest = softmax(logits, axis=1)
    y = (honest.cumsum(axis=1) > rng.uniform(size=(num, 1))).argmax(axis=1)
    # A temperature keeps what is most probable: the gap is that between confidences, and chance.
    for temperature, sign in ((0.5, 1), (2.0, -1)):
        probs = softmax(logits / temperature, axis=1)
        found = of_classes(probs, y)
        expected = (probs.max(axis=1) - honest.max(axis=1)).mean()
        assert np.sign(expected) == sign
        assert found["claimed"] - found["kept"] == pytest.approx(expected, abs=1.5 / num**0.5)
        assert found["p_value"] < 0.05 or num == 50
    targets = rng.normal(size=(num, 1))
    for scale, sign in ((0.5, 1), (2.0, -1)):
        kept = (np.abs(targets) <= norm.ppf(0.95) * scale).mean()
        found = coverage_claim(np.full(num, 0.9), kept, np.ones(num))
        expected = 0.9 - (2 * norm.cdf(norm.ppf(0.95) * scale) - 1)
        assert np.sign(expected) == sign
        assert found["claimed"] - found["kept"] == pytest.approx(expected, abs=1.5 / num**0.5)
        assert found["p_value"] < 0.05


@pytest.mark.parametrize(("num", "doubt"), [(50, 1e-3), (50, 3e-3), (500, 1e-4), (500, 3e-3)])
def test_honest_predictors_are_seldom_found_guilty(num, doubt):
    rng = np.random.default_rng(0)
    probs = np.full((num, 2), [1.0 - doubt, doubt])
    p_values = [
        of_classes(probs, (rng.uniform(size=num) < doubt).astype(int))["p_value"]
        for _ in range(500)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.06
    assert np.mean(np.array(p_values) < 0.001) < 0.004


def test_soft_labels_are_right_by_what_they_give():
    labels = np.random.default_rng(0).dirichlet(np.ones(3), 500)
    found = of_classes(labels, labels)
    assert found["kept"] == pytest.approx(found["claimed"])
    assert found["p_value"] == pytest.approx(1.0)
    assert of_classes(labels, labels.argmax(axis=1))["p_value"] < 1e-6


def test_whole_weights_repeat_examples():
    rng = np.random.default_rng(0)
    probs, y = rng.dirichlet(np.ones(3), 50), rng.integers(0, 3, 50)
    weights = rng.integers(0, 4, 50).astype(float)
    again = np.repeat(np.arange(50), weights.astype(int))
    found, expected = accuracy_claim(probs, y, weights), of_classes(probs[again], y[again])
    assert found == pytest.approx(expected, rel=1e-12)


def test_proportions_are_judged_by_their_own_variance():
    """Half of the weight on few examples leaves less evidence than their number suggests."""
    rng = np.random.default_rng(0)
    weights = np.repeat([0.5, 4.5], [90, 10])
    contents = np.full(100, 0.9)
    error = 0.3 * np.sqrt(np.sum(weights**2)) / weights.sum()
    found = coverage_claim(contents, 0.9 - 1.5 * error, weights)["p_value"]
    assert found == pytest.approx(2 * norm.sf(1.5), rel=1e-9)
    p_values = [
        coverage_claim(contents, np.average(rng.uniform(size=100) < 0.9, weights=weights), weights)[
            "p_value"
        ]
        for _ in range(1000)
    ]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.02)


def test_labels_of_probability_zero_are_counted():
    probs = np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    y = np.array([0, 1, 1])
    assert of_classes(probs, y)["impossible"] == 1
    assert accuracy_claim(probs, y, np.ones(3), np.log(probs + 1e-9))["impossible"] == 0
    assert accuracy_claim(probs, y, np.array([1.0, 0, 1]))["impossible"] == 0
    assert of_classes(probs, np.array([[1, 0], [0.5, 0.5], [0, 1]]))["impossible"] == 1
