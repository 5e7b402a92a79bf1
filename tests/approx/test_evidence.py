"""The evidence: exact for Bayesian linear regression, by its definition for every likelihood."""

import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from exact import KINDS
from scipy import stats

import laplace_kit as lk
from laplace_kit.approx.evidence import log_evidence, log_evidence_isotropic


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("kind", ["full", "low_rank"])
def test_exact_on_bayesian_linear_regression(kind, outputs, x64):
    regression = exact.regression(outputs=outputs)
    num = regression.num_params
    precision, mean = exact.priors(num)
    la = regression.fit(precision, mean, structure=kind, rank=num)
    expected = regression.log_evidence(precision, mean)
    assert float(la.log_marginal_likelihood()) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kind", ["full", "low_rank"])
def test_exact_with_fewer_observations_than_parameters(kind, x64):
    regression = exact.regression(num=2)
    num = regression.num_params
    assert regression.y.size < num - 1  # the curvature has rank 4 of 8, `rank` asks for 7
    precision, mean = exact.priors(num)
    la = regression.fit(precision, mean, structure=kind, rank=num - 1)
    expected = regression.log_evidence(precision, mean)
    assert float(la.log_marginal_likelihood()) == pytest.approx(expected, rel=1e-10)


def test_scalar_prior_and_zero_mean(x64):
    regression = exact.regression()
    num = regression.num_params
    mode, _ = regression.posterior(np.full(num, 2.5), np.zeros(num))
    la = lk.fit(
        exact.linear,
        regression.unravel(mode),
        (jnp.asarray(regression.x), jnp.asarray(regression.y)),
        likelihood=lk.Gaussian(regression.noise_std),
        prior_precision=2.5,
    )
    expected = regression.log_evidence(np.full(num, 2.5), np.zeros(num))
    assert float(la.log_marginal_likelihood()) == pytest.approx(expected, rel=1e-10)


def test_isotropic_form_equals_the_general_one(x64):
    structure = exact.fitted("full", "float64").structure
    deviation, delta = jnp.linspace(-1.0, 2.0, 31), jnp.asarray(0.3)
    general = log_evidence(jnp.asarray(-4.0), structure, jnp.full(31, delta), deviation)
    squared = jnp.sum(deviation**2)
    isotropic = log_evidence_isotropic(jnp.asarray(-4.0), structure.spectrum(), delta, squared)
    twins.assert_close(isotropic, general)


# --- other likelihoods, from their definitions ----------------------------------------------------


@functools.cache
def counts() -> tuple:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(6, 3))
    params = {"bias": 0.3 * rng.normal(size=2), "weight": 0.3 * rng.normal(size=(3, 2))}
    return x, params, np.tanh(x) @ params["weight"] + params["bias"], rng


@pytest.mark.parametrize("name", ["poisson", "bernoulli"])
def test_by_definition_for_counts_and_binary_labels(name, x64):
    x, params, f, _ = counts()
    rng = np.random.default_rng(9)
    if name == "poisson":
        y = rng.poisson(np.exp(f))
        log_likelihood, curvature = stats.poisson.logpmf(y, np.exp(f)).sum(), np.exp(f)
    else:
        p = 1 / (1 + np.exp(-f))
        y = rng.integers(0, 2, f.shape)
        log_likelihood, curvature = stats.bernoulli.logpmf(y, p).sum(), p * (1 - p)
    la = lk.fit(
        exact.linear,
        jax.tree.map(jnp.asarray, params),
        (jnp.asarray(x), jnp.asarray(y)),
        likelihood=name,
        prior_precision=0.7,
    )
    design = exact.Regression(x, y, noise_std=1.0).design(x)
    matrix = design.T @ (curvature.ravel()[:, None] * design)
    theta = np.concatenate([params["bias"], params["weight"].ravel()])
    expected = exact.evidence(log_likelihood, matrix, np.full(8, 0.7), theta)
    assert float(la.log_marginal_likelihood()) == pytest.approx(expected, rel=1e-10)


# --- derivatives ----------------------------------------------------------------------------------


@functools.cache
def evidence_and_gradient(kind: str):
    la = exact.fitted(kind, "float64")
    return jax.jit(jax.value_and_grad(la.log_marginal_likelihood))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["scalar", "per_leaf"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_in_the_prior_against_finite_differences(kind, form, x64):
    fn = evidence_and_gradient(kind)
    leaves = jax.tree.structure(exact.fitted(kind, "float64").params)
    start = np.array([0.6]) if form == "scalar" else np.array([0.6, 2.0, 0.1, 5.0])

    def at(values):
        if form == "scalar":
            return fn(jnp.asarray(values[0]))
        return fn(jax.tree.unflatten(leaves, [jnp.asarray(value) for value in values]))

    step = 1e-5
    gradient = np.array([float(g) for g in jax.tree.leaves(at(start)[1])])
    shifts = step * np.eye(len(start))
    differences = [(at(start + s)[0] - at(start - s)[0]) / (2 * step) for s in shifts]
    np.testing.assert_allclose(gradient, differences, rtol=1e-6)
