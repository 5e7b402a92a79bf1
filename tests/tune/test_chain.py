"""`la.tune` is the chain of its functions; options that do not go together are refused."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tuned import WIDE, data, fit, net, params, surprises

import laplace_kit as lk


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "validation"}, "method='validation' with data=None"),
        ({"method": "cross_validation"}, "method='cross_validation' with data=None"),
        ({"method": "evidence", "data": "given"}, "method='evidence' with data=given"),
        ({"data": "given", "per_leaf": True}, "per_leaf=True"),
        ({"data": "given", "objective": "crps"}, "expected 'nll', 'ece' or 'brier'"),
        ({"data": "given", "objective": "nlll"}, "nlll"),
        ({"method": "evidense"}, "evidense"),
        ({"noise": "evidense"}, "evidense"),
        (
            {"method": "cross_validation", "data": "given", "num_folds": 1},
            "num_folds=1 for 20 examples, expected from 2 to 20",
        ),
    ],
)
def test_options_that_do_not_go_together(options, message):
    la = fit("categorical", structure="diagonal")
    if "data" in options:
        options = options | {"data": data("categorical")}
    with exact.as_users_call(), pytest.raises(ValueError, match=message):
        la.tune(**options)


# --- one by one -----------------------------------------------------------------------------------


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_by_the_evidence(x64):
    la = fit("gaussian", structure="diagonal")
    found = lk.tune.evidence(lk.tune.noise_of_residuals(la), bounds=WIDE)
    assert_same(found, la.tune(bounds=WIDE))
    assert found.tuning.method == "evidence"
    jointly = lk.tune.evidence(la, noise=True, per_leaf=True, bounds=WIDE)
    assert_same(jointly, la.tune(noise="evidence", per_leaf=True, bounds=WIDE))
    la = fit("categorical", structure="diagonal")
    found = lk.tune.temperature(lk.tune.evidence(la, bounds=WIDE))
    assert_same(found, la.tune(bounds=WIDE))
    assert found.tuning.temperature == found.temperature


@pytest.mark.filterwarnings("ignore:The held-out loss is smallest at a bound")
def test_by_labelled_data(x64):
    la, data = fit("categorical", structure="diagonal"), surprises("categorical")
    options = {"bounds": (1e-1, 1e2)}
    found = lk.tune.held_out(la, data, loss="brier", **options)
    assert_same(found, la.tune(data=data, objective="brier", **options))
    found = lk.tune.temperature(found, data, loss="brier")
    assert_same(found, la.tune(data=data, objective="brier", temperature=True, **options))
    options |= {"num_folds": 2, "temperature": True}
    found = lk.tune.cross_validated(la, data, **options)
    assert_same(found, la.tune(method="cross_validation", data=data, **options))


def test_held_out_data_with_one_pass(x64):
    la, (x, y) = fit("categorical", structure="diagonal"), surprises("categorical")
    options = {"bounds": (1e-1, 1e2), "temperature": True}
    once = iter([(x[:25], y[:25]), (x[25:], y[25:])])
    assert_same(la.tune(data=once, **options), la.tune(data=(x, y), **options))


# --- noise that is unknown ------------------------------------------------------------------------


def test_by_name_and_without_a_number_the_noise_is_unknown(x64):
    by_name, by_object = fit("gaussian"), fit(lk.Gaussian(), "gaussian")
    assert_same(by_name, by_object)
    assert_same(by_name.tune(bounds=WIDE), by_object.tune(bounds=WIDE))
    assert by_name.likelihood.noise_std == 1
    estimated = by_name.tune(bounds=WIDE).likelihood
    assert not estimated.known  # more data, or another mode, are another estimate
    guessed = fit(lk.Gaussian(0.3, known=False), "gaussian").tune(bounds=WIDE)
    assert float(guessed.likelihood.noise_std) == pytest.approx(float(estimated.noise_std))


def test_noise_that_is_given_is_kept(x64):
    for given in (fit(lk.Gaussian(1.0), "gaussian"), fit("gaussian").with_noise(1.0)):
        assert given.likelihood.known
        assert float(given.tune(bounds=WIDE).likelihood.noise_std) == 1


def test_the_noise_of_masked_targets_is_tuned_unless_it_is_given(x64):
    x, y = data("gaussian")
    targets, whole = (y, jnp.ones(y.shape, bool)), fit("gaussian").tune(bounds=WIDE)
    for inner, expected in (
        (lk.Gaussian(), float(whole.likelihood.noise_std)),
        (lk.Gaussian(1.0), 1.0),
    ):
        la = lk.fit(net, params(), (x, targets), likelihood=lk.Masked(inner), structure="diagonal")
        found = la.tune(bounds=WIDE).likelihood.likelihood.noise_std
        assert float(found) == pytest.approx(expected, rel=1e-8)
