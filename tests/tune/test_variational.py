"""The temperature maximises a variational bound of the evidence: quadrature and brute force."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize_scalar

import laplace_kit as lk
from laplace_kit.eval.metrics import negative_log_likelihood
from laplace_kit.eval.outputs import Predictive
from laplace_kit.targets import NoTargets, Outputs
from laplace_kit.tune.variational import (
    PriorTerms,
    isotropic_prior_terms,
    prior_terms,
    variational_temperature,
)


def predictive_of(f_mean, f_cov=None, f_var=None) -> Predictive:
    f_var = np.einsum("ncc->nc", f_cov) if f_var is None else f_var
    f_cov = None if f_cov is None else jnp.asarray(f_cov)
    return Predictive(NoTargets(Outputs(jnp.asarray(f_mean), jnp.asarray(f_var), f_cov)))


def terms(num_params, spread, deviation) -> PriorTerms:
    return PriorTerms(*(jnp.asarray(float(part)) for part in (num_params, spread, deviation)))


# --- where the expansion of the likelihood is exact -----------------------------------------------


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_regression_at_the_optimum_of_the_evidence_is_left_alone(form, x64):
    regression = exact.regression(num=200)
    num = regression.num_params
    la = regression.fit(np.ones(num), np.zeros(num), structure="full").tune()
    cov = np.linalg.inv(regression.curvature() + float(la.prior_precision) * np.eye(num))
    design = regression.design(regression.x).reshape(200, 2, num)
    f_cov = np.einsum("ncp,pq,ndq->ncd", design, cov, design)
    theta = np.asarray(ravel_pytree(la.params)[0])
    predictive = predictive_of(design @ theta, f_cov)
    if form == "diagonal":
        predictive = predictive_of(design @ theta, f_var=np.einsum("ncc->nc", f_cov))
    delta = float(la.prior_precision)
    prior = terms(num, delta * np.trace(cov), delta * theta @ theta)
    y = jnp.asarray(regression.y)
    found = variational_temperature(la.likelihood, predictive, y, prior, 200)
    assert 0.9 < float(found) <= 1  # of a finite number of draws
    assert la.temperature == 1  # which is why `tune` does not ask for it
    asked = la.tune(temperature=True)
    assert float(asked.temperature) == pytest.approx(float(found), rel=0.1)


@pytest.mark.parametrize("kind", exact.KINDS)
def test_prior_terms_are_those_of_the_dense_posterior(kind, x64):
    la, delta = exact.fitted(kind, "float64"), 2.5
    theta = np.asarray(jax.flatten_util.ravel_pytree(la.params)[0])
    precision = np.full(len(theta), delta)
    cov = np.linalg.inv(exact.curvature(kind) + np.diag(precision))
    posterior = la.with_prior(delta).posterior
    for found in (
        prior_terms(posterior, jnp.asarray(precision), jnp.asarray(theta)),
        isotropic_prior_terms(la.structure.spectrum(), jnp.asarray(delta), jnp.asarray(theta)),
    ):
        expected = (len(theta), delta * np.trace(cov), delta * theta @ theta)
        np.testing.assert_allclose(jax.tree.leaves(found), expected, rtol=1e-8)


# --- brute force ----------------------------------------------------------------------------------


def logistic(num=60, seed=0):
    """Return a Bayesian logistic regression in two dimensions and its posterior at the mode."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, 2))
    y = (x @ [2.0, -1.0] + 0.5 * rng.logistic(size=num) > 0).astype(float)
    delta, theta = 0.05, np.zeros(2)
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ theta))
        precision = (x * (p * (1 - p))[:, None]).T @ x + delta * np.eye(2)
        theta = theta - np.linalg.solve(precision, x.T @ (p - y) + delta * theta)
    return x, y, theta, np.linalg.inv(precision), delta


