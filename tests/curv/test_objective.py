"""The summed loss as a function of the free parameters only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

from laplace_kit.curv.ggn import GGNOperator
from laplace_kit.curv.kronecker import kronecker_factors
from laplace_kit.curv.objective import (
    chunk_loss,
    example_losses,
    per_example,
    per_example_factor,
    restrict,
)
from laplace_kit.data import Chunk
from laplace_kit.likelihood import Categorical


def chunk_of(problem: twins.Problem, weight) -> Chunk:
    weight = jnp.asarray(weight, jnp.float32)
    return Chunk(problem.x, problem.y, weight)


@pytest.mark.parametrize("name", ["mlp", "several_axes", "with_integers", "bare"])
def test_loss_and_gradient_are_the_definition(name, x64):
    problem = twins.problem(name, "float64")
    objective, _ = restrict(problem.model_fn, problem.params, problem.likelihood)
    theta, outputs = twins.flat(problem)
    twins.assert_close(objective.outputs(problem.x), outputs(theta))

    chunk = chunk_of(problem, np.ones(problem.num_examples))
    value_and_grad = jax.jit(jax.value_and_grad(chunk_loss, 1))
    loss, gradient = value_and_grad(objective, objective.params, chunk)
    expected, slope = jax.jit(jax.value_and_grad(twins.total_loss(problem)))(theta)
    twins.assert_close(loss, expected)
    twins.assert_close(ravel_pytree(gradient)[0], slope)


def test_weights_choose_examples(x64):
    problem = twins.problem("mlp", "float64")
    objective, _ = restrict(problem.model_fn, problem.params, problem.likelihood)
    losses = example_losses(objective.likelihood, objective.outputs(problem.x), problem.y)
    assert losses.shape == (7,)
    weight = np.asarray([1, 0, 0, 1, 1, 0, 0])
    found = chunk_loss(objective, objective.params, chunk_of(problem, weight))
    twins.assert_close(found, losses @ weight)


def test_targets_of_every_batch_must_suit_its_outputs():
    problem = twins.problem("convnet")
    with pytest.raises(ValueError, match=r"Gaussian: found targets of shape \(5,\) for outputs"):
        example_losses(problem.likelihood, problem.y, problem.y[:, 0])


def test_weighing_keeps_shape_and_dtype():
    values = jnp.ones((3, 2, 2), jnp.bfloat16)
    found = per_example(values, jnp.asarray([1.0, 0.0, 1.0]))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found[:, 0, 0], [1, 0, 1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_squares_of_weighed_factors_have_the_weights(dtype, x64):
    weight = np.asarray([0.0, 1.0, 3.0, 0.3], np.float32)
    found = per_example_factor(jnp.full((4, 2), 2, dtype), jnp.asarray(weight))
    assert found.dtype == dtype
    rtol = 4 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found.astype(float)[:, 0] ** 2, 4 * weight.astype(float), rtol=rtol)


def test_a_subset_is_the_part_of_the_gradient(x64):
    problem = twins.problem("mlp", "float64")
    chunk = chunk_of(problem, np.ones(7))

    @jax.jit
    def gradient(objective):
        return jax.grad(chunk_loss, 1)(objective, objective.params, chunk)

    args = problem.model_fn, problem.params, problem.likelihood
    objective, selection = restrict(*args, lambda path: "out" in path)
    whole, part = gradient(restrict(*args)[0]), gradient(objective)
    assert part["hidden"] == [{"bias": None, "kernel": None}]
    twins.assert_close(part["out"]["kernel"], whole["out"]["kernel"])
    restored = selection.insert(objective.params)
    assert jax.tree.structure(restored) == jax.tree.structure(problem.params)


def test_frozen_arrays_are_leaves_and_not_constants():
    rng = np.random.default_rng(0)
    frozen, free = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((37, 41), (41, 2))
    )

    def model(params, x):
        return jnp.tanh(x @ params["frozen"]) @ params["free"]

    params = {"frozen": frozen, "free": free}
    likelihood = twins.problem("convnet").likelihood
    objective, _ = restrict(model, params, likelihood, {"frozen": False, "free": True})
    lowered = jax.jit(lambda objective, x: objective.outputs(x)).lower(objective, jnp.ones((3, 37)))
    assert twins.constants(lowered.as_text()) == []


@jax.jit
def curvature(params, x, y):
    """Return all that is computed of a model's head, from arrays that are given as arguments."""
    objective, _ = restrict(deep, params, Categorical(), lambda path: path == "head")
    ggn = GGNOperator(objective.model_fn, objective.params, (x, y), objective.likelihood)
    gradient = jax.grad(chunk_loss, 1)(objective, objective.params, Chunk(x, y, jnp.ones(len(y))))
    return gradient, ggn.mv(gradient), ggn.diagonal(), kronecker_factors(ggn)


def deep(params, x):
    h = jnp.tanh(params["table"][x].mean(axis=1) @ params["wide"])
    return jnp.tanh(h @ params["narrow"]) @ params["head"]


def test_frozen_parameters_take_no_memory():
    """A trunk of 20 million parameters, 80 MB: there is no gradient, no row, no copy of it."""
    shapes = {"table": (20_000, 500), "wide": (500, 20_000), "narrow": (20_000, 8), "head": (8, 3)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    x, y = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((4, 2), (4,)))
    memory = curvature.lower(params, x, y).compile().memory_analysis()
    assert memory.argument_size_in_bytes > 80e6
    assert memory.temp_size_in_bytes < 4e6
    assert memory.output_size_in_bytes < 1e4


# --- inputs ---------------------------------------------------------------------------------------


def outputs_of(objective, x):
    return objective.planned(x).plan.outputs(x)


SINGLE = r"inputs of shape \({}\), of a single example, expected a leading axis.*pass x\[None\]"


def objective_of(model_fn, *params):
    return restrict(model_fn, [jnp.ones(shape) for shape in params], Categorical())[0]


@pytest.mark.parametrize("num_outputs", [1, 2, 3])
def test_a_single_example_is_told_from_a_batch_of_numbers(num_outputs):
    objective = objective_of(lambda params, x: jnp.tanh(x @ params[0]), (3, num_outputs))
    with pytest.raises(ValueError, match=SINGLE.format("3,")):
        outputs_of(objective, np.ones(3, np.float32))
    assert outputs_of(objective, np.ones((1, 3), np.float32)).shape == (1, num_outputs)


def test_a_single_example_that_the_model_refuses():
    objective = objective_of(lambda params, x: jnp.einsum("nhwc,co->no", x, params[0]), (2, 3))
    with pytest.raises(ValueError, match=SINGLE.format("4, 5, 2")):
        outputs_of(objective, np.ones((4, 5, 2), np.float32))
    with pytest.raises(ValueError, match=r"examples of shape \(5, 3\).*the model refuses"):
        outputs_of(objective, np.ones((4, 5, 3), np.float32))  # where x[None] is no remedy


def test_numbers_are_inputs_of_their_own():
    lookups = objective_of(lambda params, x: params[0][x], (7, 3))
    assert outputs_of(lookups, np.arange(5)).shape == (5, 3)
    mean = objective_of(lambda params, x: jnp.mean(x) * params[0], (1,))
    with pytest.raises(ValueError, match=r"outputs of shape \(1,\) for 2 examples.*model\.batched"):
        outputs_of(mean, np.ones((5, 2), np.float32))
