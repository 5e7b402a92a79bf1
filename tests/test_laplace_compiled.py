"""The posterior as an argument and a result of compiled functions, compiled once for all values."""

import warnings

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from exact import KINDS
from jax.flatten_util import ravel_pytree

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


def jacobian(la, x) -> np.ndarray:
    """Return that of the outputs in the flat parameters, `(N, C, P)`."""
    flat, unravel = ravel_pytree(la.params)
    return np.asarray(jax.jit(jax.jacobian(lambda theta: model(unravel(theta), x)))(flat))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_tuned_posterior_passes_through_a_compiled_function():
    """With everything that it may carry: a tuning, a temperature, defaults of its own."""
    la, (_, x, _) = fitted(structure="full").tune(bounds=(1e-6, 1e6)), problem()
    la = la.with_prediction(link="mean_field_1")

    @jax.jit
    def everything(la, x, temperature, key):
        other = la.with_temperature(temperature)
        functions = other.sample_functions(key, 2)
        joint = other.predict(x, joint=True).joint_cov
        return other, other.diagnostics(), joint, other.predict(x), functions(x)

    temperature, key = jnp.asarray(0.4), jax.random.key(0)
    other, diagnostics, joint, predictive, values = everything(la, x, temperature, key)
    expected = la.with_temperature(0.4)
    assert jax.tree.structure(other) == jax.tree.structure(expected)
    twins.assert_close(other.posterior.variance(), expected.posterior.variance(), rtol=1e-3)
    twins.assert_close(
        diagnostics.effective_parameters, la.diagnostics().effective_parameters, rtol=1e-3
    )
    jac, cov = jacobian(la, x), expected.posterior.covariance()
    f_cov = np.einsum("ncp,pq,mdq->ncmd", jac, cov, jac)
    twins.assert_close(joint, f_cov, rtol=1e-3)
    twins.assert_close(predictive.f_var, np.einsum("ncnc->nc", f_cov), rtol=1e-3)
    mean = la.predict_at_mode(x).f_mean
    steps = expected.posterior.sample(key, 2)
    twins.assert_close(values, mean + np.einsum("ncp,kp->knc", jac, steps), rtol=1e-3)


def test_other_values_of_the_same_shapes_compile_nothing():
    def run(seed):
        _, x, y = problem(seed)
        la = fitted(seed, structure="full").tune(bounds=(1e-6, 1e6))
        predictive = la.predict(x)
        draws = la.sample(jax.random.key(seed), 3)
        other = la.with_temperature(0.5 + seed).update((x, y))
        answers = (
            other.predict(x, joint=True),
            other.sample_functions(jax.random.key(seed), 2)(x),
            other.log_marginal_likelihood({"kernel": 1.0 + seed, "head": 2.0}),
            other.card(),
            la.evaluate((x, y)),
        )
        return predictive.probs, draws, answers, la.predict_at_mode(x).probs

    first = run(0)
    with twins.compilations() as programs:
        second = run(1)
    assert programs == []
    assert not np.allclose(first[0], second[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"method": "validation", "temperature": True},
        {"method": "cross_validation", "num_folds": 3},
    ],
    ids=lambda options: options["method"],
)
def test_tuning_by_other_data_of_the_same_shapes_compiles_nothing(options):
    """Though the search may visit more points, or fewer."""

    def run(seed):
        _, x, y = problem(seed)
        return fitted(seed).tune(data=(x, y), bounds=(1e-9, 1e9), **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # for a best point at a bound, if it is there
        first = run(0)
        with twins.compilations() as programs:
            second = run(1)
    assert programs == []
    assert first.prior_precision != second.prior_precision


def test_no_array_is_a_constant_of_the_program():
    la, x = fitted(), problem()[1]
    lowered = jax.jit(lambda la, x: la.predict(x)).lower(la, x)
    assert twins.constants(lowered.as_text()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("structure", "most"), [("kron", 25), ("diagonal", 25), ("full", 25)])
def test_a_first_answer_takes_few_programs(structure, most):
    """Most of what a user waits for who fits, tunes and predicts once is their compilation."""
    params, x, y = problem(num=40)
    other = jnp.asarray(problem(seed=1, num=25)[1])
    jax.clear_caches()
    with twins.compilations() as names:
        la = lk.fit(model, params, (x, y), likelihood="categorical", structure=structure)
        jax.block_until_ready(la.tune().predict(other))
    assert 0 < len(names) <= most, sorted(names)
