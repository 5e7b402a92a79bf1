"""Subsets of the parameters: the last layer, by name, and the largest by some measure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import NUM, ZOO, gaussian, tokens

from laplace_kit import tree
from laplace_kit.approx.subset import largest_magnitude, largest_variance, last_layer, layers
from laplace_kit.selection import select


def chosen(params, mask):
    """Return the paths of the leaves that a mask chooses."""
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    pairs = zip(tree.paths(params), jax.tree.leaves(mask), strict=True)
    return {path for path, free in pairs if free}


# --- the last layer -----------------------------------------------------------------------------

LAST = {
    "mlp": {"w2"},
    "conv_1d": {"k2"},
    "conv_3d": {"kernel", "bias"},
    "contractions": {"fortran", "out", "whole", "scalar", "vector"},
    "two_inputs": {"head", "out"},
    "nnx_convnet": {"layers/5/kernel", "layers/5/bias"},
    "nnx_residual": {"head/kernel"},
    "nnx_transformer": {"head/kernel", "head/bias"},
    "linen_module": {"DenseGeneral_0/kernel", "DenseGeneral_0/bias"}
    | {"LayerNorm_0/scale", "LayerNorm_0/bias"},
    "equinox_module": {"layers/3/weight", "layers/3/bias"},
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_layer_is_found(name, x64):
    model = ZOO[name]()
    mask = last_layer(model.model_fn, model.params, model.x)
    assert chosen(model.params, mask) == LAST[name]
    free, _ = select(model.params, mask)
    assert set(tree.paths(free)) == LAST[name]


REFUSED = {
    "lookups": ["'columns'", "other"],
    "low_rank_adapters": ["'merged_a'", "other"],
    "stacks": ["'turned'", "in earlier layers too"],
    "unpaired": ["'b/shared'", "used more than once"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_end_that_is_no_layer_is_refused(name, x64):
    model = ZOO[name]()
    with pytest.raises(ValueError, match="expected a last layer") as error:
        last_layer(model.model_fn, model.params, model.x)
    words = [*REFUSED[name], "lambda path: 'head' in path", *tree.paths(model.params)]
    assert all(word in str(error.value) for word in words)


def hidden(params, x):
    return jnp.tanh(x @ params["w"] + params["b"])


def two_heads(params, x):
    h = hidden(params, x)
    mean, log_std = h @ params["mean"] + params["shift"], h @ params["log_std"]
    return jnp.stack([mean[:, 0], jax.nn.softplus(log_std)[:, 0]], axis=1)


def scaled(params, x):
    return jax.nn.sigmoid(3.0 * (hidden(params, x) @ params["mean"] + params["shift"])) / 2


def scaled_by_a_parameter(params, x):
    return (2 * hidden(params, x) @ params["mean"] + params["shift"]) * params["scale"]


def bypassed(params, x):
    h = hidden(params, x)
    return h + h @ params["square"]


def bypassing(params, x):
    return hidden(params, x) @ params["mean"] + x @ params["skip"]


def position_wise(params, x):
    h = params["table"][x]
    weights = jax.nn.softmax(h @ params["square"] @ h.swapaxes(1, 2))
    return (weights @ h) @ params["mean"] + params["shift"]


def looked_up(params, x):
    return params["table"][x[:, 0]]


@pytest.mark.parametrize(
    ("model_fn", "last", "x"),
    [
        (two_heads, {"mean", "shift", "log_std"}, gaussian(1)(NUM, 3)),
        (scaled, {"mean", "shift"}, gaussian(1)(NUM, 3)),
        (scaled_by_a_parameter, {"mean", "shift", "scale"}, gaussian(1)(NUM, 3)),
        (bypassed, {"square"}, gaussian(1)(NUM, 3)),
        (bypassing, {"mean", "skip"}, gaussian(1)(NUM, 3)),
        (position_wise, {"mean", "shift"}, tokens(5, NUM, 3)),
        (looked_up, {"table"}, tokens(5, NUM, 3)),
    ],
)
def test_heads_activations_and_bypasses(model_fn, last, x):
    normal = gaussian(0)
    params = {"w": normal(3, 4), "b": normal(4), "mean": normal(4, 1), "shift": normal(1)}
    params |= {"log_std": normal(4, 1), "scale": normal(1), "square": normal(4, 4)}
    params |= {"skip": normal(3, 1), "table": normal(5, 4), "step": jnp.asarray(3)}
    assert chosen(params, last_layer(model_fn, params, x)) == last


def test_tied_weights_and_models_without_products_are_refused():
    def tied(params, x):
        return jnp.tanh(params["table"][x] @ params["square"]) @ params["table"].T

    def scale(params, x):
        return x * params["scale"]

    normal = gaussian(0)
    params = {"table": normal(5, 4), "square": normal(4, 4)}
    with pytest.raises(ValueError, match=r"'table' .* \(shared: in earlier layers too\)"):
        last_layer(tied, params, tokens(5, NUM, 3))
    with pytest.raises(ValueError, match="Found no product with a parameter"):
        last_layer(scale, {"scale": normal(3)}, normal(NUM, 3))


# --- by name ------------------------------------------------------------------------------------


def test_adapters_by_name(x64):
    model = ZOO["low_rank_adapters"]()
    free, _ = select(model.params, layers("a", "b"))
    assert tree.paths(free) == ("a", "b")
    free, _ = select({"body": [model.params, model.params]}, layers("body/1"))
    assert tree.paths(free) == tuple(f"body/1/{path}" for path in tree.paths(model.params))
    with pytest.raises(ValueError, match=r"\['lora'\] in no path.*merged_w"):
        select(model.params, layers("a", "lora"))


# --- the largest --------------------------------------------------------------------------------


def test_the_largest_parameters_are_chosen():
    params = {
        "a": jnp.asarray([[1.0, -5.0], [0.5, 2.0]]),
        "n": jnp.arange(9),
        "b": -3 * jnp.ones(1),
    }
    np.testing.assert_array_equal(largest_magnitude(params, 2), [1, 4])
    np.testing.assert_array_equal(largest_magnitude(params, 0.6), [1, 3, 4])
    np.testing.assert_array_equal(largest_magnitude(params, 0.01), [1])
    np.testing.assert_array_equal(largest_magnitude(params, 5), range(5))
    free, _ = select(params, largest_magnitude(params, 3))
    np.testing.assert_array_equal(tree.ravel(free), [-5.0, 2.0, -3.0])


def test_the_most_uncertain_parameters_are_chosen():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(2), "n": jnp.arange(3)}
    variance = np.asarray([0.1, 3.0, 0.2, 2.0, 0.3, 1.0])
    like = {"a": jnp.asarray(variance[:4]).reshape(2, 2), "b": jnp.asarray(variance[4:])}
    for values in (variance, jnp.asarray(variance), like):
        np.testing.assert_array_equal(largest_variance(values, params, 3), [1, 3, 5])


@pytest.mark.parametrize("num", [0, 7, -1, 1.5, 0.0])
def test_numbers_that_make_no_sense_are_refused(num):
    with pytest.raises(
        ValueError, match=rf"num={num}, expected a number of parameters from 1 to 6"
    ):
        largest_magnitude({"a": jnp.ones(6)}, num)


@pytest.mark.parametrize("variance", [np.ones(5), np.full(6, -1.0), np.full(6, np.nan)])
def test_variances_that_are_none_are_refused(variance):
    with pytest.raises(ValueError, match=r"expected \(6,\) finite numbers that are not negative"):
        largest_variance(variance, {"a": jnp.ones(6)}, 2)
