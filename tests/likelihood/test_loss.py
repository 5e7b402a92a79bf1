"""Any loss as a likelihood: equal to the closed forms where there are any."""

import jax
import jax.numpy as jnp
import numpy as np
import output_space
import pytest
import twins

from laplace_kit import likelihood as lk
from laplace_kit.likelihood import Bernoulli, Categorical, FromLoss, Gaussian, Poisson

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


def test_samples_with_its_sampler():
    likelihood = FromLoss(twins.log_cosh_loss, sampler=lambda key, f: f + 1)
    f = jnp.zeros(2)
    np.testing.assert_array_equal(likelihood.sample(jax.random.key(0), f), 1)
    gradient = likelihood.sampled_gradient(jax.random.key(0), f, f)
    np.testing.assert_allclose(gradient, jax.grad(twins.log_cosh_loss)(f, f + 1), rtol=1e-6)
    with pytest.raises(TypeError, match=r"no sampler.*curvature='ggn'"):
        FromLoss(twins.log_cosh_loss).sample(jax.random.key(0), f)


def test_targets_of_several_arrays():
    f = jax.ShapeDtypeStruct((5, 2), jnp.float32)
    likelihood = FromLoss(twins.log_cosh_loss)
    lk.check_targets(likelihood, f, {"y": f, "weight": f})
    four = jax.ShapeDtypeStruct((4,), jnp.float32)
    for targets in (four, {"y": f, "weight": four}):
        with pytest.raises(ValueError, match="expected 5 targets"):
            lk.check_targets(likelihood, f, targets)