def bound(temperature, expected_loss, cov, theta, delta) -> float:
    """Return the evidence lower bound, the prior's scale optimised numerically."""
    num = len(theta)
    spread = temperature * np.trace(cov) + theta @ theta

    def divergence(log_scale):
        prior = delta * np.exp(log_scale)
        log_dets = num * np.log(prior) + np.linalg.slogdet(temperature * cov)[1]
        return 0.5 * (prior * spread - num - log_dets)

    return -expected_loss - minimize_scalar(divergence, bounds=(-20, 20), method="bounded").fun


def test_logistic_regression_by_quadrature_and_by_monte_carlo(x64):
    x, y, theta, cov, delta = logistic()
    f, var = x @ theta, np.einsum("np,pq,nq->n", x, cov, x)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def elbo(temperature):
        logits = f[:, None] + np.sqrt(temperature * var)[:, None] * nodes
        losses = np.logaddexp(0, logits) - y[:, None] * logits
        return bound(temperature, np.sum(losses @ weights), cov, theta, delta)

    draws = np.random.default_rng(1).multivariate_normal(np.zeros(2), cov, 20_000)
    logits = (theta + np.sqrt(0.3) * draws) @ x.T
    by_draws = np.mean(np.sum(np.logaddexp(0, logits) - y * logits, axis=1))
    assert bound(0.3, by_draws, cov, theta, delta) == pytest.approx(elbo(0.3), abs=0.05)

    prior = terms(2, delta * np.trace(cov), delta * theta @ theta)
    predictive = predictive_of(f[:, None], var[:, None, None])
    found = float(
        variational_temperature(lk.Bernoulli(), predictive, jnp.asarray(y)[:, None], prior, 60)
    )
    grid = np.exp(np.linspace(np.log(1e-3), 0, 300))
    values = [elbo(temperature) for temperature in grid]
    assert elbo(found) >= max(values) - 0.02  # nats
    assert found == pytest.approx(grid[int(np.argmax(values))], rel=0.2)


def test_a_part_of_the_data_stands_for_all(x64):
    """Half of the examples twice is the whole, except for the nodes."""
    x, y, theta, cov, delta = logistic(num=200)
    f, var = (x @ theta)[:, None], np.einsum("np,pq,nq->n", x, cov, x)[:, None]
    prior = terms(2, delta * np.trace(cov), delta * theta @ theta)

    def of(rows, num_data, weights=None):
        predictive = predictive_of(f[rows], f_var=var[rows])
        y_rows = jnp.asarray(y[rows])[:, None]
        weights = weights if weights is None else jnp.asarray(weights, float)
        args = lk.Bernoulli(), predictive, y_rows, prior, num_data, weights
        return float(variational_temperature(*args))

    rows = np.arange(100)
    assert of(rows, 200) == pytest.approx(of(np.tile(rows, 2), 200), rel=0.2)
    assert of(rows, 10_000) < of(rows, 100)
    # weights are copies, and what they sum to is a number of examples
    assert of(rows, 200, np.full(100, 2.0)) == pytest.approx(of(rows, 200), rel=1e-9)
    doubtful = y[rows] != (f[rows, 0] > 0)  # these want a wide posterior least
    weights = np.where(doubtful, 6, np.arange(100) % 2)
    found, expected = of(rows, 200, weights), of(np.repeat(rows, weights), 200)
    assert found == pytest.approx(expected, rel=0.2)
    assert found != pytest.approx(of(rows, 200), rel=0.2)


# --- classification -------------------------------------------------------------------------------


def blobs(seed, num):
    rng = np.random.default_rng(seed)
    centres = np.array([[3.0, 0.0], [-3.0, 1.0], [0.0, -3.0]])
    y = rng.integers(0, 3, num)
    x = centres[y] + 0.5 * rng.normal(size=(num, 2))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y)


