"""One pass at the mode: exact sums, and refusal of everything that is not finite or not valid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit.curv.mode import examine_mode
from laplace_kit.curv.objective import restrict
from laplace_kit.data import as_data
from laplace_kit.likelihood import Bernoulli, Categorical, Gaussian, Poisson


def examine(problem, data, **changes):
    objective, _ = restrict(problem.model_fn, problem.params, problem.likelihood)
    options = {"batch_size": None, "memory_limit": None} | changes
    return examine_mode(objective, as_data(data), **options)


def sums(problem) -> tuple:
    theta, _ = twins.flat(problem)
    loss, gradient = jax.jit(jax.value_and_grad(twins.total_loss(problem)))(theta)
    return -loss, gradient


@pytest.mark.parametrize("name", twins.NAMES)
def test_log_likelihood_gradient_and_count(name, x64):
    problem = twins.problem(name, "float64")
    mode = examine(problem, (problem.x, problem.y))
    log_likelihood, gradient = sums(problem)
    twins.assert_close(mode.log_likelihood, log_likelihood)
    twins.assert_close(mode.gradient, gradient)
    assert mode.num_data == problem.num_examples


@pytest.mark.parametrize("road", ["chunks", "stream"])
def test_chunks_that_do_not_divide_the_data_count_each_example_once(road, x64):
    problem = twins.problem("mlp", "float64")
    data = (problem.x, problem.y)
    if road == "stream":
        data = twins.batches(*data, 3, 3, 1)
    mode = examine(problem, data, batch_size=3 if road == "chunks" else None)
    log_likelihood, gradient = sums(problem)
    twins.assert_close(mode.log_likelihood, log_likelihood)
    twins.assert_close(mode.gradient, gradient)
    assert mode.num_data == 7


def test_sums_of_half_precision_are_kept_in_single():
    problem = twins.problem("mlp", "float32")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), problem.params)
    objective, _ = restrict(problem.model_fn, half, problem.likelihood)
    data = as_data((problem.x.astype(jnp.bfloat16), problem.y))
    mode = examine_mode(objective, data, batch_size=2, memory_limit=None)
    assert mode.log_likelihood.dtype == mode.gradient.dtype == "float32"
    np.testing.assert_allclose(mode.log_likelihood, sums(problem)[0], rtol=2e-2)


# --- what is refused ------------------------------------------------------------------------------

N = 7


def linear(params, x):
    return x @ params["weight"]


def examine_linear(likelihood, x, y, weight=None, batches=(), batch_size=None):
    weight = jnp.ones((2, 3)) if weight is None else weight
    objective, _ = restrict(linear, {"weight": weight}, likelihood)
    data = as_data(twins.batches(x, y, *batches) if batches else (x, y))
    return examine_mode(objective, data, batch_size=batch_size, memory_limit=None)


X = np.linspace(-1, 1, 2 * N, dtype=np.float32).reshape(N, 2)
LABELS = np.arange(N) % 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inputs_that_are_not_finite(bad):
    x = X.copy()
    x[4, 1] = bad
    with pytest.raises(ValueError, match="inputs that are not finite; expected finite") as error:
        examine_linear(Categorical(), x, LABELS)
    assert "first at example 4 (1 in" in str(error.value)
    assert "clean or drop" in str(error.value)


def test_the_example_is_named_whatever_the_chunks():
    x = X.copy()
    x[5:] = np.nan
    with pytest.raises(ValueError, match=r"inputs that are not finite.*first at example 5"):
        examine_linear(Categorical(), x, LABELS, batch_size=2)


def test_targets_that_are_not_finite():
    y = np.zeros((N, 3), np.float32)
    y[2, 0] = np.nan
    with pytest.raises(ValueError, match=r"targets that are not finite.*first at example 2"):
        examine_linear(Gaussian(), X, y)


def test_outputs_that_are_not_finite():
    with pytest.raises(ValueError, match=r"model outputs that are not finite.*first at example 0"):
        examine_linear(Gaussian(), X, np.zeros((N, 3), np.float32), jnp.full((2, 3), 3e38))


@pytest.mark.parametrize(
    ("likelihood", "y", "example", "support"),
    [
        (
            Categorical(),
            np.where(np.arange(N) == 3, 3, LABELS),
            3,
            "integer labels from 0 to C - 1",
        ),
        (
            Categorical(),
            np.where(np.arange(N) == 5, -1, LABELS),
            5,
            "integer labels from 0 to C - 1",
        ),
        (Categorical(), np.full((N, 3), 0.5, np.float32), 0, "probabilities that sum to one"),
        (Bernoulli(), np.eye(N, 3, -1, np.float32) * 2, 1, "0 or 1"),
        (Poisson(), np.eye(N, 3, -2, np.float32) / 2, 2, "counts 0, 1, 2"),
        (Poisson(), -np.eye(N, 3, -2, np.float32), 2, "counts 0, 1, 2"),
    ],
)
def test_targets_out_of_range(likelihood, y, example, support):
    with pytest.raises(ValueError, match="targets out of range; expected") as error:
        examine_linear(likelihood, X, y)
    assert support in str(error.value)
    assert f"first at example {example} " in str(error.value)


def test_over_a_stream_the_batch_is_named_too():
    y = np.where(np.arange(N) == 5, 9, LABELS)
    with pytest.raises(ValueError, match=r"targets out of range.*first at example 2 of batch 1"):
        examine_linear(Categorical(), X, y, batches=(3, 3, 1))


def test_parameters_that_are_not_finite():
    weight = jnp.ones((2, 3)).at[0, :2].set(jnp.nan)
    with pytest.raises(
        ValueError, match="Found 2 values that are not finite in the parameters"
    ) as e:
        examine_linear(Categorical(), X, LABELS, weight)
    assert "at 'weight', expected finite numbers; did training diverge?" in str(e.value)


def test_padding_is_never_reported():
    """The last chunk repeats examples; a model that fails at zero must not see zeros."""

    def reciprocal(params, x):
        return params / x

    objective, _ = restrict(reciprocal, jnp.ones(3), Gaussian())
    x, y = np.ones((N, 3), np.float32), np.ones((N, 3), np.float32)
    mode = examine_mode(
        objective, as_data(twins.batches(x, y, 4, 3)), batch_size=None, memory_limit=None
    )
    assert mode.num_data == N
    np.testing.assert_array_equal(mode.gradient, 0)
