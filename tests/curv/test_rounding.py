"""The rounding of products: by the coarsest numbers on the way from parameters to outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laplace_kit import curv
from laplace_kit.curv.rounding import rounding

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(30, 3)), jnp.float32)
Y = jnp.asarray(RNG.integers(0, 3, 30))


def network(params, x):
    x = x.astype(params["w"].dtype)
    return jnp.tanh(x @ params["w"]) @ params["v"]


def in_between(params, x):
    """In float32 but for a product in the middle, as under mixed precision."""
    half = jnp.tanh(x.astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16))
    return half.astype(jnp.float32) @ params["v"]


def params_in(dtype):
    shapes = {"w": (3, 4), "v": (4, 3)}
    return {name: jnp.asarray(RNG.normal(size=shape), dtype) for name, shape in shapes.items()}


def operator_of(model_fn, dtype, x=X):
    return curv.GGNOperator(model_fn, params_in(dtype), (x, Y), "categorical")


@pytest.mark.parametrize(
    ("model_fn", "dtype", "coarsest"),
    [
        (network, "float32", "float32"),
        (network, "bfloat16", "bfloat16"),
        (network, "float16", "float16"),
        (in_between, "float32", "bfloat16"),
    ],
)
def test_it_is_the_epsilon_of_the_coarsest_values(model_fn, dtype, coarsest):
    expected = float(jnp.finfo(coarsest).eps)
    operator = operator_of(model_fn, dtype)
    composed = curv.linearized(operator) * 2.0 + 1.0
    assert rounding(operator) == rounding(composed) == expected
    over_batches = curv.GGNOperator(model_fn, params_in(dtype), [(X, Y)], "categorical")
    assert rounding(over_batches) == expected


def test_what_does_not_depend_on_parameters_does_not_count():
    assert rounding(operator_of(network, "float32", X.astype(jnp.float16))) < 1e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_bounds_the_errors_of_products(dtype):
    operator = operator_of(network, dtype)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), operator.params)
    matrix = curv.GGNOperator(network, params, (X, Y), "categorical").to_dense()
    units = jnp.eye(len(matrix), dtype=dtype)
    errors = np.linalg.norm(np.asarray(operator.matmat(units), np.float32) - matrix, axis=1)
    norm = np.linalg.norm(matrix, 2)
    assert 0.01 * rounding(operator) < errors.max() / norm < rounding(operator)
