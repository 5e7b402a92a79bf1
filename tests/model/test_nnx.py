"""Modules of `flax.nnx` give a pure function and the parameters alone, and stay as they were."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from adapters import X, Y, is_fitted, is_pure_and_frozen
from flax import nnx
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit.model import (
    from_nnx,
)


class Block(nnx.Module):
    """A network with a list of layers, running statistics and random states."""

    def __init__(self, seed: int):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)
        self.temperature = nnx.Variable(jnp.asarray(2.0))  # an array, but not a parameter

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.head(self.dropout(self.norm(x))) / self.temperature[...]


def trained(seed: int) -> Block:
    """Return a module in training mode whose running statistics have moved."""
    module = Block(seed)
    module.train()
    module(jnp.asarray(X) + 1.0)
    return module


def state_of(module) -> tuple:
    graph, state = nnx.split(module)
    return graph, [
        np.asarray(jax.random.key_data(a) if is_key(a) else a) for a in jax.tree.leaves(state)
    ]


def is_key(array) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def test_nnx_in_evaluation_mode_without_changing_the_module():
    module = trained(0)
    graph, before = state_of(module)
    model_fn, params = from_nnx(module)
    is_pure_and_frozen(model_fn, params, evaluated(module))
    after_graph, after = state_of(module)
    assert graph == after_graph  # still in training mode
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not module.dropout.deterministic
    assert not module.norm.use_running_average


def evaluated(module):
    copy = nnx.clone(module)
    copy.eval()
    return copy(jnp.asarray(X))


def test_nnx_parameters_are_the_parameters_alone():
    module = trained(0)
    _, params = from_nnx(module)
    assert set(params) == {"layers", "norm", "head"}
    assert set(params["norm"]) == {"bias", "scale"}  # and not mean, var
    np.testing.assert_array_equal(params["layers"][1]["kernel"], module.layers[1].kernel[...])


def test_nnx_running_statistics_are_those_of_training():
    module = trained(0)
    module.norm.mean[...] = module.norm.mean[...] + 3.0
    model_fn, params = from_nnx(module)
    np.testing.assert_allclose(model_fn(params, X), evaluated(module), rtol=1e-5, atol=1e-6)
    assert not np.allclose(model_fn(params, X), evaluated(trained(0)), atol=1e-2)


def test_nnx_is_fitted_sampled_and_saved(tmp_path):
    model_fn, params = from_nnx(trained(0))
    la = is_fitted(model_fn, params)
    draws = la.sample(jax.random.key(0), 3)
    assert jax.tree.structure(draws) == jax.tree.structure(params)
    la.save(tmp_path / "la.npz")
    again = lk.load(tmp_path / "la.npz", model_fn)
    np.testing.assert_array_equal(again.predict(X).f_cov, la.predict(X).f_cov)


def test_nnx_module_with_other_values_reuses_every_program():
    def run(seed):
        la = lk.fit(
            *from_nnx(trained(seed)), (X, Y), likelihood="categorical", structure="diagonal"
        )
        return la.predict(X).probs

    first = run(0)
    with twins.compilations() as programs:
        second = run(1)
    assert programs == []
    assert not np.allclose(first, second)


class Recurrent(nnx.Module):
    """A module that scans over a module, which counts its random keys while it is called."""

    def __init__(self, rngs: nnx.Rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs))
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


def lstm(params, x):
    """Return what `Recurrent` does in NumPy: gates in the order input, forget, cell, output."""
    cell = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["rnn"]["cell"])
    carry, h = np.zeros((2, len(x), 4))

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    for x_t in x.swapaxes(0, 1):
        gates = {
            name: x_t @ cell[of_input]["kernel"]
            + h @ cell[f"h{name}"]["kernel"]
            + cell[f"h{name}"]["bias"]
            for name, of_input in (("i", "ii"), ("f", "if_"), ("g", "ig"), ("o", "io"))
        }
        carry = sigmoid(gates["f"]) * carry + sigmoid(gates["i"]) * np.tanh(gates["g"])
        h = sigmoid(gates["o"]) * np.tanh(carry)
    return h @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])


def test_nnx_module_that_changes_itself_while_it_is_called():
    model_fn, params = from_nnx(Recurrent(nnx.Rngs(0)))
    x = np.random.default_rng(3).normal(size=(6, 5, 3)).astype(np.float32)
    expected = lstm(params, x)
    np.testing.assert_allclose(model_fn(params, x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(model_fn)(params, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["full", "kron"])
def test_nnx_recurrent_module_is_fitted_and_predicts(structure):
    model_fn, params = from_nnx(Recurrent(nnx.Rngs(0)))
    x = np.random.default_rng(3).normal(size=(6, 5, 3)).astype(np.float32)
    la = lk.fit(model_fn, params, (x, Y), likelihood="categorical", structure=structure)
    theta, unravel = ravel_pytree(params)
    jac = np.asarray(jax.jit(jax.jacobian(lambda theta: model_fn(unravel(theta), x)))(theta))
    found = la.predict(x)
    twins.assert_close(found.f_mean, lstm(params, x), rtol=1e-4)
    f_cov = np.einsum("ncp,pq,ndq->ncd", jac, la.posterior.covariance(), jac)
    twins.assert_close(found.f_cov, f_cov, rtol=1e-3)


class Adapted(nnx.Module):
    """A network with adapters of both layers, one of them on quantised weights."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.LoRALinear(3, 4, lora_rank=2, rngs=rngs)
        self.kernel = nnx.Param(jax.random.randint(rngs.params(), (4, 2), -127, 127, jnp.int8))
        self.scale = nnx.Variable(jnp.full(2, 0.01))
        self.lora = nnx.LoRA(4, 2, 2, rngs=rngs)
        for lora in (self.first.lora, self.lora):
            lora.lora_b[...] = jax.random.normal(rngs.params(), lora.lora_b.shape)

    def __call__(self, x, *, rngs, train: bool):
        assert rngs is None
        assert not train
        h = jnp.tanh(self.first(x))
        return h @ (self.kernel[...] * self.scale[...]) + self.lora(h)


