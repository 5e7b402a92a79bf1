"""Functions drawn from the posterior: coherent, differentiable, and of the right covariance."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

from laplace_kit.eval.functions import FunctionSamples, sample_functions

KEY = jax.random.key(0)


def drawn(num=3, batch_size=None, **options) -> FunctionSamples:
    la = exact.fitted("full", "float64")
    return sample_functions(la.objective.within(batch_size), la.posterior, KEY, num, **options)


def inputs(num=7) -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).normal(size=(num, 3)))


# --- values ---------------------------------------------------------------------------------------


def test_linearized_values_are_those_of_the_dense_jacobian(x64):
    problem, samples = twins.problem("mlp", "float64"), drawn()
    jac = twins.dense(twins.jacobian, "mlp")
    mean = problem.model_fn(problem.params, problem.x)
    expected = mean + np.einsum("ncp,kp->knc", jac, samples.displacements)
    twins.assert_close(samples(problem.x), expected)


def test_sampled_values_are_those_of_the_model_at_the_draws(x64):
    problem, samples = twins.problem("mlp", "float64"), drawn(method="sampled")
    theta, outputs = twins.flat(problem)
    expected = jax.vmap(outputs)(theta + samples.displacements)
    twins.assert_close(samples(problem.x), expected)


@pytest.mark.parametrize("method", ["linearized", "sampled"])
def test_are_functions_the_same_at_every_call(method, x64):
    """In batches or alone, all functions or one, compiled or mapped."""
    x, samples = inputs(), drawn(method=method)
    values = np.asarray(samples(x))
    np.testing.assert_array_equal(samples(x), values)
    twins.assert_close(samples(x[2:4]), values[:, 2:4])
    twins.assert_close(drawn(method=method, batch_size=2)(x), values)
    twins.assert_close(jax.jit(lambda f, x: f(x))(samples, x), values)
    assert len(samples) == 3
    for k, sample in enumerate(samples):
        twins.assert_close(sample(x), values[k])
    twins.assert_close(samples[-1](np.asarray(x)), values[2])
    numbers = jnp.arange(3)
    each = jax.vmap(lambda k, x: samples[k](x[None])[0])(numbers, x[:3])
    twins.assert_close(each, values[numbers, numbers])


def test_of_a_linear_model_are_linear_models_of_their_weights(x64):
    """By both methods; the closed form also has the derivative in the inputs."""
    regression = exact.regression()
    la = regression.fit(*exact.priors(8), structure="full")
    x = jnp.asarray(regression.x)
    for method in ("linearized", "sampled"):
        samples = sample_functions(la.objective, la.posterior, KEY, 4, method=method)
        weights = ravel_pytree(la.params)[0] + samples.displacements
        expected = np.asarray(weights) @ regression.design(regression.x).T
        twins.assert_close(samples(x), expected.reshape(4, 11, 2))
        slopes = jax.vmap(jax.jacobian(lambda x_n: samples(x_n[None])[:, 0]))(x)  # noqa: B023
        matrices = np.asarray(weights)[:, 2:].reshape(4, 3, 2)
        bend = 1 - np.tanh(regression.x) ** 2
        twins.assert_close(slopes, np.einsum("ni,kic->nkci", bend, matrices))


@pytest.mark.parametrize("method", ["linearized", "sampled"])
def test_derivatives_in_the_inputs_are_those_of_finite_differences(method, x64):
    samples, x, step = drawn(method=method, batch_size=3), inputs(), 1e-6
    direction = inputs()[::-1]

    @jax.jit
    def along(samples, x):
        return jnp.sum(jax.grad(lambda x: jnp.sum(samples(x) ** 2))(x) * direction)

    ahead, behind = (jnp.sum(samples(x + sign * step * direction) ** 2) for sign in (1, -1))
    np.testing.assert_allclose(along(samples, x), (ahead - behind) / (2 * step), rtol=1e-7)


def test_keep_single_precision():
    la = exact.fitted("diagonal", "float32")
    samples = sample_functions(la.objective, la.posterior, KEY, 2)
    assert samples(inputs()).dtype == jnp.float32


# --- distribution -------------------------------------------------------------------------------


def test_values_at_several_inputs_have_the_joint_covariance(x64):
    la, x, num = exact.fitted("full", "float64"), twins.problem("mlp", "float64").x[:4], 20_000
    samples = sample_functions(la.objective, la.posterior, KEY, num)
    jac = twins.dense(twins.jacobian, "mlp")[:4].reshape(12, 31)
    cov = jac @ exact.covariance("full", np.ones(31)) @ jac.T
    mean = np.asarray(twins.mlp(la.params, x)).ravel()
    values = np.asarray(samples(x)).reshape(num, 12) - mean
    variance = np.diag(cov)
    mean_error = values.mean(axis=0) / np.sqrt(variance / num)
    # Wishart: the covariance of K draws has entries of variance (S_ij^2 + S_ii S_jj) / K.
    standard_error = np.sqrt((cov**2 + np.outer(variance, variance)) / num)
    cov_error = (values.T @ values / num - cov) / standard_error
    assert np.abs(mean_error).max() < 4
    assert np.abs(cov_error).max() < 4.5
    assert np.mean(cov_error**2) == pytest.approx(1, abs=0.6)


def test_thompson_sampling_by_gradient_ascent(x64):
    """Each function is climbed from the best of a coarse grid to the best of a fine one."""
    la = exact.fitted("full", "float64")
    samples = sample_functions(la.objective, la.posterior, KEY, 5)
    line = jnp.asarray([1.0, 0.3, -1.0])

    def height(k, t):
        return samples[k](t * line[None])[0, 1]

    @jax.jit
    def climb(k, t):
        def step(t, _):
            return jnp.clip(t + 0.05 * jax.grad(height, argnums=1)(k, t), -2, 2), None

        return jax.lax.scan(step, t, None, length=500)[0]

    def on_grid(num):
        grid = jnp.linspace(-2, 2, num)
        return grid, samples(grid[:, None] * line)[:, :, 1]

    grid, values = on_grid(9)
    tops = jax.vmap(climb)(jnp.arange(5), grid[jnp.argmax(values, axis=1)])
    heights = np.asarray(jax.vmap(height)(jnp.arange(5), tops))
    assert np.all(heights > values.max(axis=1) - 1e-12)
    np.testing.assert_allclose(heights, on_grid(4001)[1].max(axis=1), atol=1e-4)
    assert np.ptp(tops) > 0.1  # the draws differ in what they think best


# --- use ------------------------------------------------------------------------------------------


def test_new_draws_and_new_inputs_compile_nothing():
    la = exact.fitted("diagonal", "float32")
    x = inputs().astype("float32")
    sample_functions(la.objective, la.posterior, KEY, 2)(x)
    with twins.compilations() as names:
        sample_functions(la.objective, la.posterior, jax.random.key(1), 2)(x + 1)
    assert not [name for name in names if "all" in name or "map" in name]


def test_what_cannot_be_right_is_refused(x64):
    la, samples = exact.fitted("full", "float64"), drawn()
    with pytest.raises(IndexError, match="number 3, expected one from 0 to 2"):
        samples[3]
    with pytest.raises(ValueError, match="num_samples=0, expected a whole number of functions"):
        sample_functions(la.objective, la.posterior, KEY, 0)
    with pytest.raises(ValueError, match=r"num_samples=9 .* 31 .* 2\.18 KiB"):
        sample_functions(la.objective.within(memory=2_000), la.posterior, KEY, 9)
    with (
        exact.as_users_call(),
        pytest.raises(ValueError, match="Did you mean 'linearized'"),
    ):
        sample_functions(la.objective, la.posterior, KEY, 1, method="linearised")
