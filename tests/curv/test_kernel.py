"""The neural tangent kernel is J D J^T of the dense Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit import curv

PROBLEMS = ("mlp", "convnet", "two_inputs", "several_axes")


def dense_jacobian(problem, x):
    theta, _ = twins.flat(problem)
    other = twins.Problem(problem.model_fn, problem.params, x, None, problem.likelihood, None)
    jac = jax.jit(jax.jacobian(twins.flat(other)[1]))(theta)
    return np.asarray(jac).reshape(len(jac), -1, len(theta))


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("kind", ["scalar", "each"])
def test_is_the_product_of_jacobians(name, kind, x64):
    problem = twins.problem(name, "float64")
    other = jax.tree.map(lambda leaf: twins.array(np.asarray(leaf)[:3] * 0.7 + 0.1), problem.x)
    first, second = dense_jacobian(problem, problem.x), dense_jacobian(problem, other)
    num = first.shape[-1]
    variance = 0.3 if kind == "scalar" else np.exp(np.random.default_rng(0).normal(size=num))
    found = curv.neural_tangent_kernel(
        problem.model_fn, problem.params, problem.x, other, variance=variance, batch_size=2
    )
    twins.assert_close(found, np.einsum("ncp,p,mdp->ncmd", first, variance * np.ones(num), second))


def lookup(params, tokens):
    return jnp.tanh(params["table"][tokens] @ params["kernel"]).reshape(len(tokens), -1)


@pytest.mark.parametrize("variance", [0.5, {"kernel": 2.0, "table": 0.1}])
def test_of_a_table(variance, x64):
    rng = np.random.default_rng(1)
    params = {"kernel": rng.normal(size=(3, 2)), "table": rng.normal(size=(5, 3))}
    params = jax.tree.map(twins.array, params)
    tokens = twins.array(rng.integers(0, 5, (4, 3)))

    def flat_jacobian(tokens):
        jac = jax.jit(jax.jacobian(lookup))(params, tokens)
        return np.concatenate(
            [np.asarray(leaf).reshape(len(tokens), 6, -1) for leaf in jac.values()], 2
        )

    scale = np.repeat([2.0, 0.1], [6, 15]) if isinstance(variance, dict) else np.full(21, 0.5)
    found = curv.neural_tangent_kernel(lookup, params, tokens, tokens[:2], variance=variance)
    jac = flat_jacobian(tokens)
    twins.assert_close(found, np.einsum("ncp,p,mdp->ncmd", jac, scale, jac[:2]))


def test_of_inputs_with_themselves_is_symmetric_and_positive(x64):
    problem = twins.problem("mlp", "float64")
    kernel = curv.neural_tangent_kernel(problem.model_fn, problem.params, problem.x)
    flat = np.asarray(kernel).reshape(21, 21)
    twins.assert_close(flat, flat.T)
    assert np.linalg.eigvalsh(flat).min() > -1e-10 * np.abs(flat).max()


def test_more_than_the_memory_names_the_parameter():
    problem = twins.problem("mlp", "float32")
    with pytest.raises(ValueError, match=r"rows of one example in 3 direction.*memory limit of"):
        curv.neural_tangent_kernel(problem.model_fn, problem.params, problem.x, memory_limit=100)
