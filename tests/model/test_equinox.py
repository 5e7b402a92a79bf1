"""Modules of equinox give a function of batches and the parameters alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import X, Y, is_fitted, is_pure_and_frozen

import laplace_kit as lk
from laplace_kit.model import (
    from_equinox,
    from_linen,
)


def test_equinox_single_examples_become_batches():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 2)
    module = eqx.nn.Sequential(
        [
            eqx.nn.Linear(3, 4, key=keys[0]),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Dropout(0.5),
            eqx.nn.Linear(4, 2, key=keys[1]),
        ]
    )
    model_fn, params = from_equinox(module)
    assert not module.layers[2].inference  # the module itself stays in training mode
    expected = jax.vmap(eqx.nn.inference_mode(module))(X)
    is_pure_and_frozen(model_fn, params, expected)
    is_fitted(model_fn, params)
    assert jax.tree.structure(from_equinox(module)[0]) == jax.tree.structure(model_fn)


def stateful_equinox():
    """Return a module with BatchNorm after some batches of training, and its state."""
    eqx = pytest.importorskip("equinox")

    class Stateful(eqx.Module):
        first: eqx.nn.Linear
        norm: eqx.nn.BatchNorm
        last: eqx.nn.Linear

        def __init__(self, key):
            self.first, self.last = eqx.nn.Linear(3, 4, key=key), eqx.nn.Linear(4, 2, key=key)
            self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="ema")

        def __call__(self, x, state):
            x, state = self.norm(jnp.tanh(self.first(x)), state)
            return self.last(x), state

    module, state = eqx.nn.make_with_state(Stateful)(jax.random.key(0))
    train = jax.vmap(module, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    for shift in (0.0, 0.5):
        _, state = train(jnp.asarray(X) + shift, state)
    return module, state


def test_equinox_stateful_module_in_inference_mode():
    module, state = stateful_equinox()
    mean, variance = (np.asarray(a, np.float64) for a in state.get(module.norm.ema_state_index))
    hidden = np.tanh(X @ np.asarray(module.first.weight).T + module.first.bias)
    hidden = (hidden - mean) / np.sqrt(variance + module.norm.eps)
    hidden = hidden * module.norm.weight + module.norm.bias
    expected = hidden @ np.asarray(module.last.weight).T + module.last.bias
    model_fn, params = from_equinox(module, state)
    is_pure_and_frozen(model_fn, params, expected)
    assert len(jax.tree.leaves(params)) == 6  # and no statistics
    is_fitted(model_fn, params)
    assert jax.tree.structure(from_equinox(module, state)[0]) == jax.tree.structure(model_fn)


def test_equinox_stateful_module_is_saved_and_loaded(tmp_path):
    module, state = stateful_equinox()
    model_fn, params = from_equinox(module, state)
    la = lk.fit(model_fn, params, (X, Y), likelihood="categorical", structure="diagonal")
    la.save(tmp_path / "la.npz")
    for like in (params, module):
        loaded = lk.load(tmp_path / "la.npz", model_fn, params=like)
        assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
        np.testing.assert_array_equal(loaded.predict(X).f_cov, la.predict(X).f_cov)


def test_equinox_state_that_is_missing_or_in_the_wrong_place():
    eqx = pytest.importorskip("equinox")
    module, state = stateful_equinox()
    with pytest.raises(TypeError, match=r"Found no state for the module Stateful, expected the eq"):
        from_equinox(module)
    with pytest.raises(TypeError, match=r"Found tuple, .* from_equinox\(model, state\)"):
        from_equinox((module, state))
    with pytest.raises(TypeError, match="Found dict for the module Stateful"):
        from_equinox(module, {})
    with pytest.raises(TypeError, match=r"Found Dense, expected an equinox\.Module"):
        from_equinox(nn.Dense(2))
    linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"Found Linear, expected a flax\.linen\.Module"):
        from_linen(linear, {"params": {}})
