"""The GGN is the sum of J^T L J, in every form and on every kind of model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

from laplace_kit import curv
from laplace_kit.likelihood import Categorical, Gaussian, Likelihood
from laplace_kit.model import batched


@pytest.mark.accelerator
@pytest.mark.parametrize(("name", "dtype"), twins.CASES)
def test_operator_is_the_dense_matrix(name, dtype):
    with twins.precision(dtype):
        problem = twins.problem(name, dtype)
        twins.assert_is(curv.GGNOperator(*problem.args), twins.dense(twins.ggn, name), dtype)


@pytest.mark.parametrize(("name", "batch_size"), [("two_inputs", 4), ("several_axes", 1)])
def test_chunks_that_do_not_divide_the_data(name, batch_size, x64):
    problem = twins.problem(name, "float64")
    operator = curv.GGNOperator(*problem.args, batch_size=batch_size, scale=2.5)
    twins.assert_is(operator, 2.5 * twins.dense(twins.ggn, name), "float64")


def by_solve(params, x):
    matrix = jnp.eye(3) + params["a"] @ params["a"].T
    return jnp.linalg.solve(matrix, x.T).T @ params["v"]


def by_linear_solve(params, x):
    """By Cholesky, with a solver of its own."""
    matrix = jnp.eye(3) + params["a"] @ params["a"].T

    def solve(product, b):
        return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), b)

    solved = jax.lax.custom_linear_solve(lambda v: matrix @ v, x.T, solve, symmetric=True)
    return solved.T @ params["v"]


def by_root(params, x):
    """An implicit layer: z = tanh(x + 0.3 z a), solved by iteration and Newton's equation."""

    def equation(z):
        return z - jnp.tanh(x + 0.3 * z @ jnp.sin(params["a"]))

    def iterate(fn, z):
        return jax.lax.fori_loop(0, 200, lambda _, z: z - fn(z), z)

    def tangent(product, b):
        dense = jax.jacobian(product)(jnp.zeros_like(b)).reshape(b.size, b.size)
        return jnp.linalg.solve(dense, b.ravel()).reshape(b.shape)

    return jax.lax.custom_root(equation, jnp.zeros_like(x), iterate, tangent) @ params["v"]


@pytest.mark.parametrize("model_fn", [by_solve, by_linear_solve, by_root])
def test_models_with_solvers_inside(model_fn, x64):
    """In all forms: programs within programs are rewritten on the way."""
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(3, 3))), "v": jnp.asarray(rng.normal(size=(3, 2)))}
    x, y = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.integers(0, 2, 4))
    problem = twins.Problem(model_fn, params, x, y, Categorical(), twins.categorical_loss)
    matrix = np.asarray(jax.jit(lambda: twins.ggn(problem))())
    twins.assert_is(curv.GGNOperator(*problem.args), matrix, "float64")


def test_equals_the_hessian_of_a_linear_model(x64):
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(9, 4))), jnp.asarray(rng.integers(0, 3, 9))

    def linear(params, x):
        return x @ params

    params = jnp.asarray(rng.normal(size=(4, 3)))
    ggn = curv.GGNOperator(linear, params, (x, y), "categorical")
    hessian = curv.HessianOperator(linear, params, (x, y), "categorical")
    twins.assert_close(ggn.to_dense(), hessian.to_dense())


def test_positive_semi_definite_even_where_the_hessian_is_not(x64):
    assert np.linalg.eigvalsh(twins.dense(twins.hessian, "mlp")).min() < -1e-3
    problem = twins.problem("mlp", "float64")
    eigenvalues = jnp.linalg.eigvalsh(curv.GGNOperator(*problem.args).to_dense())
    assert eigenvalues.min() > -1e-12 * eigenvalues.max()


def test_derivatives_in_the_parameters_and_the_noise(x64):
    problem = twins.problem("convnet", "float64")
    theta, _ = twins.flat(problem)
    v, u = problem.vectors(2)
    unravel = ravel_pytree(problem.params)[1]

    def through_operator(theta, noise_std):
        data = (problem.x, problem.y)
        operator = curv.GGNOperator(problem.model_fn, unravel(theta), data, Gaussian(noise_std))
        return u @ operator.mv(v)

    def by_definition(theta, noise_std):
        _, outputs = twins.flat(problem)
        jac = jax.jacobian(outputs)(theta)
        return jnp.vdot(jac @ u, jac @ v) / noise_std**2

    found = jax.jit(jax.grad(through_operator, (0, 1)))(theta, 0.7)
    expected = jax.jit(jax.grad(by_definition, (0, 1)))(theta, 0.7)
    twins.assert_close(found[0], expected[0])
    twins.assert_close(found[1], expected[1])


