"""The prior precision and the link that predict held-out data best."""

import jax.numpy as jnp
import numpy as np
import pytest
import twins
from tuned import KEY, WIDE, data, fit, surprises

import laplace_kit as lk
from laplace_kit.eval import metrics


def nll(predictive, y):
    return float(metrics.negative_log_likelihood(predictive.probs, y))


def crps(predictive, y):
    return float(metrics.crps_gaussian(predictive.mean, jnp.sqrt(predictive.var), y))


OBJECTIVES = {
    "nll": nll,
    "brier": lambda predictive, y: float(metrics.brier_score(predictive.probs, y)),
    "ece": lambda predictive, y: float(metrics.expected_calibration_error(predictive.probs, y)),
    "crps": crps,
    "own": lambda predictive, y: float(jnp.mean((predictive.probs[:, 1] - y) ** 2)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_minimum_on_held_out_data(name, x64):
    loss, bounds = OBJECTIVES[name], (1e-2, 1e3)
    targets = "gaussian" if name == "crps" else "categorical"
    la = fit(lk.Gaussian(0.4) if name == "crps" else targets, targets, structure="diagonal")
    x, y = surprises(targets)
    objective = loss if name == "own" else name
    tuned = la.tune(data=(x, y), objective=objective, bounds=bounds, link="probit")
    found = loss(tuned.predict(x), y)
    assert tuned.tuning.method == "validation"
    assert float(tuned.tuning.objective.max()) == pytest.approx(-found, abs=1e-12)
    fine = 10 ** np.linspace(-2, 3, 6 if name == "ece" else 41)  # which jumps, unlike the others
    assert found <= min(loss(la.with_prior(delta).predict(x), y) for delta in fine) + 1e-5
    assert tuned.temperature == 1


@pytest.mark.parametrize("configured", ["link", "sampled"])
def test_the_predictive_that_is_judged_is_the_one_that_predicts(configured, x64):
    la = fit("categorical", structure="diagonal")
    x, y = surprises("categorical")
    if configured == "link":
        la = la.with_prediction(link="mean_field_2", covariance="diagonal")
    else:
        la = la.with_prediction(method="sampled", num_samples=20)
    tuned = la.tune(data=(x, y), bounds=(1e-1, 1e2), key=KEY, temperature=True)
    assert tuned.prediction == la.prediction
    assert nll(tuned.predict(x, key=KEY), y) == pytest.approx(
        nll(predict_as(tuned, configured, x), y), abs=1e-12
    )
    warm = tuned.with_temperature(1.0)
    assert nll(warm.predict(x, key=KEY), y) == pytest.approx(-float(tuned.tuning.objective.max()))
    best = nll(tuned.predict(x, key=KEY), y)
    for temperature in (1.0, 1e-4, *(float(tuned.temperature) * np.array([0.8, 1.25]))):
        other = tuned.with_temperature(temperature).predict(x, key=KEY)
        assert best <= nll(other, y) + 1e-4


def predict_as(la, configured, x):
    if configured == "link":
        return la.predict(x, link="mean_field_2", covariance="diagonal")
    return la.predict(x, method="sampled", num_samples=20, key=KEY)


def test_link_is_kept_for_predictions(x64):
    la, x = fit("categorical", structure="diagonal"), data("categorical")[0]
    tuned = la.tune(link="mean_field_1", bounds=WIDE)
    assert tuned.prediction.link == "mean_field_1"
    twins.assert_close(tuned.predict(x).probs, tuned.predict(x, link="mean_field_1").probs)


def test_held_out_data_choose_a_link_that_is_not_named(x64):
    la, (x, y) = fit("categorical", structure="diagonal"), surprises("categorical")
    tuned = la.tune(data=(x, y), bounds=WIDE)
    chosen = nll(tuned.predict(x), y)
    assert -float(tuned.tuning.objective.max()) == pytest.approx(chosen)
    each = {}
    for link in ("probit", "mean_field_1", "mean_field_2"):
        named = la.tune(data=(x, y), bounds=WIDE, link=link)
        assert named.prediction.link == link
        each[link] = nll(named.predict(x), y)
    assert each[tuned.prediction.link] == pytest.approx(chosen, rel=1e-3)
    assert chosen <= min(each.values()) * (1 + 1e-3)
    assert len(set(each.values())) == 3
    # One that was chosen is named from then on.
    assert tuned.tune(data=(x, y), bounds=WIDE).prediction == tuned.prediction


def test_no_link_is_chosen_without_classes_or_without_held_out_data(x64):
    regression = fit(lk.Gaussian(0.4), "gaussian", structure="diagonal")
    tuned = regression.tune(data=surprises("gaussian"), bounds=WIDE)
    assert tuned.prediction == regression.prediction
    la = fit("categorical", structure="diagonal")
    assert la.tune(bounds=WIDE).prediction.link is None
    x, _ = data("categorical")
    twins.assert_close(la.predict(x).probs, la.predict(x, link="probit").probs)
