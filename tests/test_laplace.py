"""The posterior as an object: frozen, a pytree, and nothing but a thin cover of the parts."""

import dataclasses
import json

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from exact import KINDS

import laplace_kit as lk


def model(params, x):
    return jnp.tanh(x @ params["kernel"]) @ params["head"]


def problem(seed=0, num=9):
    rng = np.random.default_rng(seed)
    kernel, head = rng.normal(size=(2, 3)), rng.normal(size=(3, 2))
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "head": jnp.asarray(head, jnp.float32)}
    return params, rng.normal(size=(num, 2)).astype(np.float32), rng.integers(0, 2, num)


def fitted(seed=0, **options) -> lk.Laplace:
    params, x, y = problem(seed)
    options = {"likelihood": "categorical", "structure": "diagonal"} | options
    return lk.fit(model, params, (x, y), **options)


# --- a pytree, and an argument of compiled functions ----------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_as_argument_and_result_of_a_compiled_function(kind, x64):
    la, x = exact.fitted(kind, "float64"), twins.problem("mlp", "float64").x

    @jax.jit
    def everything(la, x, delta, key):
        other = la.with_prior(delta)
        return other, other.predict(x), other.sample(key, 2), la.log_marginal_likelihood(delta)

    delta, key = jnp.asarray(3.0), jax.random.key(0)
    other, predictive, draws, evidence = everything(la, x, delta, key)
    expected = la.with_prior(3.0)
    jax.tree.map(twins.assert_close, predictive, expected.predict(x))
    jax.tree.map(twins.assert_close, draws, expected.sample(key, 2))
    twins.assert_close(evidence, expected.log_marginal_likelihood())
    twins.assert_close(other.posterior.variance(), expected.posterior.variance())
    assert jax.tree.structure(other) == jax.tree.structure(expected)


def test_derivative_of_a_prediction_in_the_prior(x64):
    """Inside of a transformation nothing is looked at, not even what is concrete there."""
    la, x = exact.fitted("low_rank", "float64"), twins.problem("mlp", "float64").x[:2]
    ones = jnp.ones(31)

    @jax.jit
    def derivative(delta):
        la.with_prior(ones)
        return jax.jacobian(lambda d: la.with_prior(d).predict(x).f_var)(delta)

    jac = twins.dense(twins.jacobian, "mlp")[:2]
    cov = exact.covariance("low_rank", np.full(31, 1.5))
    expected = -np.einsum("ncp,pq,qr,ncr->nc", jac, cov, cov, jac)
    twins.assert_close(derivative(1.5), expected, rtol=1e-9)


def test_other_values_of_the_same_shapes_compile_nothing():
    def run(seed):
        x = problem(seed)[1]
        la = fitted(seed, structure="full").tune(bounds=(1e-6, 1e6))
        predictive = la.predict(x)
        draws = la.sample(jax.random.key(seed), 3)
        return predictive.probs, draws, la.log_marginal_likelihood(), la.predict_at_mode(x).probs

    first = run(0)
    with twins.compilations() as programs:
        second = run(1)
    assert programs == []
    assert not np.allclose(first[0], second[0])


def test_no_array_is_a_constant_of_the_program():
    la, x = fitted(), problem()[1]
    lowered = jax.jit(lambda la, x: la.predict(x)).lower(la, x)
    assert twins.constants(lowered.as_text()) == []


def test_frozen_and_unchanged_by_what_is_asked_of_it(tmp_path):
    params, x, y = problem()
    kept = jax.tree.map(np.array, (params, x, y))
    la = lk.fit(model, params, (x, y), likelihood="categorical", structure="full")
    before = jax.tree.map(np.array, jax.tree.leaves(la))
    la.tune(bounds=(1e-6, 1e6))
    la.with_prior(7.0)
    la.predict(x)
    la.evaluate((x, y))
    la.save(tmp_path / "la.npz")
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(la), before)
    jax.tree.map(np.testing.assert_array_equal, (params, x, y), kept)
    with pytest.raises(dataclasses.FrozenInstanceError):
        la.prior_precision = 2.0


# --- the prior ------------------------------------------------------------------------------------


