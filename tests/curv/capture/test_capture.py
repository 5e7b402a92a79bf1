"""Layer capture: outputs, inputs and pulled-back rows of a model, against its own derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from architectures import NUM, ZOO, gaussian
from chains import chains
from hypothesis import given, settings
from jax.flatten_util import ravel_pytree

from laplace_kit.curv.capture.blocks import FactoredRows, LookupRows
from laplace_kit.curv.capture.capture import capture, jacobian, unit_directions
from laplace_kit.curv.objective import restrict
from laplace_kit.likelihood import Gaussian


def objective_of(model_fn, params):
    return restrict(model_fn, params, Gaussian())[0]


def zoo(name):
    model = ZOO[name]()
    return objective_of(model.model_fn, model.params), model.x


@jax.jit
def captured_and_dense(objective, x):
    flat, unravel = ravel_pytree(objective.params)
    jac = jax.jacobian(lambda vector: objective.model_fn(unravel(vector), x))(flat)
    outputs, rows = jacobian(objective, x)
    dense = rows.to_dense()
    return outputs, objective.outputs(x), dense, rows.squared_sum(), jac.reshape(dense.shape)


# --- random architectures -----------------------------------------------------------------------


def assert_captured(chain):
    with jax.enable_x64(True):
        params, x = chain.arrays()
        found = captured_and_dense(objective_of(chain, params), x)
        outputs, expected, dense, squared_sum, jac = map(np.asarray, found)
        twins.assert_close(outputs, expected)
        twins.assert_close(dense, jac)
        twins.assert_close(squared_sum, (jac**2).sum(axis=(0, 1)))


@pytest.mark.slow
@given(chain=chains())
def test_rows_of_random_architectures_are_their_jacobians(chain):
    assert_captured(chain)


@pytest.mark.slow
@settings(max_examples=60)
@given(chain=chains())
def test_rows_of_many_random_architectures_are_their_jacobians(chain):
    assert_captured(chain)


# --- what is captured ---------------------------------------------------------------------------


def test_inputs_are_those_of_every_layer_with_a_one_for_the_bias(x64):
    objective, x = zoo("mlp")
    params = jax.tree.map(np.asarray, objective.params)
    hidden = np.tanh(x @ params["w1"] + params["b1"]) * params["gain"]
    hidden = np.maximum(hidden, 0)
    expected = {"w1": np.append(x, np.ones((NUM, 1)), axis=1), "w2": hidden, "gain": [[1]] * NUM}
    outputs, inputs = jax.jit(lambda o, x: capture(o, x)[:3:2])(objective, x)
    layers = objective.planned(x).plan.layers
    for leaf in layers.leaves:
        if leaf.path in expected:
            found = np.asarray(inputs[leaf.layer]).reshape(NUM, -1)
            np.testing.assert_allclose(found, expected[leaf.path], rtol=1e-12)
    np.testing.assert_allclose(outputs, hidden @ params["w2"].T, rtol=1e-12)


def test_inputs_of_a_lookup_are_indices(x64):
    objective, x = zoo("nnx_transformer")
    inputs = jax.jit(lambda o, x: capture(o, x).inputs)(objective, x)
    layer = {leaf.path: leaf.layer for leaf in objective.planned(x).plan.layers.leaves}
    np.testing.assert_array_equal(inputs[layer["embed/embedding"]], x)


def test_layouts_are_those_of_the_layers(x64):
    objective, x = zoo("nnx_convnet")
    _, rows = jax.eval_shape(jacobian, objective, x)
    assert rows.layouts == tuple(layer.layout for layer in objective.planned(x).plan.layers.layers)


def test_products_stay_in_factors(x64):
    objective, x = zoo("nnx_transformer")
    _, rows = jax.eval_shape(jacobian, objective, x)
    for leaf in objective.planned(x).plan.layers.leaves:
        block = rows.blocks[leaf.layer]
        groups, width, out = block.layout.shape
        if leaf.kind == "embedding":
            assert isinstance(block, LookupRows)
            assert block.gradients.shape == (NUM, 2, 4, out)
        elif leaf.kind == "dense":
            assert isinstance(block, FactoredRows)
            positions = block.inputs.shape[1]
            assert positions == (1 if leaf.path == "head/kernel" else 4)
            assert block.inputs.shape == (NUM, positions, groups, width)
            assert block.gradients.shape == (NUM, 2, positions, groups, out)


def test_every_example_has_directions_of_its_own(x64):
    objective, x = zoo("nnx_convnet")
    directions = gaussian(9)(NUM, 3, 2)
    pulled = jax.jit(lambda o, x, s: capture(o, x).pull(s).to_dense())(objective, x, directions)
    jac = captured_and_dense(objective, x)[-1]
    twins.assert_close(pulled, jnp.einsum("nrc,ncp->nrp", directions, jac))


def test_directions_have_the_shape_of_the_outputs(x64):
    objective, x = zoo("two_inputs")
    directions = gaussian(9)(NUM, 1, 2, 2)
    pulled = jax.jit(lambda o, x, s: capture(o, x).pull(s).to_dense())(objective, x, directions)
    jac = captured_and_dense(objective, x)[-1]
    twins.assert_close(pulled, jnp.einsum("nrc,ncp->nrp", directions.reshape(NUM, 1, 4), jac))


@pytest.mark.parametrize("event", [(), (3,), (2, 3)])
def test_unit_directions_span_the_outputs_and_are_zero_beyond(event):
    num = int(np.prod(event))
    units = unit_directions(jnp.zeros((5, *event)), jnp.arange(num + 2))
    assert units.shape == (num + 2, *event)
    np.testing.assert_array_equal(units.reshape(num + 2, num), np.eye(num + 2, num))
    chosen = unit_directions(jnp.zeros((5, *event)), jnp.asarray([num - 1]))
    np.testing.assert_array_equal(chosen[0], units[num - 1])


def test_a_subset_of_the_parameters_is_captured_and_the_rest_is_frozen(x64):
    model = ZOO["mlp"]()
    objective, _ = restrict(
        model.model_fn, model.params, Gaussian(), lambda path: path in ("w1", "b1")
    )
    twins.assert_close(*captured_and_dense(objective, model.x)[2:5:2])
    leaves = {leaf.path: leaf.layer for leaf in objective.planned(model.x).plan.layers.leaves}
    assert leaves == {"b1": 0, "w1": 0}


def test_entries_of_a_leaf_may_be_free_alone(x64):
    model = ZOO["mlp"]()
    mask = {name: np.zeros(leaf.shape, bool) for name, leaf in model.params.items()}
    mask["w1"][1:, ::2] = True
    objective, _ = restrict(model.model_fn, model.params, Gaussian(), mask)
    dense, jac = captured_and_dense(objective, model.x)[2:5:2]
    assert dense.shape[-1] == 4
    twins.assert_close(dense, jac)


# --- precision, programs and transformations ------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rows_have_the_dtypes_of_the_model(dtype):
    def model_fn(params, x):
        return (x @ params["w"] + params["b"]) * params["temperature"]

    rng = np.random.default_rng(0)
    params = {"b": jnp.ones(2, dtype), "w": jnp.asarray(rng.normal(size=(3, 2)), dtype)}
    params["temperature"] = jnp.asarray(1.5)  # weakly typed: it leaves the others' dtype alone
    x = jnp.asarray(rng.normal(size=(4, 3)), dtype)
    objective = objective_of(model_fn, params)
    outputs, rows = jax.jit(jacobian)(objective, x)
    assert outputs.dtype == objective.planned(x).plan.output.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(rows.blocks[1])} == {jnp.dtype(dtype)}
    expected = np.concatenate([np.asarray(x, np.float64), np.ones((4, 1))], axis=1)
    found = np.einsum("btgi,brtgo->brio", *map(np.float64, jax.tree.leaves(rows.blocks[1])))
    eye = 1.5 * np.eye(2)
    twins.assert_close(found, np.einsum("bi,ro->brio", expected, eye), rtol=1e-2)


def test_no_parameter_input_or_statistic_is_a_constant_of_the_program(x64):
    objective, x = zoo("nnx_convnet")
    program = jax.jit(lambda o, x: jacobian(o, x)[1].squared_sum()).lower(objective, x)
    assert twins.constants(program.as_text()) == []


def test_new_values_of_the_same_shapes_compile_nothing(x64):
    objective, x = zoo("mlp")
    step = jax.jit(lambda objective, x: jacobian(objective, x)[1].squared_sum())
    jax.block_until_ready(step(objective, x))
    objective, x = jax.tree.map(lambda leaf: leaf * 1.5, (objective, x))
    with twins.compilations() as names:
        step(objective, x)
    assert names == []


def closing_over(held):
    """Return a function of a factor that one and the same model closes over in every trace."""

    def model_fn(params, x):
        h = jax.nn.relu(x @ params["w"] * held["factor"])
        return jax.lax.scan(lambda h, _: (h * held["factor"], None), h, None, 2)[0]

    def squared_sum(params, factor, x):
        held["factor"] = factor
        total = jacobian(objective_of(model_fn, params), x)[1].squared_sum()
        held.clear()
        return total

    return squared_sum


def test_a_model_may_close_over_what_is_traced(x64):
    squared_sum = jax.jit(closing_over({}))
    params = {"w": jnp.ones((3, 2))}
    for num, factor in ((2, 2.0), (3, 3.0), (2, 4.0)):
        x = jnp.abs(gaussian(num)(num, 3))
        expected = factor**6 * np.repeat((np.asarray(x) ** 2).sum(axis=0), 2)
        twins.assert_close(squared_sum(params, jnp.asarray(factor), x), expected)


def test_nothing_traced_is_kept():
    squared_sum = closing_over({})
    with jax.checking_leaks():
        jax.eval_shape(squared_sum, {"w": jnp.ones((3, 2))}, jnp.ones(()), jnp.ones((2, 3)))


@pytest.mark.slow
def test_rows_are_differentiable_in_the_parameters(x64):
    """The derivative of a sum of squares of rows, as needed to tune the curvature itself."""
    objective, x = zoo("mlp")

    def squares(gain, dense):
        moved = objective_of(objective.model_fn, {**objective.params, "gain": gain})
        if dense:
            return jnp.sum(captured_and_dense(moved, x)[-1] ** 2)
        return jacobian(moved, x)[1].squared_sum().sum()

    slopes = [
        jax.jit(jax.grad(squares), static_argnums=1)(objective.params["gain"], d) for d in (0, 1)
    ]
    twins.assert_close(*slopes)
