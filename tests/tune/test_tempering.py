"""The temperature alone, of a posterior with any prior and any temperature."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.special
import vocabulary
from tuned import KEY, fit, surprises

import laplace_kit as lk
from laplace_kit import tree
from laplace_kit.tune import tempering


def test_its_own_temperature_plays_no_part(x64):
    la = fit("categorical").with_prior(0.3)
    found = lk.tune.temperature(la)
    assert 0 < float(found.temperature) < 1
    again = lk.tune.temperature(la.with_temperature(0.01))
    assert float(again.temperature) == float(found.temperature)
    assert float(found.prior_precision) == 0.3
    assert found.tuning is None  # the prior was set by hand


def test_a_key_draws_other_nodes(x64):
    la = fit("categorical").with_prior(0.3)
    fixed = float(lk.tune.temperature(la).temperature)
    drawn = [
        float(lk.tune.temperature(la, key=jax.random.key(k)).temperature) for k in (0, 0, 1, 2)
    ]
    assert drawn[0] == drawn[1]
    assert len({fixed, *drawn}) > 1  # of points on a grid
    np.testing.assert_allclose(drawn, fixed, rtol=0.3)


def test_no_temperature_predicts_held_out_data_better(x64):
    la, (x, y) = fit("categorical", structure="diagonal").with_prior(0.3), surprises("categorical")

    def brier(pred, y):
        return float(np.mean((np.asarray(pred.probs)[:, 1] - np.asarray(y)) ** 2))

    found = lk.tune.temperature(la, (x, y), loss=brier)
    best = brier(found.predict(x), y)
    grid = 10.0 ** np.linspace(-6, 2, 81)
    assert best <= min(brier(la.with_temperature(t).predict(x), y) for t in grid) + 1e-6


def test_a_temperature_at_a_bound_is_named(x64):
    """Without epistemic variance the loss would be smallest, or with as much as possible."""
    la, held_out = fit("categorical", structure="diagonal"), surprises("categorical")

    def variance(pred, y):
        return float(np.sum(np.asarray(pred.f_var)))

    for loss, bound in ((variance, 1e-6), (lambda *args: -variance(*args), 1e2)):
        with pytest.warns(UserWarning, match=r"at a bound of the temperature \(\(1e-06, 100.0\)\)"):
            found = lk.tune.temperature(la, held_out, loss=loss)
        assert float(found.temperature) == pytest.approx(bound, rel=0.05)


def test_a_posterior_from_a_file_has_no_examples(x64):
    la = fit("categorical", structure="diagonal")
    stored = tree.replace(la, record=dataclasses.replace(la.record, examples=None))
    with pytest.raises(ValueError, match="Found no training examples in this posterior"):
        lk.tune.temperature(stored)
    with pytest.warns(UserWarning, match="its temperature stays one"):
        assert stored.tune(bounds=(1e-8, 1e8), key=KEY).temperature == 1


def bound_of_draws(la, temperatures) -> list[float]:
    """Return the variational bound by NumPy, with the nodes that are drawn by default."""
    draws = np.asarray(la.posterior.sample(jax.random.key(0), 16))
    f = np.asarray(vocabulary.model_fn(vocabulary.PARAMS, vocabulary.X))
    half = np.einsum("ncp,kp->knc", vocabulary.jacobian(), draws).reshape(16, *f.shape)
    spread = np.concatenate([half, -half])
    precision = float(la.prior.precision)
    theta = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(la.params)])
    pull = precision * np.trace(la.posterior.covariance()), precision * theta @ theta
    bounds = []
    for t in temperatures:
        moved = f + np.sqrt(t) * spread
        log_p = np.take_along_axis(moved, vocabulary.Y[None, ..., None], axis=-1)[..., 0]
        log_p = log_p - scipy.special.logsumexp(moved, axis=-1)
        kl = 0.5 * len(theta) * (np.log(t * pull[0] + pull[1]) - np.log(t))
        bounds.append(log_p.sum() / 32 - kl)
    return bounds


def test_many_outputs_take_draws_of_the_function(x64):
    la = vocabulary.fitted().with_prior(2.0)
    found = float(lk.tune.temperature(la).temperature)
    grid = np.exp(np.linspace(np.log(1e-6), 0, 2049))
    best = grid[np.argmax(bound_of_draws(la, grid))]
    step = -np.log(1e-6) / 2 / 16 / 16  # of the search, in the logarithm
    assert abs(np.log(found / best)) <= step
    assert 1e-3 < found < 1


def test_examples_with_too_many_outputs_keep_a_temperature_of_one(x64, monkeypatch):
    la = vocabulary.fitted().with_prior(2.0)
    monkeypatch.setattr(tempering, "_MOST_OUTPUTS", 1199)
    with pytest.warns(UserWarning, match=r"Found 1200 outputs for each example.*stays one"):
        assert float(lk.tune.temperature(la).temperature) == 1
    monkeypatch.setattr(tempering, "_MOST_OUTPUTS", 1200)
    monkeypatch.setattr(tempering, "_OUTPUTS", 2400)  # two of the four examples
    assert 0 < float(lk.tune.temperature(la).temperature) < 1
