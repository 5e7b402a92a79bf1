"""Metrics by group of predictives and of plain arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from laplace_kit.eval.groups import by_group
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.report import classification_metrics, measures, regression_metrics
from laplace_kit.likelihood import Categorical
from laplace_kit.targets import ClassTargets, Outputs

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
