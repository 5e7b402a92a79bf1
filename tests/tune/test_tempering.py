"""The temperature alone, of a posterior with any prior and any temperature."""

import dataclasses

import jax
import numpy as np
import pytest
from tuned import KEY, fit, surprises

import laplace_kit as lk
from laplace_kit import tree


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
