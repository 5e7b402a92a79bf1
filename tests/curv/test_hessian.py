"""Hessian products of scalar functions and of the loss, against `jax.hessian`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit import curv


def curved(params):
    """A function with third derivatives, of a pytree with leaves of several shapes."""
    return jnp.sum(jnp.sin(params["a"]) ** 2 * params["b"][:, None]) + jnp.prod(params["b"])


def point(dtype: str) -> tuple:
    rng = np.random.default_rng(3)
    make = [{"a": rng.normal(size=(2, 3)), "b": rng.normal(size=2)} for _ in range(2)]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tuple(make))


def hessian_times(params, v):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    matrix = jax.jit(jax.hessian(lambda theta: curved(unravel(theta))))(flat)
    return matrix @ jax.flatten_util.ravel_pytree(v)[0]


def ravel(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


difference = jax.jit(curv.finite_difference_hvp, static_argnums=0)


# --- products of any scalar function --------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hvp_is_exact(dtype):
    with twins.precision(dtype):
        params, v = point(dtype)
        found = jax.jit(lambda params, v: curv.hvp(curved, params, v))(params, v)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        twins.assert_close(ravel(found), hessian_times(params, v), dtype=dtype)


def test_finite_difference_is_close_by_default(x64):
    params, v = point("float64")
    found = difference(curved, params, v)
    twins.assert_close(ravel(found), hessian_times(params, v), rtol=1e-8)


def test_finite_difference_in_single_precision():
    params, v = point("float32")
    found = difference(curved, params, v)
    assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(found))
    twins.assert_close(ravel(found), hessian_times(params, v), rtol=5e-3)


def test_finite_difference_error_is_of_second_order(x64):
    params, v = point("float64")
    expected = hessian_times(params, v)

    def error(step):
        found = difference(curved, params, v, step=step)
        return jnp.linalg.norm(ravel(found) - expected)

    assert error(2e-3) / error(1e-3) == pytest.approx(4, rel=1e-3)


def test_finite_difference_of_a_quadratic_is_exact_for_any_step(x64):
    matrix = jnp.asarray([[2.0, -1.0], [-1.0, 3.0]])

    def quadratic(theta):
        return 0.5 * theta @ matrix @ theta

    theta, v = jnp.asarray([0.3, -2.0]), jnp.asarray([1.0, 4.0])
    found = difference(quadratic, theta, v, step=10.0, damping=0.5)
    twins.assert_close(found, (matrix + 0.5 * jnp.eye(2)) @ v)


def test_finite_difference_does_not_depend_on_the_length_of_the_vector(x64):
    params, v = point("float64")
    long = jax.tree.map(lambda leaf: 1e6 * leaf, v)
    found = difference(curved, params, long)
    twins.assert_close(ravel(found), 1e6 * hessian_times(params, v), rtol=1e-8)
    nothing = difference(curved, params, jax.tree.map(jnp.zeros_like, v))
    np.testing.assert_allclose(ravel(nothing), 0, atol=1e-10)


def test_finite_difference_needs_no_second_derivative(x64):
    @jax.custom_vjp
    def cubic(theta):
        return jnp.sum(theta**3)

    def forward(theta):
        return cubic(theta), theta

    def backward(theta, cotangent):
        gradient = jax.pure_callback(lambda t: 3 * t**2, theta, theta, vmap_method="sequential")
        return (cotangent * gradient,)

    cubic.defvjp(forward, backward)
    theta, v = jnp.asarray([0.5, -1.0]), jnp.asarray([2.0, 1.0])
    twins.assert_close(difference(cubic, theta, v), 6 * theta * v, rtol=1e-8)


# --- the Hessian of the loss ----------------------------------------------------------------------


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
    assert operator.memory_limit < 2 * operator.example_bytes * operator.shape[0]
    twins.assert_is(operator, 0.5 * twins.dense(twins.hessian, "mlp"), "float64")


def test_derivative_of_a_product_is_the_third_derivative(x64):
    problem = twins.problem("convnet", "float64")
    theta, _ = twins.flat(problem)
    v, u = problem.vectors(2)
    unravel = jax.flatten_util.ravel_pytree(problem.params)[1]

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


@pytest.mark.parametrize("product", [curv.hvp, curv.finite_difference_hvp])
def test_flat_vectors_give_flat_products(product, x64):
    params = {"a": jnp.arange(3.0), "b": jnp.asarray(2.0)}

    def fun(p):
        return jnp.sum(jnp.sin(p["a"])) * p["b"] ** 2

    flat = jnp.linspace(-1, 1, 4)
    tree_form = product(fun, params, {"a": flat[:3], "b": flat[3]})
    twins.assert_close(product(fun, params, flat), jnp.append(tree_form["a"], tree_form["b"]))
