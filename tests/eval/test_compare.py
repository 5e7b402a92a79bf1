"""The report compares every predictor on the same inputs, whatever the outputs' shape."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from laplace_kit.eval.compare import compare_report
from laplace_kit.eval.evaluate import evaluate
from laplace_kit.eval.predictive import Predictive
from laplace_kit.likelihood import Bernoulli, Categorical, FromLoss, Gaussian, Poisson

N = 30
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 2)).astype(np.float32)
CARD = {"structure": "Full"}


def classifier(temperature: float, *, positions: int = 0):
    """Return a predictor of three classes, at several positions if wanted."""

    def predict(x):
        x = jnp.asarray(x)
        f = jnp.stack([x[:, 0], x[:, 1], -x[:, 0]], axis=1) / temperature
        f = jnp.stack([f] * positions, axis=1) if positions else f
        probs = jnp.exp(f) / jnp.exp(f).sum(axis=-1, keepdims=True)
        return Predictive(f, jnp.ones_like(f), probs=probs)

    return predict


def regressor(std: float):
    def predict(x):
        x = jnp.asarray(x)
        var = jnp.full_like(x, std**2)
        return Predictive(x, var, mean=x, epistemic_var=var / 2, noise_var=var / 2)

    return predict


def report(predict, likelihood, y, directory, **sets):
    y = jnp.asarray(y)
    found = compare_report(predict, likelihood, X, y, directory, title="A title", card=CARD, **sets)
    assert found.index.exists()
    assert json.loads((directory / "metrics.json").read_text()) == found.metrics
    return found.metrics


@pytest.mark.parametrize("positions", [0, 2])
def test_classification_with_shifted_and_foreign_inputs(positions, tmp_path):
    y = RNG.integers(0, 3, (N, positions) if positions else N)
    predict = {
        name: classifier(t, positions=positions) for name, t in (("map", 0.5), ("laplace", 2))
    }
    sets = {
        "shifted": {"half": (X[:10] / 2, jnp.asarray(y[:10]))},
        "ood": {"far": 5 * X[:8], "near": X[:4]},
    }
    found = report(predict, Categorical(), y, tmp_path, **sets)
    assert found["num_examples"] == y.size
    for name, predictor in predict.items():
        expected = evaluate(Categorical(), predictor(X), jnp.asarray(y))
        assert found[name] == pytest.approx(expected)
        shifted = evaluate(Categorical(), predictor(X[:10] / 2), jnp.asarray(y[:10]))
        assert found["shifted"]["half"][name] == pytest.approx(shifted)
        assert 0 <= found["ood"]["far"][name]["auroc"] <= 1


def test_binary_labels_are_two_classes(tmp_path):
    def predict(x):
        x = jnp.asarray(x)
        return Predictive(x, jnp.ones_like(x), probs=1 / (1 + jnp.exp(-x)))

    y = RNG.integers(0, 2, (N, 2))
    found = report({"laplace": predict}, Bernoulli(), y, tmp_path, ood={"far": 9 * X})
    assert found["laplace"] == pytest.approx(evaluate(Bernoulli(), predict(X), jnp.asarray(y)))
    assert found["ood"]["far"]["laplace"]["auroc"] < 0.5  # logits nine times as large: sure


@pytest.mark.parametrize("likelihood", [Gaussian(), Poisson()])
def test_regression_and_counts(likelihood, tmp_path):
    y = np.maximum(np.rint(X + 0.5 * RNG.normal(size=X.shape)), 0)
    predict = {"map": regressor(0.3), "laplace": regressor(0.6)}
    found = report(predict, likelihood, y, tmp_path)
    expected = evaluate(Gaussian(), predict["laplace"](X), jnp.asarray(y))
    assert found["laplace"] == pytest.approx(expected)


def test_sets_that_only_classification_knows(tmp_path):
    with pytest.raises(
        ValueError, match=r"\(\['far'\]\) for a Gaussian likelihood, expected them"
    ) as e:
        report({"map": regressor(1.0)}, Gaussian(), X, tmp_path, ood={"far": X})
    assert "write a report for each set instead" in str(e.value)


def test_a_likelihood_without_a_predictive_distribution(tmp_path):
    likelihood = FromLoss(lambda f, y: jnp.sum((f - y) ** 2))
    predict = {"map": lambda x: Predictive(jnp.asarray(x), jnp.ones(x.shape))}
    with pytest.raises(TypeError, match=r"FromLoss likelihood.*expected Gaussian.*la\.evaluate"):
        report(predict, likelihood, X, tmp_path)