def mlp(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def trained(x, y):
    rng = np.random.default_rng(0)
    shapes = {"w1": (2, 8), "b1": (8,), "w2": (8, 3), "b2": (3,)}
    params = {k: jnp.asarray(0.5 * rng.normal(size=s), jnp.float32) for k, s in shapes.items()}

    def loss(params):
        losses = optax.softmax_cross_entropy_with_integer_labels(mlp(params, x), y)
        return losses.sum() + 0.005 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    optimizer = optax.adam(0.05)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=1000)[0][0]

    return train(params)


@pytest.mark.slow
def test_separable_classes_want_a_cold_posterior():
    x, y = blobs(1, 90)
    la = lk.fit(mlp, trained(x, y), (x, y), likelihood="categorical", structure="full").tune()
    assert float(la.temperature) < 0.5
    test_x, test_y = blobs(2, 500)
    tempered, warm = (
        float(negative_log_likelihood(each.predict(test_x).probs, test_y))
        for each in (la, la.with_temperature(1.0))
    )
    assert tempered < warm


def categorical_case(seed=0, num=12):
    rng = np.random.default_rng(seed)
    f = rng.normal(size=(num, 3))
    root = 2 * rng.normal(size=(num, 3, 3))
    y = rng.integers(0, 3, num)
    prior = terms(20, 12.0 + seed, 8.0)
    return f, np.einsum("nij,nkj->nik", root, root), y, prior


def test_what_is_missing_counts_for_nothing(x64):
    f, f_cov, y, prior = categorical_case()
    seen = np.arange(12) % 3 != 0
    other_f, other_cov = f.copy(), f_cov.copy()
    other_f[~seen], other_cov[~seen] = 5.0, 40 * np.eye(3)

    def of(likelihood, f, f_cov, y):
        found = variational_temperature(likelihood, predictive_of(f, f_cov), y, prior, 12)
        return float(found)

    masked, mask = lk.Masked(lk.Categorical()), jnp.asarray(seen)
    expected = of(masked, f, f_cov, (jnp.asarray(y), mask))
    others = jnp.asarray(np.where(seen, y, 2 - y))
    assert of(masked, other_f, other_cov, (others, mask)) == expected
    ignoring = lk.Categorical(ignore_index=-1)
    ignored = jnp.asarray(np.where(seen, y, -1))
    assert of(ignoring, other_f, other_cov, ignored) == pytest.approx(expected, rel=1e-12)
    assert of(lk.Categorical(), other_f, other_cov, jnp.asarray(y)) != expected


def test_within_its_bounds(x64):
    """However cold or warm the bound would have it."""
    f, f_cov, y, _ = categorical_case()

    def of(cov, prior):
        predictive = predictive_of(f, cov)
        return float(
            variational_temperature(lk.Categorical(), predictive, jnp.asarray(y), prior, 12)
        )

    assert of(1e-9 * f_cov, terms(50, 1.0, 1e3)) == 1
    assert of(1e12 * f_cov, terms(1, 1e-9, 1.0)) == pytest.approx(1e-6)


def test_under_vmap_and_jit_and_for_other_values_without_another_program():
    cases = [categorical_case(seed) for seed in range(3)]

    def of(f, f_cov, y, prior):
        predictive = Predictive(NoTargets(Outputs(f, jnp.einsum("ncc->nc", f_cov), f_cov)))
        return variational_temperature(lk.Categorical(), predictive, y, prior, 12)

    arrays = [jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(float)), c) for c in cases]
    arrays = [(f, cov, y.astype(int), prior) for f, cov, y, prior in arrays]
    one = [of(*case) for case in arrays]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)
    np.testing.assert_allclose(jax.jit(jax.vmap(of))(*stacked), one, rtol=1e-4)
    direct = [predictive_of(f, cov) for f, cov, _, _ in arrays]
    with twins.compilations() as names:
        for predictive, (_, _, y, prior) in zip(direct, arrays, strict=True):
            variational_temperature(lk.Categorical(), predictive, y, prior, 12)
    assert not [name for name in names if "variational" in name]
