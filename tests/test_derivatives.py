"""Derivatives in both directions: of functions with rules for reverse mode alone, against twins."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax._src import config
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit import curv
from laplace_kit.derivatives import linearize, linearize_gradient


@jax.custom_vjp
def tanh(x):
    return jnp.tanh(x)


# The forward rule calls the function, so that its own derivative needs the rule once more.
tanh.defvjp(lambda x: (tanh(x), x), lambda x, g: (g * (1 - tanh(x) ** 2),))


def in_a_call(params, x):
    hidden = jax.jit(lambda x: tanh(x @ params["hidden"][0]["kernel"]))
    bias = params["hidden"][0]["bias"]
    return hidden(jnp.concatenate([x, bias[None, :3]]))[:-1] @ params["out"]["kernel"]


def in_a_loop(params, x):
    kernel = jnp.pad(params["hidden"][0]["kernel"], ((0, 1), (0, 0)))
    x = jnp.pad(x, ((0, 0), (0, 1)))
    x = jax.lax.scan(lambda h, _: (tanh(h @ kernel), None), x, None, 2)[0]
    return x @ params["out"]["kernel"]


def reverse_only(params, x):
    for layer in params["hidden"]:
        x = tanh(x @ layer["kernel"] + layer["bias"])
    return x @ params["out"]["kernel"] + params["out"]["bias"]


def of_inputs_alone(params, x):
    return tanh(x) @ params["hidden"][0]["kernel"]


# --- linear maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_fn", [twins.mlp, reverse_only, in_a_call, in_a_loop])
def test_both_directions_are_those_of_the_dense_jacobian(model_fn, x64):
    problem = twins.problem("mlp", "float64")
    theta, unravel = ravel_pytree(problem.params)

    def fn(theta):
        return model_fn(unravel(theta), problem.x)

    @jax.jit
    def found(v, u):
        value, push_forward, pull_back = linearize(fn, theta)
        return value, push_forward(v), pull_back(u), jax.vmap(push_forward)(jnp.stack([v, -v]))

    v, u = problem.vectors(1)[0], jnp.cos(jnp.arange(21.0)).reshape(7, 3)
    jac = jax.jit(jax.jacrev(fn))(theta)
    value, pushed, pulled, several = found(v, u)
    twins.assert_close(value, fn(theta))
    twins.assert_close(pushed, jac @ v)
    twins.assert_close(pulled, jnp.einsum("nc,ncp->p", u, jac))
    twins.assert_close(several, jnp.stack([jac @ v, -jac @ v]))


def test_forward_mode_stays_where_there_is_one():
    """Forward mode is kept if a rule for reverse mode applies only to the inputs."""
    problem = twins.problem("mlp")

    def num_products(fn):
        return str(jax.make_jaxpr(fn)(problem.params)).count("dot_general")

    for model_fn, is_forward in ((twins.mlp, True), (of_inputs_alone, True), (reverse_only, False)):

        def outputs(params, model_fn=model_fn):
            return model_fn(params, problem.x)

        found = num_products(lambda p, fn=outputs: linearize(fn, p).push_forward(p))
        by_rule = num_products(lambda p, fn=outputs: jax.linearize(fn, p)[1](p))
        assert (found == by_rule) == is_forward


def test_hessians_are_those_of_the_twin(x64):
    problem = twins.problem("mlp", "float64")
    theta, unravel = ravel_pytree(problem.params)
    v = problem.vectors(1)[0]

    def loss(model_fn):
        return lambda theta: jnp.sum(jnp.sin(model_fn(unravel(theta), problem.x)))

    expected = jax.jit(jax.hessian(loss(twins.mlp)))(theta) @ v
    found = jax.jit(lambda v: linearize_gradient(jax.grad(loss(reverse_only)), theta)(v))(v)
    twins.assert_close(found, expected)
    twins.assert_close(curv.hvp(loss(reverse_only), theta, v), expected)


def test_a_rule_that_clips_gradients_counts_as_it_is_at_zero():
    @jax.custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1, 1),))
    found = linearize(lambda x: 3 * clipped(x), jnp.ones(2))
    np.testing.assert_allclose(found.push_forward(jnp.asarray([5.0, -7.0])), [15.0, -21.0])


def test_rules_for_reverse_mode_as_jax_holds_them_under_its_newer_setting(x64):
    problem = twins.problem("mlp", "float64")
    (v,) = problem.vectors(1)
    theta, unravel = ravel_pytree(problem.params)

    def fn(theta):
        return reverse_only(unravel(theta), problem.x)

    jac = jax.jacrev(fn)(theta)
    with config.custom_vjp3(True):
        found = jax.jit(lambda v: linearize(fn, theta).push_forward(v))(v)
    twins.assert_close(found, jac @ v)


# --- operators ------------------------------------------------------------------------------------


def test_operators_are_the_dense_matrices_of_the_twin(x64):
    problem = twins.problem("mlp", "float64")
    data = (problem.x, problem.y)
    for operator, definition in (
        (curv.GGNOperator, twins.ggn),
        (curv.HessianOperator, twins.hessian),
        (curv.EmpiricalFisherOperator, twins.empirical_fisher),
    ):
        found = operator(reverse_only, problem.params, data, problem.likelihood)
        twins.assert_is(found, twins.dense(definition, "mlp"), "float64")
    found = curv.JacobianOperator(reverse_only, problem.params, problem.x)
    v = problem.vectors(1)[0]
    jac = twins.dense(twins.jacobian, "mlp").reshape(21, -1)
    twins.assert_close(found @ v, jac @ v)
    linearized = curv.linearized(
        curv.GGNOperator(reverse_only, problem.params, data, "categorical")
    )
    twins.assert_close(linearized @ v, twins.dense(twins.ggn, "mlp") @ v)


@pytest.mark.parametrize("structure", exact.KINDS)
def test_every_posterior_is_that_of_the_twin(structure, x64):
    problem = twins.problem("mlp", "float64")
    la = lk.fit(
        reverse_only,
        problem.params,
        (problem.x, problem.y),
        likelihood="categorical",
        structure=structure,
        rank=exact.RANK if structure == "low_rank" else None,
    )
    cov = exact.covariance(structure, np.ones(31))
    twins.assert_close(la.posterior.covariance(), cov, rtol=1e-7)
    if structure == "diagonal":
        jac = twins.dense(twins.jacobian, "mlp")
        variance = np.einsum("ncp,p,ncp->nc", jac, np.diag(cov), jac)
        twins.assert_close(la.predict(problem.x).f_var, variance)
        functions = la.sample_functions(jax.random.key(0), 2)
        moved = jac @ functions.displacements.T
        expected = problem.model_fn(problem.params, problem.x)[..., None] + moved
        twins.assert_close(functions(problem.x), np.moveaxis(expected, -1, 0))
