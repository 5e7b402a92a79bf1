"""Differences of gradients against exact Hessian products, and their error against its estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

from laplace_kit.curv.finite_difference import (
    FiniteDifferenceHessianOperator,
    finite_difference_hvp,
    finite_difference_hvp_with_error,
)
from laplace_kit.curv.hessian import hvp
from laplace_kit.curv.linearization import linearized

difference = jax.jit(finite_difference_hvp, static_argnums=0)
with_error = jax.jit(finite_difference_hvp_with_error, static_argnums=0)


def curved(params):
    """A function with derivatives of all orders, of a pytree with leaves of several shapes."""
    return jnp.sum(jnp.sin(params["a"]) ** 2 * params["b"][:, None]) + jnp.prod(params["b"])


def point(dtype: str) -> tuple:
    rng = np.random.default_rng(3)
    make = [{"a": rng.normal(size=(2, 3)), "b": rng.normal(size=2)} for _ in range(2)]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tuple(make))


def ravel(tree):
    return ravel_pytree(tree)[0]


def exact(params, v):
    return ravel(jax.jit(lambda params, v: hvp(curved, params, v))(params, v))


# --- smooth functions -----------------------------------------------------------------------------


@pytest.mark.accelerator
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("float64", 1e-11)])
def test_default_steps_find_the_product_and_its_error(dtype, rtol):
    with twins.precision(dtype):
        params, v = point(dtype)
        found, expected = with_error(curved, params, v), exact(params, v)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(found))
        twins.assert_close(ravel(found.product), expected, rtol=rtol)
        error = jnp.linalg.norm(ravel(found.product) - expected)
        assert error / 10 < found.error < rtol * jnp.linalg.norm(expected)
        twins.assert_close(ravel(difference(curved, params, v)), ravel(found.product), rtol=rtol)


def test_product_does_not_depend_on_the_length_of_the_vector(x64):
    params, v = point("float64")
    long = jax.tree.map(lambda leaf: 1e6 * leaf, v)
    twins.assert_close(ravel(difference(curved, params, long)), 1e6 * exact(params, v), rtol=1e-11)
    nothing = with_error(curved, params, jax.tree.map(jnp.zeros_like, v))
    np.testing.assert_array_equal(ravel(nothing), 0)


def test_error_is_of_second_order_in_a_given_step(x64):
    params, v = point("float64")
    expected = exact(params, v)

    def error(step):
        return jnp.linalg.norm(ravel(difference(curved, params, v, step=step)) - expected)

    assert error(2e-3) / error(1e-3) == pytest.approx(4, rel=1e-3)


@pytest.mark.parametrize("step", [None, 10.0])
def test_quadratic_is_exact_for_any_step(step, x64):
    matrix = jnp.asarray([[2.0, -1.0], [-1.0, 3.0]])

    def quadratic(theta):
        return 0.5 * theta @ matrix @ theta

    theta, v = jnp.asarray([0.3, -2.0]), jnp.asarray([1.0, 4.0])
    found = difference(quadratic, theta, v, step=step, damping=0.5)
    twins.assert_close(found, (matrix + 0.5 * jnp.eye(2)) @ v)


def test_flat_vectors_give_flat_products(x64):
    params, v = point("float64")
    tree_form = difference(curved, params, v)
    twins.assert_close(difference(curved, params, ravel(v)), ravel(tree_form), rtol=1e-14)


# --- functions that are not smooth ----------------------------------------------------------------


def test_needs_no_second_derivative(x64):
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
    twins.assert_close(difference(cubic, theta, v), 6 * theta * v)


def test_steps_across_a_kink_or_out_of_the_domain_are_not_taken(x64):
    def fun(theta):
        return 0.5 * theta[0] * jnp.abs(theta[0]) + theta[1] ** 1.5

    found = with_error(fun, jnp.asarray([0.01, 0.04]), jnp.asarray([2.0, 1.0]))
    twins.assert_close(found.product, [2.0, 0.75 * 0.04**-0.5], rtol=1e-8)
    assert found.error < 1e-6


def test_what_cannot_be_known_has_an_infinite_error():
    found = with_error(lambda theta: jnp.sqrt(-theta @ theta), jnp.ones(2), jnp.ones(2))
    assert jnp.isnan(found.product).all()
    assert found.error == jnp.inf


def test_steps_that_round_to_nothing_are_not_taken():
    theta, v = jnp.asarray([256.0, 3.0], jnp.bfloat16), jnp.asarray([1.0, 0.0], jnp.bfloat16)
    found = with_error(lambda theta: 0.5 * jnp.sum(theta * theta), theta, v)
    np.testing.assert_array_equal(found.product.astype(jnp.float32), [1, 0])


# --- trained networks -----------------------------------------------------------------------------


def loss(params, data):
    return jnp.sum((twins.mlp(params, data[0]) - data[1]) ** 2)


@jax.jit
def trained_and_products(params, data):
    """Train, and return estimated products with a random and with the sharpest direction."""

    def step(params, _):
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, jax.grad(loss)(params, data)), None

    params = jax.lax.scan(step, params, None, length=2000)[0]

    def sharpen(v, _):
        v = hvp(lambda p: loss(p, data), params, v)
        return v / jnp.linalg.norm(v), None

    random = jax.random.normal(jax.random.key(0), ravel(params).shape)
    vs = jnp.stack([random, jax.lax.scan(sharpen, random, None, length=50)[0]])

    def estimate(v):
        return finite_difference_hvp_with_error(lambda p: loss(p, data), params, v)

    return params, vs, jax.lax.map(estimate, vs)


def test_four_digits_in_single_precision_on_a_trained_network():
    rng = np.random.default_rng(0)

    def layer(*shape):
        kernel = rng.normal(size=shape) / np.sqrt(shape[0])
        return {"kernel": jnp.asarray(kernel, "float32"), "bias": jnp.zeros(shape[1])}

    params = {"hidden": [layer(1, 20), layer(20, 20)], "out": layer(20, 1)}
    x = jnp.linspace(-2, 2, 100)[:, None]
    data = x, jnp.sin(3 * x)
    params, vs, found = trained_and_products(params, data)
    assert loss(params, data) < 0.1 * loss(jax.tree.map(jnp.zeros_like, params), data)
    with jax.enable_x64(True):
        params, data, vs = jax.tree.map(lambda a: a.astype("float64"), (params, data, vs))
        products = jax.jit(lambda *args: jax.vmap(lambda v: hvp(*args, v))(vs), static_argnums=0)
        expected = products(lambda p: loss(p, data), params)
        errors = jnp.linalg.norm(found.product - expected, axis=1)
        assert (errors < 5e-5 * jnp.linalg.norm(expected, axis=1)).all()
        assert (errors < 3 * found.error).all()
        assert (found.error < 5e-4 * jnp.linalg.norm(expected, axis=1)).all()


# --- the Hessian of a loss over data --------------------------------------------------------------


def test_operator_is_the_hessian_over_chunks_and_streams(x64):
    problem = twins.problem("mlp", "float64")
    model_fn, params, (x, y), _ = problem.args
    matrix = twins.dense(twins.hessian, "mlp")
    operator = FiniteDifferenceHessianOperator(*problem.args, batch_size=4, scale=0.5)
    assert operator.shape == matrix.shape
    dense, diagonal = jax.jit(lambda op: (op.to_dense(), op.diagonal()))(operator)
    twins.assert_close(dense, 0.5 * matrix, rtol=1e-9)
    twins.assert_close(diagonal, 0.5 * np.diag(matrix), rtol=1e-9)
    stream = FiniteDifferenceHessianOperator(
        model_fn, params, twins.batches(x, y, 4, 3), "categorical"
    )
    v = problem.vectors(1)[0]
    twins.assert_close(stream @ v, matrix @ v, rtol=1e-9)
    assert linearized(operator) is operator  # its steps go with the vector


@pytest.mark.parametrize("step", [0, 0.0, -1e-3, np.nan, np.inf])
def test_a_step_of_no_length_is_refused(step):
    params, v = point("float32")
    with pytest.raises(ValueError, match=rf"Found step={step}, expected a positive, finite"):
        finite_difference_hvp(curved, params, v, step=step)


def test_damping_that_is_no_number_is_refused():
    params, v = point("float32")
    with pytest.raises(ValueError, match="Found damping=nan, expected a finite number"):
        finite_difference_hvp(curved, params, v, step=0.1, damping=float("nan"))
