"""Any loss as a likelihood: equal to the closed forms where there are any."""

import jax
import jax.numpy as jnp
import numpy as np
import output_space
import pytest
import twins

from laplace_kit import curv, tree
from laplace_kit.likelihood import Bernoulli, Categorical, FromLoss, Gaussian, Poisson
from laplace_kit.likelihood.base import check_targets

F = np.asarray([[0.3, -1.2, 0.8], [2.0, 0.1, -0.7]])


@pytest.mark.parametrize(
    ("closed", "y", "loss"),
    [
        (Categorical(), np.asarray([2, 0]), twins.categorical_loss),
        (Bernoulli(), np.asarray([[0, 1, 1], [1, 0, 1]]), twins.bernoulli_loss),
        (Poisson(), np.asarray([[0, 1, 5], [7, 2, 0]]), twins.poisson_loss),
        (Gaussian(twins.NOISE_STD), F[::-1].copy(), twins.gaussian_loss),
    ],
)
def test_equals_its_closed_form(closed, y, loss, x64):
    f, y, ours = jnp.asarray(F), jnp.asarray(y), FromLoss(loss)
    expected = output_space.matrix(closed, "hessian_mv", f, y)
    twins.assert_close(output_space.matrix(ours, "hessian_mv", f, y), expected)
    root = output_space.matrix(ours, "hessian_sqrt_mv", f, y)
    twins.assert_close(root @ root.T, expected, rtol=1e-8)


@pytest.mark.parametrize("logit", [5.0, 9.0, 14.0])
def test_a_confident_prediction(logit):
    f, y = jnp.asarray([logit, 0.3, 0.0, -0.2]), jnp.asarray(0)
    ours = FromLoss(twins.categorical_loss)
    root = output_space.matrix(ours, "hessian_sqrt_mv", f, y)
    expected = output_space.matrix(Categorical(), "hessian_mv", f, y)
    np.testing.assert_allclose(root @ root.T, expected, atol=2e-6)


def test_root_of_a_loss_that_is_not_convex_is_nan(x64):
    saddle = FromLoss(lambda f, y: f[0] ** 2 - 0.1 * f[1] ** 2)
    f, y = jnp.asarray([1.0, 2.0]), jnp.asarray(0.0)
    assert jnp.isnan(output_space.matrix(saddle, "hessian_sqrt_mv", f, y)).all()
    product = output_space.matrix(saddle, "hessian_mv", f, y)
    np.testing.assert_allclose(product, np.diag([2.0, -0.2]))


@jax.custom_vjp
def reverse_only(f, y):
    return twins.categorical_loss(f, y)


reverse_only.defvjp(
    lambda f, y: (reverse_only(f, y), (f, y)),
    lambda kept, g: (g * (jax.nn.softmax(kept[0]) - jax.nn.one_hot(kept[1], 3)), None),
)


def test_a_loss_with_a_rule_for_reverse_mode_alone(x64):
    f, y, ours = jnp.asarray(F), jnp.asarray([2, 0]), FromLoss(reverse_only)
    expected = output_space.matrix(Categorical(), "hessian_mv", f, y)

    for number in range(2):
        hessian = output_space.matrix(ours, "hessian_mv", f[number], y[number])
        root = output_space.matrix(ours, "hessian_sqrt_mv", f[number], y[number])
        part = slice(3 * number, 3 * number + 3)
        twins.assert_close(hessian, expected[part, part])
        twins.assert_close(root @ root.T, expected[part, part], rtol=1e-8)


def test_samples_with_its_sampler():
    likelihood = FromLoss(twins.log_cosh_loss, sampler=lambda key, f: f + 1)
    f = jnp.zeros(2)
    np.testing.assert_array_equal(likelihood.sample(jax.random.key(0), f), 1)
    gradient = likelihood.sampled_gradient(jax.random.key(0), f, f)
    np.testing.assert_allclose(
        gradient, jax.jit(jax.grad(twins.log_cosh_loss))(f, f + 1), rtol=1e-6
    )
    with pytest.raises(TypeError, match=r"no sampler.*curvature='ggn'"):
        FromLoss(twins.log_cosh_loss).sample(jax.random.key(0), f)


def test_targets_of_several_arrays():
    f = jax.ShapeDtypeStruct((5, 2), jnp.float32)
    likelihood = FromLoss(twins.log_cosh_loss)
    check_targets(likelihood, f, {"y": f, "weight": f})
    four = jax.ShapeDtypeStruct((4,), jnp.float32)
    for targets in (four, {"y": f, "weight": four}):
        with pytest.raises(ValueError, match="expected 5 targets"):
            check_targets(likelihood, f, targets)


