"""The best factors and what they would change agree with optimisers and with new data."""

import numpy as np
import pytest
from scipy import optimize, special

from laplace_kit.eval.report import ClassPredictions, RegressionPredictions
from laplace_kit.eval.report.recalibrated import recalibrated_classes, recalibrated_numbers

RNG = np.random.default_rng(0)
LOGITS = 1.5 * RNG.normal(size=(400, 3))
Y = np.argmax(LOGITS + RNG.gumbel(size=LOGITS.shape), axis=1)


def probs(scale, logits=LOGITS):
    return special.softmax(scale * logits, axis=1)


def nll(temperature, given, y, weights):
    logs = special.log_softmax(np.log(given) / temperature, axis=1)
    losses = -logs[np.arange(len(y)), y] if y.ndim == 1 else -(y * logs).sum(axis=1)
    return np.average(losses, weights=weights)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_temperature_is_that_of_an_optimiser(scale, soft, weighted):
    y = 0.9 * np.eye(3)[Y] + 0.1 / 3 if soft else Y
    weights = np.random.default_rng(1).uniform(0, 2, 400) if weighted else np.ones(400)
    given = probs(scale)
    found = recalibrated_classes({"map": ClassPredictions(given)}, y, weights=weights)["map"]
    best = optimize.minimize_scalar(
        lambda log: nll(np.exp(log), given, y, weights), bounds=(-4, 4), method="bounded"
    )
    assert found["factor"] == pytest.approx(np.exp(best.x), rel=1e-3)


def test_the_change_is_that_of_examples_that_were_left_out():
    found = recalibrated_classes({"map": ClassPredictions(probs(3.0))}, Y)["map"]
    difference, low, high = found["difference"]
    new = 1.5 * RNG.normal(size=(40000, 3))
    y = np.argmax(new + RNG.gumbel(size=new.shape), axis=1)
    ones = np.ones(len(y))
    expected = nll(found["factor"], probs(3.0, new), y, ones) - nll(1.0, probs(3.0, new), y, ones)
    assert low < expected < high < 0
    assert difference == pytest.approx(expected, abs=0.2)


def test_calibrated_probabilities_gain_nothing():
    found = recalibrated_classes({"map": ClassPredictions(probs(1.0))}, Y)["map"]
    assert found["difference"][2] > 0


def test_logarithms_are_used_where_probabilities_are_zero():
    logs = special.log_softmax(50.0 * LOGITS, axis=1)
    rounded = np.exp(logs).astype(np.float32)
    given = {
        "map": ClassPredictions(rounded),
        "logs": ClassPredictions(rounded, log_probs=logs),
        "plain": ClassPredictions(probs(1.0)),
    }
    found = recalibrated_classes(given, Y)
    assert "map" not in found
    assert found["logs"]["factor"] == pytest.approx(50 * found["plain"]["factor"], rel=1e-3)


def test_a_temperature_at_an_end_of_its_range_is_none():
    right = np.where(np.eye(2)[np.arange(60) % 2] == 1, 0.9, 0.1)
    assert recalibrated_classes({"map": ClassPredictions(right)}, np.arange(60) % 2) == {}
    logs = special.log_softmax(300.0 * LOGITS, axis=1)
    assert recalibrated_classes({"map": ClassPredictions(np.exp(logs), log_probs=logs)}, Y) == {}


@pytest.mark.parametrize("weighted", [False, True])
def test_the_factor_of_deviations_is_the_closed_form(weighted):
    rng = np.random.default_rng(2)
    mean, std = rng.normal(size=(300, 2)), rng.uniform(0.5, 2, (300, 2))
    y = mean + 1.7 * std * rng.normal(size=mean.shape)
    weights = rng.integers(0, 3, 300).astype(float) if weighted else np.ones(300)
    given = {"map": RegressionPredictions(mean, std)}
    found = recalibrated_numbers(given, y, weights=weights)["map"]
    squares = ((y - mean) / std) ** 2
    expected = np.sqrt(np.average(squares.mean(axis=1), weights=weights))
    assert found["factor"] == pytest.approx(expected)
    s = expected
    change = (np.log(s) + squares / 2 * (1 / s**2 - 1)).sum(axis=1)
    assert found["difference"][0] == pytest.approx(np.average(change, weights=weights), rel=0.03)
    assert found["difference"][2] < 0


def test_few_examples_say_nothing():
    given = {"map": ClassPredictions(probs(1.0)[:19])}
    assert recalibrated_classes(given, Y[:19]) == {}
    one = RegressionPredictions(np.zeros((5, 1)), np.ones((5, 1)))
    assert recalibrated_numbers({"map": one}, np.ones((5, 1))) == {}
    perfect = RegressionPredictions(np.zeros((50, 1)), np.ones((50, 1)))
    assert recalibrated_numbers({"map": perfect}, np.zeros((50, 1))) == {}
