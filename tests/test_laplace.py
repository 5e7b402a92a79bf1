"""The posterior as an object: frozen, and nothing but a thin cover of the parts."""

import dataclasses
import warnings

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from exact import KINDS

import laplace_kit as lk
from laplace_kit import tree


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


# --- a frozen object ------------------------------------------------------------------------------


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
        (
            {"method": "evidence", "data": "given"},
            "method='evidence' with data=given.*or method='evidence' without data",
        ),
        ({"method": "validation", "data": "given", "per_leaf": True}, "per_leaf=True"),
    ],
)
def test_tuning_options_that_cannot_be_right(options, message):
    options = {k: problem()[1:] if v == "given" else v for k, v in options.items()}
    with exact.as_users_call(), pytest.raises(ValueError, match=message):
        fitted().tune(**options)


def test_a_prior_set_by_hand_is_not_a_tuned_one():
    tuned = fitted().tune(bounds=(1e-6, 1e6))
    assert tuned.tuning.prior_precision == tuned.prior_precision
    assert tuned.with_prior(2.0).tuning is None
    assert tuned.with_temperature(0.5).tuning is not None


# --- the temperature ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_temperature_multiplies_the_covariance(kind, x64):
    la, x = exact.fitted(kind, "float64"), twins.problem("mlp", "float64").x
    warm = la.with_temperature(0.3)
    cov = 0.3 * exact.covariance(kind, np.ones(31))
    twins.assert_close(warm.posterior.covariance(), cov, rtol=1e-9)
    twins.assert_close(warm.posterior.variance(), np.diag(cov), rtol=1e-9)
    jac = twins.dense(twins.jacobian, "mlp")
    f_cov = np.einsum("ncp,pq,ndq->ncd", jac, cov, jac)
    twins.assert_close(warm.predict(x).f_cov, f_cov, rtol=1e-9)
    other = warm.with_prior(2.0)
    cov = 0.3 * exact.covariance(kind, np.full(31, 2.0))
    twins.assert_close(other.posterior.covariance(), cov, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_spread_with_the_root_of_the_temperature(kind, x64):
    la, key = exact.fitted(kind, "float64"), jax.random.key(1)

    def away(la):
        return jax.tree.map(lambda draws, mode: draws - mode, la.sample(key, 3), la.params)

    cold, one = away(la.with_temperature(0.09)), away(la)
    jax.tree.map(lambda a, b: twins.assert_close(a, 0.3 * b, rtol=1e-8), cold, one)


def test_covariance_of_many_draws(x64):
    la = exact.fitted("full", "float64").with_temperature(0.3)
    draws = tree.ravel(la.sample(jax.random.key(0), 20_000), num_leading=1)
    cov = 0.3 * exact.covariance("full", np.ones(31))
    np.testing.assert_allclose(draws.mean(axis=0), tree.ravel(la.params), atol=0.02)
    np.testing.assert_allclose(np.cov(draws.T), cov, atol=5 * 0.3 / np.sqrt(20_000))


@pytest.mark.parametrize("kind", ["full", "ekfac"])
def test_the_evidence_and_the_effective_parameters_know_no_temperature(kind, x64):
    la = exact.fitted(kind, "float64")
    cold = la.with_temperature(0.2)
    assert cold.log_marginal_likelihood() == la.log_marginal_likelihood()
    for name, expected in vars(la.diagnostics()).items():
        if name == "prediction_shift":  # in standard deviations of the posterior
            expected = expected / np.sqrt(0.2)
        twins.assert_close(getattr(cold.diagnostics(), name), expected)
    again = cold.with_temperature(1.0)
    jax.tree.map(np.testing.assert_array_equal, again, la)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_temperature_that_is_not_positive_and_finite(value):
    with pytest.raises(ValueError, match=r"temperature=.*, expected a positive, finite number"):
        fitted().with_temperature(value)


# --- what it tells --------------------------------------------------------------------------------


def test_diagnostics_are_the_dense_ones(x64):
    la = exact.fitted("full", "float64").with_prior(2.0)
    found = la.diagnostics()
    problem = twins.problem("mlp", "float64")
    theta, _ = twins.flat(problem)
    gradient = jax.jit(jax.grad(twins.total_loss(problem)))(theta) + 2.0 * theta
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
    assert card["parameters"] == "6 of 12, a subset"
    assert card["training examples"] == "9"
    assert card["prior precision"] == "2.5"
    assert card["log marginal likelihood"] == f"{float(la.log_marginal_likelihood()):.2f} nats"
    assert all(name in str(la) and text in str(la) for name, text in card.items())
    many = la.with_prior(jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert many.card()["prior precision"] == "1 to 6"


# --- how it predicts ------------------------------------------------------------------------------


def test_the_defaults_of_predict_can_be_others():
    la, (_, x, _) = fitted(), problem()
    other = la.with_prediction(link="mean_field_1", covariance="diagonal")
    found, expected = (
        other.predict(x),
        la.predict(x, link="mean_field_1", covariance="diagonal"),
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found.f_cov is None
    assert not np.allclose(found.probs, la.predict(x).probs)
    jax.tree.map(
        np.testing.assert_array_equal,
        other.predict(x, link="probit", covariance="auto"),
        la.predict(x),
    )
    sampled, key = la.with_prediction(method="sampled", num_samples=7), jax.random.key(0)
    jax.tree.map(
        np.testing.assert_array_equal,
        sampled.predict(x, key=key),
        la.predict(x, method="sampled", num_samples=7, key=key),
    )
    with pytest.raises(ValueError, match='no key, expected one for method="sampled"'):
        sampled.predict(x)
    with exact.as_users_call(), pytest.raises(ValueError, match=r"link='probbit'.*'probit'"):
        la.with_prediction(link="probbit")
    of_draws = "expected a whole number of draws, at least"
    with pytest.raises(ValueError, match=f"num_samples=1, {of_draws} 2"):
        la.with_prediction(num_samples=1)
    with pytest.raises(ValueError, match=f"num_samples=0, {of_draws} 2"):
        la.predict(x, method="sampled", key=key, num_samples=0)
    with pytest.raises(ValueError, match="batch_size=0, expected a positive number"):
        la.predict(x, batch_size=0)
    for num_samples in (0, -1):
        with pytest.raises(ValueError, match=f"num_samples={num_samples}, {of_draws} 1"):
            la.sample(key, num_samples)


def test_what_is_not_named_is_kept():
    la = fitted()
    one_by_one = la.with_prediction(link="mean_field_1").with_prediction(covariance="diagonal")
    one_by_one = one_by_one.with_prediction(num_samples=7).with_prediction(method="sampled")
    at_once = la.with_prediction(
        link="mean_field_1", covariance="diagonal", num_samples=7, method="sampled"
    )
    assert one_by_one.prediction == at_once.prediction
    assert at_once.with_prediction().prediction == at_once.prediction
    default = at_once.with_prediction(link="auto", covariance="auto", num_samples="auto")
    assert default.with_prediction(method="auto").prediction == la.prediction
    assert default.prediction.method == "sampled"


def test_tuning_judges_by_the_very_predictive_that_is_used_later():
    la, (_, x, y) = fitted(), problem(3)
    options = {"data": (x, y), "bounds": (1e-3, 1e3), "objective": "brier"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # these labels are noise
        by_default = la.with_prediction(link="mean_field_2").tune(**options)
        by_option = la.tune(link="mean_field_2", **options)
    assert by_default.prediction == by_option.prediction
    for tuned in (by_default, by_option):
        probs = np.asarray(
            la.with_prior(tuned.prior_precision).predict(x, link="mean_field_2").probs
        )
        brier = np.mean(np.sum((probs - np.eye(2)[y]) ** 2, axis=1))
        assert float(tuned.tuning.objective.max()) == pytest.approx(-brier, rel=1e-4)
        np.testing.assert_allclose(tuned.predict(x).probs, probs, rtol=1e-5)


@pytest.mark.parametrize("kind", ["full", "ekfac"])
def test_jointly_over_inputs(kind, x64):
    la, x = exact.fitted(kind, "float64"), twins.problem("mlp", "float64").x
    jac = twins.dense(twins.jacobian, "mlp")
    cov = 0.5 * exact.covariance(kind, np.ones(31))
    found = la.with_temperature(0.5).predict(x, joint=True)
    expected = np.einsum("ncp,pq,mdq->ncmd", jac, cov, jac)
    twins.assert_close(found.joint_cov, expected, rtol=1e-9)
    twins.assert_close(found.f_var, np.einsum("ncnc->nc", expected), rtol=1e-9)
    assert la.predict(x).joint_cov is None


@pytest.mark.parametrize("method", ["linearized", "sampled"])
def test_functions_are_the_model_at_the_draws(method, x64):
    la, problem = exact.fitted("full", "float64"), twins.problem("mlp", "float64")
    functions = la.sample_functions(jax.random.key(2), 3, method=method)
    draws = la.sample(jax.random.key(2), 3)
    for k in range(3):
        theta = jax.tree.map(lambda leaf, k=k: leaf[k], draws)
        expected = twins.mlp(theta, problem.x)
        if method == "linearized":
            step = np.asarray(tree.ravel(theta) - tree.ravel(la.params))
            mean = twins.mlp(problem.params, problem.x)
            expected = mean + twins.dense(twins.jacobian, "mlp") @ step
        twins.assert_close(functions[k](problem.x), expected, rtol=1e-9)


# --- draws ----------------------------------------------------------------------------------------


def test_draws_are_like_the_parameters(x64):
    la = exact.fitted("full", "float64")
    draws = la.sample(jax.random.key(0), 5)
    assert jax.tree.structure(draws) == jax.tree.structure(la.params)
    shapes = jax.tree.map(lambda draw, leaf: draw.shape == (5, *leaf.shape), draws, la.params)
    assert jax.tree.all(shapes)
    again = la.sample(jax.random.key(0), 5)
    jax.tree.map(np.testing.assert_array_equal, draws, again)
    assert not np.allclose(draws["out"]["bias"][0], draws["out"]["bias"][1])


# --- parameters in lower precision ----------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize("structure", ["low_rank", "ekfac"])
def test_parameters_in_bfloat16_agree_with_the_same_in_float32(structure, likelihood):
    """From the fit to tuned predictions, in float32, and metrics: to bfloat16's precision."""
    params, x, y = problem(num=60)
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    x = np.asarray(x.astype(jnp.bfloat16), np.float32)
    if likelihood == "gaussian":
        y = (np.stack([y, 1 - y], axis=1) + 0.1 * np.sin(7 * x)).astype(np.float32)

    def cast(params, x):
        return model(params, x.astype(params["kernel"].dtype))

    def results(params):
        la = lk.fit(
            cast,
            params,
            (x, y),
            likelihood=likelihood,
            structure=structure,
            rank=5 if structure == "low_rank" else None,
        )
        evidence = la.log_marginal_likelihood()
        la = la.tune()
        predictive = la.predict(x)
        dtypes = {predictive.f_mean.dtype, predictive.f_var.dtype, predictive.f_cov.dtype}
        assert dtypes == {jnp.dtype("float32")}
        found = la.evaluate((x, y))
        assert all(np.isfinite(value) for value in found.values())
        return evidence, la.prior_precision, predictive.f_var, found["nll"]

    exactly = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halved)
    evidence, precision, variance, nll = results(halved)
    others = results(exactly)
    np.testing.assert_allclose(evidence, others[0], rtol=0.01)
    np.testing.assert_allclose(precision, others[1], rtol=0.05)
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    np.testing.assert_allclose(variance, others[2], atol=8 * eps * np.max(others[2]))
    np.testing.assert_allclose(nll, others[3], rtol=0.01)
