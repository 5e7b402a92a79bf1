"""Metrics by group of predictives and of plain arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from laplace_kit.eval.groups import by_group
from laplace_kit.eval.outputs import Predictive, from_gaussian
from laplace_kit.eval.report import classification_metrics, measures, regression_metrics
from laplace_kit.likelihood import Categorical, Gaussian, Poisson
from laplace_kit.targets import ClassTargets, NormalTargets, Outputs

RNG = np.random.default_rng(0)
N = 300
PROBS = RNG.dirichlet(np.ones(3), N).astype("float32")
Y = (PROBS.cumsum(axis=1) < RNG.uniform(size=(N, 1))).sum(axis=1).clip(0, 2)
SITE = np.array(["north", "south", "west"])[RNG.integers(0, 3, N)]
BAD = SITE == "west"
Y = np.where(BAD, RNG.integers(0, 3, N), Y)


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(measures, "NUM_RESAMPLES", 100)


def test_the_worst_group_is_named_and_every_metric_is_that_of_its_examples():
    found = by_group(PROBS, Y, {"site": SITE, "parity": np.arange(N) % 2})
    assert found.worst == ("site", "west")
    assert found.is_worse
    alone = classification_metrics(PROBS[BAD], Y[BAD])
    values = found.values["site"]["west"]
    assert {key: values[key] for key in alone} == pytest.approx(alone, rel=1e-6)
    assert found.sizes["site"]["west"] == BAD.sum()
    assert found.gaps["site"]["west"]["nll"].p_value <= 0.05
    assert found.gaps["parity"]["0"]["nll"].p_value > 0.05
    low, high = found.intervals["site"]["west"]["ece"]
    assert low <= values["ece"] <= high
    bins = found.reliability["site"]["west"]
    assert bins.counts.sum() == BAD.sum()
    table = str(found).splitlines()
    assert table[0].split()[:3] == ["site", "examples", "Accuracy"]
    assert next(line for line in table if line.startswith("west")).count("*") >= 1


def test_predictives_with_missing_labels_leave_their_groups_out():
    mask = np.arange(N) % 3 > 0
    probs = jnp.asarray(PROBS)
    predictive = Predictive(ClassTargets(Outputs(0 * probs, probs), probs), Categorical())
    found = by_group(predictive, (Y, mask), SITE)
    expected = by_group(PROBS[mask], Y[mask], SITE[mask])
    assert found.sizes == expected.sizes
    for group, values in expected.values["group"].items():
        assert found.values["group"][group] == pytest.approx(values, rel=1e-4, abs=1e-6)


def test_labels_of_several_positions_take_the_group_of_their_example():
    """Half of two labels each are ignored: there are as many rows as examples."""
    probs, labels = jnp.asarray(PROBS.reshape(-1, 2, 3)), Y.reshape(-1, 2).copy()
    labels[::2] = -1
    predictive = Predictive(
        ClassTargets(Outputs(0 * probs, probs), probs), Categorical(ignore_index=-1)
    )
    found = by_group(predictive, labels, np.arange(N // 2) % 4)
    assert {name: size for name, size in found.sizes["group"].items() if size} == {
        name: 2 * sum(np.arange(N // 2) % 4 == int(name)) for name in "13"
    }


def test_entries_that_are_missing_leave_their_groups_out():
    y = RNG.normal(size=(N, 2)) * np.where(BAD, 3, 1)[:, None]
    mask = np.arange(2 * N).reshape(N, 2) % 4 < 2  # both entries of every other example
    outputs = Outputs(jnp.zeros((N, 2)), jnp.zeros((N, 2)))
    predictive = Predictive(NormalTargets(outputs, jnp.ones((N, 2))), Gaussian(1.0))
    found = by_group(predictive, (y, mask), SITE).values["group"]
    for name in ("west", "north"):
        rows = y[mask[:, 0] & (name == SITE)].reshape(-1, 1)
        alone = regression_metrics(0 * rows, 0 * rows + 1, rows)
        assert {key: found[name][key] for key in alone} == pytest.approx(alone, rel=1e-4)


def test_counts_are_measured_by_their_own_distribution():
    rate = np.full((N, 1), 0.17, np.float32)
    y = RNG.poisson(rate).astype(np.float32)
    predictive = from_gaussian(
        Poisson(), jnp.log(rate), jnp.zeros((N, 1)), None, link="probit", key=None, num_samples=2
    )
    found = by_group(predictive, y, SITE)
    west, of = found.values["group"]["west"], y[BAD, 0]
    law = stats.poisson(0.17)
    assert west["nll"] == pytest.approx(-law.logpmf(of).mean(), rel=1e-4)
    assert west["coverage_90"] == pytest.approx((of <= law.ppf(0.95)).mean())


def test_log_probabilities_are_exact_where_probabilities_round_to_zero():
    logits = jnp.asarray(np.where(np.arange(3) == 1, 0.0, 200.0) * np.ones((N, 1)), jnp.float32)
    probs = jax.nn.softmax(logits)
    predictive = Predictive(
        ClassTargets(Outputs(logits, 0 * logits), probs, logits=logits), Categorical()
    )
    found = by_group(predictive, np.ones(N, int), SITE).values["group"]["west"]
    assert found["nll"] == pytest.approx(200 + np.log(2), rel=1e-6)


def test_regression_with_weights():
    mean, weights = np.zeros((N, 1)), RNG.integers(0, 3, N)
    y = RNG.normal(size=(N, 1)) * np.where(BAD, 3, 1)[:, None]
    found = by_group((mean, mean + 1), y, SITE, weights=weights)
    assert found.worst == ("group", "west")
    alone = regression_metrics(mean[BAD], mean[BAD] + 1, y[BAD], weights=weights[BAD])
    values = found.values["group"]["west"]
    assert {key: values[key] for key in alone} == pytest.approx(alone, rel=1e-9)
    assert found.gaps["group"]["west"]["coverage_90"].value < 0
    assert found.reliability == {}


def test_refusals():
    with pytest.raises(ValueError, match=r"Found groups of shape \(3,\) for 300 examples"):
        by_group(PROBS, Y, [1, 2, 3])
    with pytest.raises(ValueError, match=r"Found groups 'site' of shape \(1,\) for 300"):
        by_group(PROBS, Y, {"site": [1]})
