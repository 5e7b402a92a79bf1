"""Sets and intervals under weighted shift: coverage where the plain ones fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from laplace_kit.eval.conformal import conformal_intervals, conformal_sets
from laplace_kit.eval.conformal_shift import shifted_intervals, shifted_sets
from laplace_kit.eval.outputs import Predictive
from laplace_kit.likelihood import Gaussian
from laplace_kit.targets import NormalTargets, Outputs

REPEATS, NUM = 300, 100


def test_intervals_cover_shifted_inputs():
    """Inputs are normal and move by one; the noise grows with them; the ratio is exp(x - 1/2)."""
    rng, covered, plain = np.random.default_rng(0), [], []
    for _ in range(REPEATS):
        x, new = rng.normal(size=NUM), rng.normal(size=NUM) + 1
        y, new_y = (np.exp(of) * rng.normal(size=NUM) for of in (x, new))
        moments, new_moments = ((0 * of, 1 + 0 * of) for of in (x, new))
        found = shifted_intervals(moments, y, np.exp(x - 0.5), level=0.8)
        low, high = (np.asarray(of) for of in found(new_moments, np.exp(new - 0.5)))
        covered.append(((low <= new_y) & (new_y <= high)).mean())
        low, high = (
            np.asarray(of) for of in conformal_intervals(moments, y, level=0.8)(new_moments)
        )
        plain.append(((low <= new_y) & (new_y <= high)).mean())
    error = 4 * np.std(covered) / np.sqrt(REPEATS)
    assert 0.8 - error < np.mean(covered) < 0.8 + error + 0.05
    assert np.mean(plain) < 0.7


def test_sets_cover_shifted_inputs():
    rng, covered, plain = np.random.default_rng(1), [], []
    for _ in range(150):
        x, new = rng.normal(size=NUM), rng.normal(size=NUM) + 1.5
        y, new_y = (
            (rng.uniform(size=NUM) < special.expit(2 - 2 * of)).astype(int) for of in (x, new)
        )
        p, new_p = (np.full(NUM, 0.88, "f") + 0.01 * special.expit(of) for of in (x, new))
        found = shifted_sets(p.astype("f"), y, np.exp(1.5 * x - 1.125), level=0.8)
        members = np.asarray(found(new_p.astype("f"), np.exp(1.5 * new - 1.125)))
        covered.append(members[np.arange(NUM), new_y].mean())
        members = np.asarray(conformal_sets(p.astype("f"), y, level=0.8)(new_p.astype("f")))
        plain.append(members[np.arange(NUM), new_y].mean())
    assert np.mean(covered) > 0.8 - 4 * np.std(covered) / np.sqrt(150)
    assert np.mean(plain) < 0.75


def test_equal_ratios_give_the_plain_thresholds():
    rng = np.random.default_rng(2)
    probs, y = rng.dirichlet(np.ones(3), 49).astype("f"), rng.integers(0, 3, 49)
    expected = conformal_sets(probs, y)
    for ratio in (1.0, 0.37):
        found = shifted_sets(probs, y, np.full(49, ratio))
        np.testing.assert_array_equal(found(probs, np.full(49, ratio)), expected(probs))
    mean, std = rng.normal(size=(49, 2)), rng.uniform(1, 2, (49, 2))
    y = mean + rng.normal(size=mean.shape)
    for score in ("std", "quantiles"):
        given = (mean, std) if score == "std" else (mean - std, mean + std)
        plain = conformal_intervals(given, y, score=score)
        shifted = shifted_intervals(given, y, np.ones(49), score=score)
        both = plain(given), shifted(given, np.ones(49))
        np.testing.assert_allclose(*both, rtol=1e-6)


def test_inputs_unlike_all_have_everything():
    probs, y = np.full((20, 2), 0.5), np.arange(20) % 2
    found = shifted_sets(probs, y, np.ones(20))
    assert np.asarray(found(probs[:1], np.full(1, 1e3))).all()
    low, high = shifted_intervals((probs, probs), probs, np.ones(20))(
        (probs[:1], probs[:1]), np.full(1, 1e3)
    )
    assert np.isinf(low).all()
    assert np.isinf(high).all()


def test_randomised_sets_and_refusals():
    probs, y = np.full((20, 2), 0.5, "f"), np.arange(20) % 2
    keys = jax.random.split(jax.random.key(0))
    found = shifted_sets(probs, y, np.ones(20), score="aps", key=keys[0])
    assert found(probs, np.ones(20), key=keys[1]).shape == (20, 2)
    with pytest.raises(ValueError, match="Found no key for randomised scores"):
        found(probs, np.ones(20))
    with pytest.raises(ValueError, match="Found weights of shape"):
        shifted_sets(probs, y, np.ones(3))
    with pytest.raises(ValueError, match="Found -1"):
        shifted_intervals((probs, probs), probs, np.full(20, -1.0))


def test_an_output_without_weighted_targets_is_refused():
    zeros, first = jnp.zeros((20, 2)), np.arange(20) < 10
    predictive = Predictive(NormalTargets(Outputs(zeros, zeros), zeros + 1), Gaussian(1.0))
    mask = np.stack([np.ones(20, bool), first], axis=1)
    y = np.zeros((20, 2), np.float32), mask
    weights = np.where(first, 0.0, 1.0)
    with pytest.raises(ValueError, match="Found no observed target with a positive weight, expec"):
        shifted_intervals(predictive, y, weights)
    shifted_intervals(predictive, y, 1 - weights)