@pytest.mark.parametrize("form", ["flat", "pytree"])
def test_pure_function_with_the_batch_as_argument(form, x64):
    problem = twins.problem("with_integers", "float64")
    v = problem.vectors(1)[0]
    given = (
        v if form == "flat" else {**problem.params, "kernel": v[:6].reshape(2, 3), "power": v[6]}
    )
    product = jax.jit(
        lambda params, batch, v: curv.ggn_mv(
            problem.model_fn, params, batch, v, "poisson", scale=3.0
        )
    )
    found = product(problem.params, (problem.x, problem.y), given)
    expected = 3 * twins.dense(twins.ggn, "with_integers") @ np.asarray(v)
    if form == "pytree":
        assert jax.tree.structure(found) == jax.tree.structure(problem.params)
        np.testing.assert_array_equal(found["columns"], 0)  # frozen: no part of the matrix
        found = jnp.append(found["kernel"].ravel(), found["power"])
    twins.assert_close(found, expected)


PURE = {
    "ggn": (curv.GGNOperator, curv.ggn_mv),
    "hessian": (curv.HessianOperator, curv.hessian_mv),
    "empirical": (curv.EmpiricalFisherOperator, curv.empirical_fisher_mv),
    "monte_carlo": tuple(
        jax.tree_util.Partial(of, key=jax.random.key(0))
        for of in (curv.MonteCarloFisherOperator, curv.mc_fisher_mv)
    ),
}


@pytest.mark.parametrize("kind", PURE)
def test_pure_functions_map_and_differentiate(kind, x64):
    """For a model of single examples, and part of the data in place of all."""
    problem = twins.problem("mlp", "float64")
    of, product = PURE[kind]
    theta, unravel = ravel_pytree(problem.params)
    v, u, direction = problem.vectors(3)
    model_fn = batched(lambda params, x: twins.mlp(params, x[None])[0])
    num_total, batch = 70, (problem.x, problem.y)

    def one(theta, v):
        params, scale = unravel(theta), num_total / problem.num_examples
        return product(model_fn, params, batch, v, problem.likelihood, scale=scale)

    @jax.jit
    def found(theta):
        several = jax.vmap(one, (None, 0))(theta, jnp.stack([v, u]))
        around = jax.vmap(one, (0, None))(theta + jnp.asarray([[1e-5], [-1e-5]]) * direction, v)
        change = jax.jvp(lambda theta: one(theta, v), (theta,), (direction,))[1]
        gradient = jax.grad(lambda theta: u @ one(theta, v))(theta)
        return several, around, change, gradient

    several, (up, down), change, gradient = found(theta)
    matrix = of(*problem.args, scale=10.0)
    twins.assert_close(several, matrix.matmat(jnp.stack([v, u])))
    twins.assert_close(change, (up - down) / 2e-5, rtol=1e-8)
    twins.assert_close(gradient @ direction, u @ change)


class SoftPlusLoss(Likelihood):
    """A likelihood written outside the library needs nothing but the abstract methods."""

    def negative_log_prob(self, f, y):
        return jnp.sum(jnp.logaddexp(0, f) - y * f)

    def hessian_mv(self, f, y, u):
        return jax.nn.sigmoid(f) * (1 - jax.nn.sigmoid(f)) * u

    def hessian_sqrt_mv(self, f, y, w):
        return jnp.sqrt(jax.nn.sigmoid(f) * (1 - jax.nn.sigmoid(f))) * w

    def sample(self, key, f):
        raise NotImplementedError

    def check_shapes(self, outputs, targets):
        assert targets.shape == outputs

    def is_valid(self, f, y):
        return jnp.asarray(True)

    support = "anything"


def test_a_likelihood_of_ones_own(x64):
    problem = twins.problem("two_inputs", "float64")
    likelihood = jax.tree_util.register_static(SoftPlusLoss)()
    data = (problem.x, problem.y)
    operator = curv.GGNOperator(problem.model_fn, problem.params, data, likelihood)
    twins.assert_is(operator, twins.dense(twins.ggn, "two_inputs"), "float64")