def test_another_prior_equals_a_refit():
    prior = {"kernel": 3.0, "head": 0.2}
    found, expected = fitted().with_prior(prior), fitted(prior_precision=prior)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_with_prior_makes_no_pass_over_the_data():
    calls = 0

    def counted(params, x):
        nonlocal calls
        calls += 1
        return model(params, x)

    params, x, y = problem()
    la = lk.fit(counted, params, (x, y), likelihood="categorical", structure="diagonal")
    calls = 0
    la.with_prior(2.0).log_marginal_likelihood()
    la.tune(bounds=(1e-6, 1e6))
    assert calls == 0


@pytest.mark.parametrize(
    ("value", "found"),
    [(0.0, "from 0 to 0"), (-1.0, "from -1 to -1"), (np.nan, "nan"), (np.inf, "inf"), (1e-60, "0")],
)
def test_a_precision_that_is_not_positive_and_finite(value, found):
    la = fitted()
    for attempt in (la.with_prior, la.log_marginal_likelihood, lambda v: fitted(prior_precision=v)):
        with pytest.raises(
            ValueError, match=r"prior_precision with values.*expected positive"
        ) as e:
            attempt(value)
        assert found in str(e.value)


def test_one_wrong_value_among_many():
    for prior in ({"kernel": 1.0, "head": -2.0}, np.where(np.arange(12) == 7, -2.0, 1.0)):
        with pytest.raises(ValueError, match="values from -2 to 1, expected positive, finite"):
            fitted(prior_precision=prior)


@pytest.mark.parametrize(
    "prior", [np.ones(5), {"kernel": 1.0}, {"kernel": np.ones(3), "head": 1.0}]
)
def test_a_precision_of_another_form(prior):
    with pytest.raises(ValueError, match=r"Found `prior_precision`.*expected"):
        fitted().with_prior(prior)


def test_tuned_per_leaf_keeps_the_form_of_the_parameters():
    one = fitted().tune(bounds=(1e-6, 1e6))
    each = fitted().tune(per_leaf=True, bounds=(1e-6, 1e6))
    assert set(each.prior_precision) == {"kernel", "head"}
    assert each.log_marginal_likelihood() >= one.log_marginal_likelihood() - 1e-4
    assert one.log_marginal_likelihood() >= fitted().log_marginal_likelihood() - 1e-4


def test_tuned_by_held_out_data_is_no_worse_there_than_any_decade():
    la, rng = fitted(), np.random.default_rng(103)
    x = rng.normal(size=(30, 2)).astype(np.float32)
    y = np.asarray(la.predict_at_mode(x).probs).argmax(axis=1)
    y = np.where(rng.uniform(size=30) < 0.3, 1 - y, y)  # the mode is too sure
    tuned = la.tune(method="validation", data=(x, y), bounds=(1e-2, 1e3), link="mean_field_1")

    def loss(la):
        probs = la.predict(x, link="mean_field_1").probs
        return -np.log(np.asarray(probs)[np.arange(30), y]).mean()

    assert loss(tuned) <= min(loss(la.with_prior(10.0**k)) for k in range(-2, 4)) + 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "evidense"}, "method='evidense', expected.*Did you mean 'evidence'"),
        (
            {"method": "validation"},
            "data=None and per_leaf=False, expected method='validation' with",
        ),
        ({"data": "given"}, "method='evidence' with data=given.*or method='evidence' without data"),
        ({"method": "validation", "data": "given", "per_leaf": True}, "per_leaf=True"),
    ],
)
def test_tuning_options_that_cannot_be_right(options, message):
    options = {k: problem()[1:] if v == "given" else v for k, v in options.items()}
    with exact.as_users_call(), pytest.raises(ValueError, match=message):
        fitted().tune(**options)


# --- what it tells --------------------------------------------------------------------------------


def test_diagnostics_are_the_dense_ones(x64):
    la = exact.fitted("full", "float64").with_prior(2.0)
    found = la.diagnostics()
    problem = twins.problem("mlp", "float64")
    theta, _ = twins.flat(problem)
    gradient = jax.grad(twins.total_loss(problem))(theta) + 2.0 * theta
    twins.assert_close(found.gradient_norm, np.linalg.norm(gradient))
    matrix = exact.curvature("full")
    trace = np.trace(matrix @ np.linalg.inv(matrix + 2.0 * np.eye(31)))
    twins.assert_close(found.effective_parameters, trace)
    assert found.smallest_eigenvalue == found.largest_residual == found.jitter == 0