def test_nnx_parameters_by_the_type_of_their_variables():
    module = Adapted(nnx.Rngs(0))
    model_fn, params = from_nnx(module, nnx.LoRAParam, arguments={"rngs": None, "train": False})
    assert lk.tree.paths(params) == (
        "first/lora/lora_a", "first/lora/lora_b", "lora/lora_a", "lora/lora_b",
    )  # fmt: skip
    is_pure_and_frozen(model_fn, params, module(X, rngs=None, train=False))
    la = is_fitted(model_fn, params)
    every, all_params = from_nnx(module, arguments={"rngs": None, "train": False})
    by_name = lk.fit(every, all_params, (X, Y), likelihood="categorical", structure="full",
                     subset=lk.approx.layers("lora_a", "lora_b"))  # fmt: skip
    assert la.posterior.size == by_name.posterior.size == 3 * 2 + 2 * 4 + 4 * 2 + 2 * 2
    evidences = la.log_marginal_likelihood(), by_name.log_marginal_likelihood()
    twins.assert_close(*evidences, rtol=1e-5)
    twins.assert_close(la.predict(X).f_cov, by_name.predict(X).f_cov, rtol=1e-4)


def test_nnx_integers_of_a_quantised_base_stay_frozen():
    module = Adapted(nnx.Rngs(0))
    model_fn, params = from_nnx(module, arguments={"rngs": None, "train": False})
    la = lk.fit(model_fn, params, (X, Y), likelihood="categorical", structure="diagonal")
    assert params["kernel"].dtype == jnp.int8
    assert la.posterior.size == 3 * 4 + 4 + 3 * 2 + 2 * 4 + 4 * 2 + 2 * 2  # all but the integers
    draws = la.sample(jax.random.key(0), 2)
    np.testing.assert_array_equal(draws["kernel"][0], params["kernel"])


@pytest.mark.parametrize(
    ("wrt", "names"),
    [
        (nnx.Any(nnx.LoRAParam, nnx.PathContains("bias")), ["first/bias", *["lora"] * 4]),
        (lambda path, value: path[0] == "first", ["first/bias", "first/kernel", *["lora"] * 2]),
        (nnx.All(nnx.LoRAParam, nnx.PathContains("first")), ["lora"] * 2),
    ],
)
def test_nnx_parameters_by_any_filter(wrt, names):
    module = Adapted(nnx.Rngs(0))
    model_fn, params = from_nnx(module, wrt=wrt, arguments={"rngs": None, "train": False})
    found = ["lora" if "lora" in path else path for path in lk.tree.paths(params)]
    assert found == names
    np.testing.assert_allclose(model_fn(params, X), module(X, rngs=None, train=False), rtol=1e-5)


class Switched(nnx.Module):
    """A module whose mode is an argument of its call, as in linen."""

    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x, *, train: bool, deterministic: bool = False):
        return self.linear(x) + 100 * train + 10 * (not deterministic)


def test_nnx_arguments_of_the_mode_are_those_of_evaluation():
    module = Switched(nnx.Rngs(0))
    model_fn, params = from_nnx(module)
    np.testing.assert_allclose(model_fn(params, X), module.linear(X), rtol=1e-6)
    model_fn, params = from_nnx(module, arguments={"train": True})
    np.testing.assert_allclose(model_fn(params, X), module.linear(X) + 110, rtol=1e-6)
    assert model_fn != from_nnx(module)[0]


def test_nnx_refuses_a_filter_that_selects_nothing():
    words = r"no variable in the Recurrent that wrt=LoRAParam selects, .*types \['Param'.*"
    with pytest.raises(ValueError, match=words):
        from_nnx(Recurrent(nnx.Rngs(0)), nnx.LoRAParam)


def test_nnx_refuses_other_modules():
    with pytest.raises(
        TypeError, match=r"Found Dense, expected a flax\.nnx\.Module; for flax\.linen"
    ):
        from_nnx(nn.Dense(2))
