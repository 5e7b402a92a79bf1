"""One pass at the mode: exact sums, and refusal of everything that is not finite or not valid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit.curv.mode import check_values, examine_mode
from laplace_kit.curv.objective import restrict
from laplace_kit.data import as_data, batch_spec
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    FromLoss,
    Gaussian,
    HeteroscedasticGaussian,
    Masked,
    Poisson,
)


def examine(problem, data, **changes):
    objective, _ = restrict(problem.model_fn, problem.params, problem.likelihood)
    data = as_data(data)
    return examine_mode(objective.planned(batch_spec(data)[0]).within(**changes), data)


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


@pytest.mark.parametrize("source", ["chunks", "stream"])
def test_chunks_that_do_not_divide_the_data_count_each_example_once(source, x64):
    problem = twins.problem("mlp", "float64")
    data = (problem.x, problem.y)
    if source == "stream":
        data = twins.batches(*data, 3, 3, 1)
    mode = examine(problem, data, batch_size=3 if source == "chunks" else None)
    log_likelihood, gradient = sums(problem)
    twins.assert_close(mode.log_likelihood, log_likelihood)
    twins.assert_close(mode.gradient, gradient)
    assert mode.num_data == 7


def test_sums_of_half_precision_are_kept_in_single():
    problem = twins.problem("mlp", "float32")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), problem.params)
    objective, _ = restrict(problem.model_fn, half, problem.likelihood)
    data = as_data((problem.x.astype(jnp.bfloat16), problem.y))
    mode = examine_mode(objective.planned(batch_spec(data)[0]).within(2), data)
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
    return examine_mode(objective.planned(batch_spec(data)[0]).within(batch_size), data)


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


STARTS_AT_ONE = "they go from 1 to 3: where labels start at 1, use y - 1"


@pytest.mark.parametrize(
    ("likelihood", "y", "remedy"),
    [
        (Categorical(), LABELS + 1, STARTS_AT_ONE),
        (Categorical(), (LABELS + 1).astype(np.uint8), STARTS_AT_ONE),
        (Categorical(ignore_index=-1), np.where(LABELS == 1, -1, LABELS + 1), STARTS_AT_ONE),
        (Masked(Categorical()), (LABELS + 1, np.ones(N, bool)), STARTS_AT_ONE),
        (Bernoulli(), 2.0 * np.eye(N, 3) - 1, "they are -1 and 1: use (y + 1) / 2"),
        (Bernoulli(), np.eye(N, 3, dtype=int) + 1, "they go from 1 to 2: where labels start at 1"),
        (Categorical(), np.where(LABELS == 0, 7, LABELS), "clean or drop"),
        (Masked(Categorical()), (LABELS + 1, LABELS == 2), "clean or drop"),
        (Poisson(), -np.eye(N, 3), "clean or drop"),
    ],
)
def test_labels_numbered_in_another_way(likelihood, y, remedy):
    outputs = jax.ShapeDtypeStruct((N, 3), jnp.float32)
    whole = as_data((X, y))
    calls = [
        lambda: examine_linear(likelihood, X, y, batch_size=3),
        lambda: check_values(likelihood, outputs, whole.x, whole.y),
    ]
    if not isinstance(y, tuple):
        calls.append(lambda: examine_linear(likelihood, X, y, batches=(N,)))
    for call in calls:
        with pytest.raises(ValueError, match="targets out of range; expected") as error:
            call()
        assert remedy in str(error.value)


def test_the_target_out_of_range_is_named():
    y = np.where(np.arange(N) == 5, 9, LABELS)
    with pytest.raises(ValueError, match=r"first at example 5 with the target 9 \(1 in the same"):
        examine_linear(Categorical(), X, y)


# --- what a mask says is missing ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "y"),
    [
        (Gaussian(0.5), np.ones((N, 3))),
        (Bernoulli(), np.ones((N, 3))),
        (Poisson(), np.ones((N, 3))),
        (Categorical(), np.eye(3)[LABELS]),
    ],
)
def test_missing_targets_may_be_nan(likelihood, y, x64):
    mask = np.arange(N) % 3 != 1
    mask = mask if isinstance(likelihood, Categorical) else np.repeat(mask[:, None], 3, axis=1)
    shape = (*mask.shape, *(1,) * (y.ndim - mask.ndim))
    y = np.where(mask.reshape(shape), y, np.nan)
    weight, x = jnp.asarray(np.linspace(-1, 1, 6).reshape(2, 3)), X.astype(np.float64)
    found = examine_linear(Masked(likelihood), x, (y, mask), weight)
    rows = mask.reshape(N, -1).all(axis=1)
    seen = examine_linear(likelihood, x[rows], y[rows], weight)
    twins.assert_close(found.log_likelihood, seen.log_likelihood)
    twins.assert_close(found.gradient, seen.gradient)
    outputs = jax.ShapeDtypeStruct((N, 3), x.dtype)
    check_values(Masked(likelihood), outputs, *map(jnp.asarray, (x,)), (y, mask))


def test_nan_where_the_mask_is_one_is_refused():
    y, mask = np.full((N, 3), np.nan), np.ones((N, 3))
    with pytest.raises(ValueError, match=r"not finite; expected finite numbers wherever the mask"):
        examine_linear(Masked(Gaussian()), X, (y, mask))
    mask[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"targets out of range.*mask of zeros.*example 2 "):
        examine_linear(Masked(Gaussian()), X, (np.ones((N, 3)), mask))


@pytest.mark.parametrize(
    ("likelihood", "y", "words"),
    [
        (Gaussian(), np.full((N, 3), np.nan), "or (y, mask) for lk.Masked(likelihood) where some"),
        (HeteroscedasticGaussian(), np.full((N, 2), np.nan), "lk.Masked(likelihood)"),
        (FromLoss(lambda f, y: jnp.sum((f - y) ** 2)), np.full((N, 3), np.nan), "finite numbers:"),
    ],
)
def test_missing_targets_name_the_mask_where_there_is_one(likelihood, y, words):
    weight = jnp.ones((2, 4)) if isinstance(likelihood, HeteroscedasticGaussian) else None
    with pytest.raises(ValueError, match="targets that are not finite; expected finite") as error:
        examine_linear(likelihood, X, y, weight)
    assert words in str(error.value)


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
    data = as_data(twins.batches(x, y, 4, 3))
    mode = examine_mode(objective.planned(x), data)
    assert mode.num_data == N
    np.testing.assert_array_equal(mode.gradient, 0)
