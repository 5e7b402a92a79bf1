"""Over-confident regions: found where they are, and rarely where they are not."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from laplace_kit.eval.outputs import Predictive, from_gaussian
from laplace_kit.eval.slices import find_slices, holm
from laplace_kit.likelihood import Categorical, Poisson
from laplace_kit.targets import ClassTargets, Outputs


def labelled(rng, num, is_bad):
    """Return features, p(y = 1) and labels that are drawn at random where `is_bad`."""
    features = rng.normal(size=(num, 4))
    p = special.expit(2 * features[:, 3])
    truth = np.where(is_bad(features), 0.5, p)
    return features, p, (rng.uniform(size=num) < truth).astype(int)


def test_a_bad_region_is_found_and_confirmed():
    rng = np.random.default_rng(0)
    features, p, y = labelled(rng, 4000, lambda x: (x[:, 0] > 0.5) & (x[:, 1] < 0))
    worst, *others = find_slices(p, y, features, feature_names=["age", "dose", "a", "b"])
    assert worst.is_confirmed
    assert worst.rule.startswith("age > 0.")
    assert " and dose <= " in worst.rule
    inside = worst.contains(features)
    claimed = np.maximum(p, 1 - p)[inside].mean()
    assert worst.gap == pytest.approx(claimed - 0.5, abs=0.06)
    bad = (features[:, 0] > 0.5) & (features[:, 1] < 0)
    assert (inside & bad).sum() / (inside | bad).sum() > 0.8
    assert worst.share == pytest.approx(inside.mean(), abs=0.03)
    assert not any(of.is_confirmed for of in others if of.gap < 0.02)


def test_level_where_predictions_are_calibrated():
    """False findings in 200 data sets, at most 5% and four standard errors."""
    rng, false = np.random.default_rng(1), 0
    for seed in range(200):
        features, p, y = labelled(rng, 300, lambda x: np.zeros(len(x), bool))
        false += any(of.is_confirmed for of in find_slices(p, y, features, seed=seed))
    assert false / 200 < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200)


def test_numbers_whose_intervals_are_too_narrow_and_weights():
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, (2000, 2))
    y = rng.normal(size=2000) * np.where(x[:, 1] > 0.4, 2.5, 1.0)
    (worst, *_) = find_slices((np.zeros(2000), np.ones(2000)), y, x, max_depth=1)
    assert worst.is_confirmed
    assert worst.rule.startswith("x1 > 0.")
    weights = np.where(x[:, 1] > 0.3, 0.0, 1.0)
    kept = find_slices((np.zeros(2000), np.ones(2000)), y, x, weights=weights)
    assert not any(of.is_confirmed for of in kept)


def test_counts_are_claimed_to_lie_in_their_own_intervals():
    """Regions of calibrated counts, of which far more than 90% lie in the interval from zero."""
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 1, (2000, 2))
    rate = np.full((2000, 1), 0.17, np.float32)
    y = rng.poisson(rate * np.where(x[:, :1] > 0, 4, 1)).astype(np.float32)
    predictive = from_gaussian(
        Poisson(), jnp.log(rate), 0 * jnp.log(rate), None, link="probit", key=None, num_samples=2
    )
    (worst, *others) = find_slices(predictive, y, x, max_depth=1)
    assert worst.is_confirmed
    assert not others
    law = stats.poisson(0.17)
    missed = (y[worst.contains(x), 0] > law.ppf(0.95)).mean()
    assert worst.gap == pytest.approx(law.cdf(law.ppf(0.95)) - 1 + missed, abs=0.05)
    y = rng.poisson(rate).astype(np.float32)
    assert not any(of.is_confirmed for of in find_slices(predictive, y, x))


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_refusals(monkeypatch):
    p, y, x = np.full(40, 0.5), np.arange(40) % 2, np.zeros((40, 2))
    with pytest.raises(ValueError, match="Found 40 examples, expected at least 60"):
        find_slices(p, y, x)
    with pytest.raises(ValueError, match=r"Found features of shape \(40,\) for 40 examples"):
        find_slices(p, y, x[:, 0])
    with pytest.raises(ValueError, match="Found 1 names of 2 features"):
        find_slices(p, y, x, feature_names=["a"])
    with pytest.raises(ValueError, match="features that are not finite"):
        find_slices(p, y, x * np.nan, min_examples=5)
    with pytest.raises(ValueError, match="Found targets with a mask, expected one label or row"):
        find_slices(p, (y, y > 0), x)
    probs = jnp.full((20, 2, 3), 1 / 3)
    predictive = Predictive(
        ClassTargets(Outputs(probs, probs), probs), Categorical(ignore_index=-1)
    )
    with pytest.raises(ValueError, match="Found targets with ignored labels, expected one"):
        find_slices(predictive, np.where(y == 0, -1, 0).reshape(20, 2), x[:20])
    assert find_slices(p, y, x, min_examples=5) == ()  # nothing to split
    monkeypatch.setitem(sys.modules, "sklearn.tree", None)
    with pytest.raises(ImportError, match="Found no scikit-learn, expected it to fit the tree"):
        find_slices(p, y, x)
