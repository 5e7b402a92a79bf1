"""Costs of rows in memory, and plans that stay within a limit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from architectures import ZOO
from hypothesis import given, settings
from hypothesis import strategies as st

from laplace_kit import curv
from laplace_kit.curv.capture.blocks import FactoredRows
from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.curv.capture.cost import (
    Cost,
    Held,
    check_fits,
    choose_held,
    multiplied_out,
    products_of_pairs,
    projections,
    rows_cost,
)
from laplace_kit.curv.capture.layout import Layout, Slot
from laplace_kit.curv.objective import restrict
from laplace_kit.likelihood import Gaussian
from laplace_kit.memory import Limits
from laplace_kit.tree import replace

KIB = 1024


def objective_of(model_fn, params):
    return restrict(model_fn, params, Gaussian())[0]


def without_activations(objective, x):
    """Return an objective whose plan counts no bytes but those of rows."""
    objective = objective.planned(x)
    return replace(objective, plan=dataclasses.replace(objective.plan, example_bytes=0))


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


def block(positions, groups, width, out, num_directions=1, dtype="float32"):
    shape = (groups, width, out)
    return FactoredRows(
        jnp.zeros((1, positions, groups, width), dtype),
        jnp.zeros((1, num_directions, positions, groups, out), dtype),
        Layout(Slot(0, shape), None, shape),
    )


# --- costs --------------------------------------------------------------------------------------


def test_rows_of_an_example_cost_its_inputs_once_and_its_gradients_for_each_direction():
    params = {"bias": jnp.zeros(7), "kernel": jnp.zeros((5, 7))}
    objective = objective_of(linear, params)
    objective = objective.planned(jnp.zeros((3, 5)))
    held = objective.plan.example_bytes
    cost = rows_cost(objective)
    # Five inputs and the bias's one, seven gradients; twice, four bytes; activations twice.
    assert cost == Cost(2 * held + 2 * 4 * 6, 2 * held + 2 * 4 * 7, "'kernel' (5, 7) (dense)")
    assert rows_cost(objective.planned(jax.ShapeDtypeStruct((9, 5), jnp.float32))) == cost


def test_half_precision_counts_as_single_which_the_sums_are_made_in():
    params = {"bias": jnp.zeros(7), "kernel": jnp.zeros((5, 7))}
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    x = jnp.zeros((3, 5))
    costs = [
        rows_cost(without_activations(objective_of(linear, p), x.astype(p["bias"].dtype)))
        for p in (params, half)
    ]
    assert costs[0] == costs[1]


def test_only_the_work_on_the_most_expensive_layer_counts():
    def model_fn(params, x):
        return jnp.tanh(x @ params["small"]) @ params["large"]

    objective = objective_of(model_fn, {"small": jnp.zeros((3, 2)), "large": jnp.zeros((2, 50))})
    objective = objective.planned(jnp.zeros((4, 3)))

    def work(block):
        _, width, out = block.layout.shape
        return (1000 * width, 10 * out)

    plain, with_work = rows_cost(objective), rows_cost(objective, work)
    assert with_work.once - plain.once == 3000
    assert with_work.direction - plain.direction == 500
    assert plain.leaf == "'large' (2, 50) (dense)"
    assert with_work.leaf == "'small' (3, 2) (dense)"


@pytest.mark.parametrize("name", ["nnx_transformer", "fallbacks", "two_inputs"])
def test_the_estimate_covers_the_rows(name, x64):
    model = ZOO[name]()
    objective = objective_of(model.model_fn, model.params)
    one = jax.tree.map(lambda leaf: leaf[:1], model.x)
    outputs, rows = jax.eval_shape(jacobian, objective, one)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(rows))
    cost = rows_cost(without_activations(objective, model.x))
    assert held <= cost.once + outputs.size * cost.direction <= 3 * held


def test_work_with_one_block():
    single, several = block(1, 1, 5, 7), block(3, 1, 5, 7)
    assert multiplied_out(single) == (0, 0)
    assert multiplied_out(several) == (0, 2 * 4 * 35)
    # Inputs with inputs and gradients with gradients, or for few directions rows multiplied out.
    assert products_of_pairs(single, 10) == (4 * (25 + 49), 0)
    assert products_of_pairs(single, 1) == (4 * 2 * 35, 0)
    assert products_of_pairs(several, 10)[1] == multiplied_out(several)[1]
    assert projections(single, 3) == (4 * 3 * 7, 4 * 3)
    assert projections(several, 3) == (4 * 3 * 7, 4 * 3 + 2 * 4 * 35)


# --- plans --------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    once=st.integers(0, 4000),
    direction=st.integers(1, 4000),
    num_directions=st.integers(1, 3000),
    batch_size=st.none() | st.integers(1, 200),
    limit=st.integers(1, 10**7),
    sum_bytes=st.integers(0, 10**6),
)
def test_plans_stay_within_the_limit(once, direction, num_directions, batch_size, limit, sum_bytes):
    cost = Cost(once, direction, "'w' (3,) (dense)")
    if cost.once + cost.direction > limit:
        with pytest.raises(ValueError, match="'w'"):
            choose_held(cost, num_directions, Limits(batch_size, limit), sum_bytes)
        return
    chosen = choose_held(cost, num_directions, Limits(batch_size, limit), sum_bytes)
    assert 1 <= chosen.num_directions <= num_directions
    assert chosen.batch_size == batch_size if batch_size else chosen.batch_size >= 1
    held = chosen.batch_size * (cost.once + chosen.num_directions * cost.direction)
    # A batch size that does not fit with one direction is the caller's own choice.
    least = (batch_size or 1) * (cost.once + cost.direction)
    assert held <= max(limit, least)


def test_few_outputs_are_held_together_and_the_batch_is_what_fits():
    cost = Cost(100, 10, "w")
    assert choose_held(cost, 10, Limits(None, 2000 * 200)) == Held(2000, 10)
    assert choose_held(cost, 10, Limits(64, 10**6)) == Held(64, 10)


def test_many_outputs_are_split_so_that_several_examples_fit():
    cost = Cost(100, 1000, "w")
    chosen = choose_held(cost, 1000, Limits(None, 16 * 20_100))
    assert chosen == Held(16, 20)
    assert (
        choose_held(cost, 1000, Limits(4, 16 * 20_100)).num_directions == 77
    )  # 13 blocks, of 80 each too many
    # Below eight directions at a time, rather fewer examples.
    assert choose_held(cost, 1000, Limits(None, 4 * 8100)) == Held(4, 8)
    assert choose_held(cost, 1000, Limits(None, 3100)) == Held(1, 3)


def test_chunks_are_no_smaller_than_makes_their_adding_cheap():
    cost, limit = Cost(0, 1000, "w"), 10**9
    small = choose_held(cost, 1, Limits(None, limit)).batch_size
    assert choose_held(cost, 1, Limits(None, limit), 10 * Limits().working_set()).batch_size > small


def test_too_large_names_leaf_estimate_limit_and_remedies():
    cost = Cost(512, KIB, "'embed/table' (1000, 7) (shared)")
    check_fits(cost, 1, 1536)
    with pytest.raises(ValueError, match="Jacobian rows") as caught:
        check_fits(cost, 4, 4 * KIB, "pass batch_size=; ")
    assert str(caught.value) == (
        "Found that the Jacobian rows of one example in 4 direction(s) take about 4.5 KiB, most of "
        "it for the parameter 'embed/table' (1000, 7) (shared), expected at most the memory limit "
        "of 4 KiB; pass batch_size=; raise memory_limit=, or leave this parameter out with subset=."
    )


# --- operators ----------------------------------------------------------------------------------


def test_a_limit_splits_the_work_and_changes_no_number(x64):
    rng = np.random.default_rng(0)
    params = {"bias": rng.normal(size=30), "kernel": rng.normal(size=(3, 30))}
    data = (rng.normal(size=(6, 3)), rng.integers(0, 30, 6))
    cost = rows_cost(objective_of(linear, params).planned(data[0]))
    limit = 2 * (cost.once + 7 * cost.direction)
    assert choose_held(cost, 30, Limits(None, limit)).num_directions < 30
    operators = [
        curv.GGNOperator(linear, params, data, "categorical", memory_limit=m) for m in (limit, None)
    ]
    twins.assert_close(operators[0].diagonal(), operators[1].diagonal())
    twins.assert_close(operators[0].to_dense(), operators[1].to_dense())


def test_a_parameter_that_cannot_be_held_is_named():
    params = {"bias": jnp.zeros(8), "kernel": jnp.zeros((4, 8)), "shared": jnp.zeros((50, 50))}

    def model_fn(params, x):
        return linear(params, x) + jnp.sum(params["shared"] @ params["shared"])

    data = (jnp.zeros((3, 4)), jnp.zeros((3, 8)))
    operator = curv.GGNOperator(model_fn, params, data, "gaussian", memory_limit=10 * KIB)
    with pytest.raises(ValueError, match=r"'shared' \(50, 50\) \(shared\).*limit of 10 KiB"):
        operator.diagonal()


def test_the_budget_is_of_the_device_unless_told():
    assert Limits(memory=5).budget == 5
    assert Limits().budget > 2**20
    assert choose_held(Cost(0, 1, "w"), 1, Limits(7)) == Held(7, 1)
