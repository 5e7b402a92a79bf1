"""Modules of `flax.linen` give a pure function and the parameters alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import X, is_fitted, is_pure_and_frozen

from laplace_kit.model import (
    from_linen,
)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.BatchNorm(use_running_average=not train)(jnp.tanh(nn.Dense(4)(x)))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class LinenDeterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        return nn.Dense(2)(nn.Dropout(0.5)(jnp.tanh(nn.Dense(4)(x)), deterministic=deterministic))


def initialised(module, **mode) -> dict:
    variables = module.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X, **mode)
    if "batch_stats" in variables:
        moved = jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"])
        variables = {**variables, "batch_stats": moved}
    return variables


def test_linen_in_evaluation_mode():
    variables = initialised(Linen())
    model_fn, params = from_linen(Linen(), variables)
    assert params is variables["params"]
    is_pure_and_frozen(model_fn, params, Linen().apply(variables, X, train=False))
    is_fitted(model_fn, params)


def test_linen_with_another_name_for_the_mode():
    module = LinenDeterministic()
    variables = initialised(module, deterministic=True)
    expected = module.apply(variables, X, deterministic=True)
    model_fn, params = from_linen(module, variables)
    np.testing.assert_allclose(model_fn(params, X), expected, rtol=1e-5, atol=1e-6)
    model_fn, params = from_linen(module, variables, arguments={"deterministic": True})
    np.testing.assert_allclose(model_fn(params, X), expected, rtol=1e-5, atol=1e-6)


def test_linen_functions_of_equal_modules_are_equal():
    variables = initialised(Linen())
    first, second = (from_linen(Linen(), variables)[0] for _ in range(2))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    other = from_linen(Linen(), variables, arguments={"train": True})[0]
    assert jax.tree.structure(first) != jax.tree.structure(other)


def test_linen_without_parameters():
    with pytest.raises(ValueError, match=r"collections \['kernel'\], expected one named 'params'"):
        from_linen(nn.Dense(2), {"kernel": jnp.ones(2)})
