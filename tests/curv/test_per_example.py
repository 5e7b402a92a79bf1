"""Gradients of single examples, and their norms, are those of `jax.grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit import curv

PROBLEMS = ("mlp", "convnet", "two_inputs", "several_axes", "with_integers", "bare")


def dense_gradients(problem):
    theta, outputs = twins.flat(problem)
    return jax.jit(jax.jacobian(lambda t: jax.vmap(problem.loss)(outputs(t), problem.y)))(theta)


@pytest.mark.parametrize("name", PROBLEMS)
def test_are_those_of_the_summed_loss_taken_apart(name, x64):
    problem = twins.problem(name, "float64")
    expected = np.asarray(dense_gradients(problem))
    found = curv.per_example_gradients(*problem.args, batch_size=2)
    leaves = [leaf.reshape(len(expected), -1) for leaf in jax.tree.leaves(found)]
    twins.assert_close(np.concatenate(leaves, axis=1), expected)
    norms = curv.per_example_gradient_norms(*problem.args, batch_size=4)
    twins.assert_close(norms, np.linalg.norm(expected, axis=1))


def test_keep_the_structure_of_the_parameters(x64):
    problem = twins.problem("mlp", "float64")
    found = curv.per_example_gradients(*problem.args)
    assert jax.tree.structure(found) == jax.tree.structure(problem.params)
    assert found["out"]["kernel"].shape == (7, 4, 3)


def test_over_a_stream(x64):
    problem = twins.problem("mlp", "float64")
    data = twins.batches(problem.x, problem.y, 3, 3, 1)
    args = problem.model_fn, problem.params, data, problem.likelihood
    expected = jnp.linalg.norm(dense_gradients(problem), axis=1)
    twins.assert_close(curv.per_example_gradient_norms(*args), expected)
    once = problem.model_fn, problem.params, iter(data), problem.likelihood
    twins.assert_close(curv.per_example_gradient_norms(*once), expected)


def sequence(params, tokens):
    hidden = jnp.tanh(params["table"][tokens] @ params["kernel"] + params["bias"])
    return hidden.mean(axis=1) @ params["out"]


@pytest.mark.parametrize("length", [2, 12])
def test_norms_with_several_positions(length, x64):
    """Few positions take pairs of positions, many are multiplied out; tokens come repeatedly."""
    rng = np.random.default_rng(0)
    shapes = {"bias": (3,), "kernel": (2, 3), "out": (3, 2), "table": (4, 2)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    tokens, y = jnp.asarray(rng.integers(0, 4, (5, length))), jnp.asarray(rng.integers(0, 2, 5))

    def loss(params, tokens, label):
        return -jax.nn.log_softmax(sequence(params, tokens[None])[0])[label]

    gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(params, tokens, y)
    squares = [np.sum(np.asarray(leaf).reshape(5, -1) ** 2, 1) for leaf in gradients.values()]
    found = curv.per_example_gradient_norms(sequence, params, (tokens, y), "categorical")
    twins.assert_close(found, np.sqrt(sum(squares)))
