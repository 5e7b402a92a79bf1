"""Hessian products of scalar functions and of the loss, against `jax.hessian`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

from laplace_kit import curv


def curved(params):
    """A function with third derivatives, of a pytree with leaves of several shapes."""
    return jnp.sum(jnp.sin(params["a"]) ** 2 * params["b"][:, None]) + jnp.prod(params["b"])


def point(dtype: str) -> tuple:
    rng = np.random.default_rng(3)
    make = [{"a": rng.normal(size=(2, 3)), "b": rng.normal(size=2)} for _ in range(2)]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tuple(make))


def hessian_times(params, v):
    flat, unravel = ravel_pytree(params)
    matrix = jax.jit(jax.hessian(lambda theta: curved(unravel(theta))))(flat)
    return matrix @ ravel_pytree(v)[0]


def ravel(tree):
    return ravel_pytree(tree)[0]


# --- products of any scalar function --------------------------------------------------------------


@pytest.mark.accelerator
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hvp_is_exact(dtype):
    with twins.precision(dtype):
        params, v = point(dtype)
        found = jax.jit(lambda params, v: curv.hvp(curved, params, v))(params, v)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        twins.assert_close(ravel(found), hessian_times(params, v), dtype=dtype)


# --- the Hessian of the loss ----------------------------------------------------------------------


@pytest.mark.accelerator
@pytest.mark.parametrize(("name", "dtype"), twins.CASES)
def test_operator_is_the_dense_matrix(name, dtype):
    with twins.precision(dtype):
        problem = twins.problem(name, dtype)
        twins.assert_is(
            curv.HessianOperator(*problem.args), twins.dense(twins.hessian, name), dtype
        )


def test_blocks_and_chunks_under_a_small_memory_limit(x64):
    problem = twins.problem("mlp", "float64")
    operator = curv.HessianOperator(*problem.args, memory_limit=9000, scale=0.5)
    # Too little for all unit vectors at once, even with a single example.
    assert operator.limits.memory < 2 * operator.plan.example_bytes * operator.shape[0]
    twins.assert_is(operator, 0.5 * twins.dense(twins.hessian, "mlp"), "float64")


def test_derivative_of_a_product_is_the_third_derivative(x64):
    problem = twins.problem("convnet", "float64")
    theta, _ = twins.flat(problem)
    v, u = problem.vectors(2)
    unravel = ravel_pytree(problem.params)[1]

    def through_operator(theta):
        data = (problem.x, problem.y)
        operator = curv.HessianOperator(problem.model_fn, unravel(theta), data, problem.likelihood)
        return u @ operator.mv(v)

    def by_definition(theta):
        return u @ jax.jvp(jax.grad(twins.total_loss(problem)), (theta,), (v,))[1]

    found, expected = jax.jit(jax.grad(through_operator)), jax.jit(jax.grad(by_definition))
    twins.assert_close(found(theta), expected(theta))


def test_pure_function_with_the_batch_as_argument(x64):
    problem = twins.problem("two_inputs", "float64")

    @jax.jit
    def product(params, batch, v):
        return curv.hessian_mv(problem.model_fn, params, batch, v, "bernoulli", scale=2)

    v = problem.vectors(1)[0]
    found = product(problem.params, (problem.x, problem.y), v)
    twins.assert_close(found, 2 * twins.dense(twins.hessian, "two_inputs") @ np.asarray(v))


def test_flat_vectors_give_flat_products(x64):
    params = {"a": jnp.arange(3.0), "b": jnp.asarray(2.0)}

    def fun(p):
        return jnp.sum(jnp.sin(p["a"])) * p["b"] ** 2

    flat = jnp.linspace(-1, 1, 4)
    tree_form = curv.hvp(fun, params, {"a": flat[:3], "b": flat[3]})
    twins.assert_close(curv.hvp(fun, params, flat), jnp.append(tree_form["a"], tree_form["b"]))