# --- derivatives of the user's own ----------------------------------------------------------------

DELTA = 0.5


def huber(f, y):
    """A loss with a kink in its first derivative: beyond it, there is no curvature."""
    size = jnp.abs(f - y)
    return jnp.sum(jnp.where(size < DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA)))


def weight(f, y):
    """The curvature of the tightest quadratic above the loss (iteratively reweighted squares)."""
    return 1 / jnp.maximum(jnp.abs(f - y) / DELTA, 1)


def surrogate(f, y, u):
    return weight(f, y) * u


def slope(f, y):
    return jnp.clip(f - y, -DELTA, DELTA)


OWN = FromLoss(huber, gradient=slope, hessian_mv=surrogate)


@pytest.mark.parametrize(
    "own", [OWN, FromLoss(huber, hessian_mv=surrogate)], ids=["both", "hessian_mv"]
)
def test_own_hessian_is_that_of_every_form(own, x64):
    f, y = jnp.asarray(F), jnp.asarray(F[::-1].copy())
    expected = jnp.diag(weight(f, y).ravel())
    loss, gradient, hessian, squared = output_space.forms(own, f, y)
    twins.assert_close(loss, huber(f, y))
    twins.assert_close(gradient, slope(f, y))
    twins.assert_close(hessian, expected)
    twins.assert_close(squared, expected)
    assert (np.diag(output_space.matrix(FromLoss(huber), "hessian_mv", f, y)) == 0).any()


def test_own_gradient_is_differentiated(x64):
    """Behind a callback there is no derivative; that of the own gradient is by autodiff."""

    def hidden(f, y):
        value = jax.ShapeDtypeStruct((), f.dtype)
        return jax.pure_callback(
            lambda f, y: np.sum(np.cosh(f - y)), value, f, y, vmap_method="sequential"
        )

    ours = FromLoss(hidden, gradient=lambda f, y: jnp.sinh(f - y))
    f, y = jnp.asarray(F), jnp.asarray(F[::-1].copy())
    output_space.assert_derivatives(ours, f, y, lambda f, y: jnp.sum(jnp.cosh(f - y)))


def test_own_derivatives_in_curvature_matrices(x64):
    problem = twins.problem("bare", "float64")
    data = (problem.x, 2 * problem.y)
    theta, outputs = twins.flat(problem)
    jac, f = twins.jacobian(problem), outputs(theta)
    gauss_newton = jnp.einsum("ncp,nc,ncq->pq", jac, weight(f, data[1]), jac)
    gradients = jnp.einsum("nc,ncp->np", slope(f, data[1]), jac)
    curved = jnp.einsum("nc,ncpq->pq", slope(f, data[1]), jax.jit(jax.hessian(outputs))(theta))
    expected = {
        curv.GGNOperator: gauss_newton,
        curv.EmpiricalFisherOperator: gradients.T @ gradients,
        curv.HessianOperator: gauss_newton + curved,
    }
    operators = [kind(problem.model_fn, problem.params, data, OWN) for kind in expected]
    found = jax.jit(lambda operators: [operator.to_dense() for operator in operators])(operators)
    for matrix, dense in zip(found, expected.values(), strict=True):
        twins.assert_close(matrix, dense)


def test_own_derivatives_are_part_of_what_compares_equal():
    structures = {
        jax.tree.structure(likelihood)
        for likelihood in (OWN, FromLoss(huber), FromLoss(huber, gradient=slope))
    }
    again = FromLoss(huber, gradient=slope, hessian_mv=surrogate)
    assert len(structures) == 3
    assert jax.tree.structure(again) in structures
    assert tree.replace(OWN, sampler=None).product is surrogate


def test_own_derivatives_that_are_none_are_refused():
    with pytest.raises(TypeError, match=r"found hessian_mv\(f, y\), expected .*\(f, y, u\)"):
        FromLoss(huber, hessian_mv=slope)
    with pytest.raises(TypeError, match=r"found gradient\(f, y, u\), expected .*\(f, y\)"):
        FromLoss(huber, gradient=surrogate)
    f = jnp.ones(3)
    with pytest.raises(ValueError, match=r"gradient of shape \(\) .*outputs \(3,\)"):
        FromLoss(huber, gradient=lambda f, y: jnp.sum(f - y)).output_gradient(f, f)
    with pytest.raises(ValueError, match=r"hessian_mv of shape \(3, 3\)"):
        FromLoss(huber, hessian_mv=lambda f, y, u: jnp.outer(u, u)).hessian_mv(f, f, f)
    with pytest.raises(TypeError, match="derivative in the targets"):
        jax.grad(OWN.negative_log_prob, 1)(f, f)
