"""How many examples a step may hold, counted in programs whose values are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit import curv
from laplace_kit.chunks import Step, chunk_of_map, chunk_of_sum
from laplace_kit.data import as_data
from laplace_kit.memory import Limits, evenly
from laplace_kit.sums import map_over, sum_over

NUM, WIDTH, OUT = 64, 3, 4
X = np.ones((NUM, WIDTH), np.float32)
WEIGHTS = np.ones((WIDTH, OUT), np.float32)


def activated(weights, x):
    return jnp.tanh(x @ weights)


def total(weights, chunk):
    return activated(weights, chunk.x).sum(axis=0)


def in_turns(weights, x):
    """Of five turns one is held, and the results of all."""
    return jnp.moveaxis(jax.lax.map(lambda w: jnp.tanh(x @ w), jnp.stack([weights] * 5)), 0, 1)


def either(weights, x):
    return jax.lax.cond(weights[0, 0] > 0, jnp.sin, lambda z: jnp.cos(z) * 2, x @ weights)


@pytest.mark.parametrize(
    ("fn", "numbers"),
    [
        (activated, 2 * OUT),
        (jax.jit(activated), 2 * OUT),
        (in_turns, 2 * OUT + 2 * 5 * OUT),  # the results are stacked, and their axes moved
        (either, OUT + 2 * OUT),  # the product, and the branch of two operations
    ],
    ids=["plain", "jitted", "loop", "branches"],
)
def test_an_example_counts_as_its_inputs_and_what_is_held_of_it(fn, numbers):
    assert Step(fn, WEIGHTS, X).example_bytes == 4 * (WIDTH + numbers)


def test_what_is_of_no_example_does_not_count_for_one():
    def with_gram(weights, x):
        return x @ (weights @ weights.T @ weights)

    assert Step(with_gram, WEIGHTS, X).example_bytes == 4 * (WIDTH + OUT)


def test_all_that_fits_is_held_at_once():
    data = as_data((X, np.zeros(NUM, np.float32)))
    assert chunk_of_sum(total, WEIGHTS, data, Limits()) == NUM
    assert chunk_of_map(activated, WEIGHTS, X, Limits()) == NUM
    assert chunk_of_sum(total, WEIGHTS, data, Limits(7)) == 7
    assert chunk_of_map(activated, WEIGHTS, X, Limits(100)) == NUM


def test_a_limit_is_what_is_held():
    unit = 4 * (WIDTH + 2 * OUT)
    assert chunk_of_map(activated, WEIGHTS, X, Limits(memory=10 * unit)) == 10
    assert chunk_of_map(activated, WEIGHTS, X, Limits(memory=1)) == 1
    of_sum = unit + 4 + 4  # the target, and the weight of the example
    data = as_data((X, np.zeros(NUM, np.float32)))
    size = chunk_of_sum(total, WEIGHTS, data, Limits(memory=10 * of_sum))
    assert evenly(NUM, 9) <= size <= evenly(NUM, 10)


def test_a_stream_is_cut_within_its_batches():
    data = as_data(twins.batches(X, np.zeros(NUM, np.float32), 24, 40))
    assert chunk_of_sum(total, WEIGHTS, data, Limits()) == 24


def test_a_step_is_traced_once_for_the_count_and_the_loop():
    shapes = []

    def model_fn(weights, x):
        shapes.append(x.shape)
        return activated(weights, x)

    def outputs(weights, x):
        return model_fn(weights, x)

    size = chunk_of_map(outputs, WEIGHTS, X, Limits())
    map_over(outputs, WEIGHTS, X, size)
    assert shapes == [X.shape]
    data = as_data((X, np.zeros(NUM, np.float32)))
    losses = lambda weights, chunk: model_fn(weights, chunk.x).sum()  # noqa: E731
    sum_over(losses, WEIGHTS, data, chunk_of_sum(losses, WEIGHTS, data, Limits()))
    assert shapes == [X.shape] * 2


def test_a_hessian_product_counts_as_more_than_one_of_the_ggn():
    """As it holds more: tangents of the backward pass, too."""
    problem = twins.problem("mlp")
    held = []
    for kind in (curv.GGNOperator, curv.HessianOperator):
        operator = kind(*problem.args)
        limits = Limits(memory=40_000)
        held.append(chunk_of_sum(_product, (operator, problem.params), operator.data, limits))
    assert held[1] <= held[0]


def _product(operator_and_vector, chunk):
    operator, v = operator_and_vector
    return operator.linear_map(chunk)(v)