def test_gradient_vanishes_at_the_exact_mode(x64):
    regression = exact.regression()
    precision, mean = exact.priors(regression.num_params)
    la = regression.fit(precision, mean, structure="full")
    assert la.diagnostics().gradient_norm < 1e-8


def test_residuals_of_lanczos_are_told(x64):
    la = exact.fitted("low_rank", "float64")
    residuals, values = np.asarray(la.structure.residuals), np.asarray(la.structure.values)
    assert float(la.diagnostics().largest_residual) == pytest.approx(residuals.max() / values.max())


def test_card_and_print():
    la = fitted(subset=lambda path: path == "head").with_prior(2.5)
    card = la.card()
    assert card["structure"] == "Diagonal"
    assert card["likelihood"] == "Categorical"
    assert card["parameters"] == "6 of 12"
    assert card["training examples"] == "9"
    assert card["prior precision"] == "2.5"
    assert card["log marginal likelihood"] == f"{float(la.log_marginal_likelihood()):.2f} nats"
    assert all(name in str(la) and text in str(la) for name, text in card.items())
    many = la.with_prior(jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert many.card()["prior precision"] == "1 to 6"


# --- draws, quality, reports ----------------------------------------------------------------------


def test_draws_are_like_the_parameters(x64):
    la = exact.fitted("full", "float64")
    draws = la.sample(jax.random.key(0), 5)
    assert jax.tree.structure(draws) == jax.tree.structure(la.params)
    shapes = jax.tree.map(lambda draw, leaf: draw.shape == (5, *leaf.shape), draws, la.params)
    assert jax.tree.all(shapes)
    again = la.sample(jax.random.key(0), 5)
    jax.tree.map(np.testing.assert_array_equal, draws, again)
    assert not np.allclose(draws["out"]["bias"][0], draws["out"]["bias"][1])


def test_evaluate_in_memory_and_over_a_stream():
    la = fitted()
    _, x, y = problem()
    found = la.evaluate((x, y))
    assert found == la.evaluate(twins.Loader(x, y, batch_size=4))
    probs = np.asarray(la.predict(x).probs)
    assert found["nll"] == pytest.approx(-np.log(probs[np.arange(9), y]).mean(), rel=1e-5)


def test_targets_that_do_not_suit_the_outputs(tmp_path):
    la = fitted()
    _, x, y = problem()
    for call in (la.evaluate, lambda data: la.report(data, tmp_path)):
        with pytest.raises(
            ValueError, match=r"found targets of shape \(9, 1\) for outputs \(9, 2\)"
        ):
            call((x, y[:, None]))
    with pytest.raises(ValueError, match=r"targets out of range; expected integer labels.*drop"):
        la.evaluate((x, y + 1))


def test_report_compares_with_the_mode(tmp_path):
    la = fitted()
    _, x, y = problem()
    sets = {"shifted": {"wide": (2 * x, y)}, "ood": {"far": 9 * x}}
    report = la.report((x, y), tmp_path, **sets)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["laplace"]["nll"] == pytest.approx(la.evaluate((x, y))["nll"])
    at_mode = np.asarray(la.predict_at_mode(x).probs)
    expected = -np.log(at_mode[np.arange(9), y]).mean()
    assert written["map"]["nll"] == pytest.approx(expected, rel=1e-5)
    assert set(written["ood"]) == {"far"}
    assert set(written["shifted"]) == {"wide"}
    assert "prior precision" in report.index.read_text()
    assert set(la.report((x, y), tmp_path / "one", ood=9 * x).metrics["ood"]) == {"ood"}


def test_targets_are_looked_at_before_they_are_scored():
    la = exact.fitted("diagonal", "float32")
    x, y = twins.problem("mlp").x, np.array(twins.problem("mlp").y)
    y[2] = 3
    with pytest.raises(
        ValueError, match=r"out of range; expected integer labels.*example 2 .*drop"
    ):
        la.evaluate((x, y))
