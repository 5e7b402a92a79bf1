"""Adapters give a pure function and the parameters alone, and leave the module as it was."""

import collections
import functools

import exact
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from flax import nnx
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit.model import (
    batched,
    check_model,
    check_one_output,
    from_equinox,
    from_linen,
    from_nnx,
)

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Y = np.arange(6) % 2


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


def is_pure_and_frozen(model_fn, params, expected):
    """Check outputs in evaluation mode, twice, and that no array is a constant of the program."""
    call = jax.jit(lambda model_fn, params, x: model_fn(params, x))
    for _ in range(2):
        np.testing.assert_allclose(call(model_fn, params, X), expected, rtol=1e-5, atol=1e-6)
    assert twins.constants(call.lower(model_fn, params, X).as_text()) == []


def is_fitted(model_fn, params):
    """Check a posterior of all parameters against the dense Gauss-Newton matrix."""
    la = lk.fit(model_fn, params, (X, Y), likelihood="categorical", structure="full")
    theta, unravel = ravel_pytree(params)
    outputs = jax.jit(lambda model_fn, theta: model_fn(unravel(theta), X))
    jac = np.asarray(jax.jit(jax.jacobian(outputs, 1))(model_fn, theta), np.float64)
    p = np.exp(np.asarray(outputs(model_fn, theta), np.float64))
    p /= p.sum(axis=1, keepdims=True)
    inner = np.eye(2) * p[:, :, None] - p[:, :, None] * p[:, None, :]
    ggn = np.einsum("ncp,ncd,ndq->pq", jac, inner, jac)
    twins.assert_close(la.structure.matrix, ggn, dtype="float32")
    assert la.predict(X).probs.shape == (6, 2)
    return la


# --- flax.nnx -------------------------------------------------------------------------------------


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


def test_nnx_refuses_other_modules():
    with pytest.raises(
        TypeError, match=r"Found Dense, expected a flax\.nnx\.Module; for flax\.linen"
    ):
        from_nnx(nn.Dense(2))


# --- flax.linen -----------------------------------------------------------------------------------


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


# --- equinox --------------------------------------------------------------------------------------


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


# --- what is passed for a model -------------------------------------------------------------------


class Keras:
    """A stand-in for a layer of Keras, which is told by the class that it inherits from."""

    def __call__(self, x):
        return x


Keras.__module__, Keras.__name__ = "keras.src.layers.layer", "Layer"


def modules() -> dict:
    eqx = pytest.importorskip("equinox")
    return {
        "from_nnx": nnx.Linear(3, 2, rngs=nnx.Rngs(0)),
        "from_linen": nn.Dense(2),
        "from_equinox": eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)),
        "stateless_call": type("Model", (Keras,), {})(),
    }


@pytest.mark.parametrize("adapter", ["from_nnx", "from_linen", "from_equinox", "stateless_call"])
def test_modules_passed_for_a_function_name_their_adapter(adapter):
    module = modules()[adapter]
    name = type(module).__name__
    for call in (
        lambda: check_model(module),
        lambda: lk.fit(module, {"w": jnp.ones(2)}, (X, Y), likelihood="categorical"),
        lambda: lk.curv.GGNOperator(module, {"w": jnp.ones(2)}, (X, Y), "categorical"),
    ):
        with pytest.raises(TypeError, match=rf"model of type {name}, expected a f.*{adapter}"):
            call()


def test_torch_modules_passed_for_a_function():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="a torch module has to be rewritten"):
        check_model(torch.nn.Linear(3, 2))


def test_functions_that_libraries_wrap_are_functions():
    eqx = pytest.importorskip("equinox")

    def fn(params, x, *, train=False):
        return x @ params

    module = nn.Dense(2)
    for model_fn in (fn, jax.jit(fn), eqx.filter_jit(fn), module.apply, batched(fn), np.matmul,
                     functools.partial(fn, train=True), jax.tree_util.Partial(fn)):  # fmt: skip
        check_model(model_fn)


@pytest.mark.parametrize(
    ("model_fn", "words"),
    [
        (lambda x: x, r"arguments \(x\), which cannot be called as model_fn\(params, x\)"),
        (lambda params, x, train: x, r"missing a required argument: 'train'"),
        (lambda params, x, *, key: x, r"close over everything else"),
        (3, "model of type int, expected a function"),
    ],
)
def test_functions_of_other_arguments(model_fn, words):
    with exact.as_users_call(), pytest.raises(TypeError, match=words):
        lk.fit(model_fn, {"w": jnp.ones(2)}, (X, Y), likelihood="categorical")


def test_one_array_is_all_that_a_model_returns():
    check_one_output(jax.ShapeDtypeStruct((3, 2), "float32"))
    pair = collections.namedtuple("Pair", ["logits", "hidden"])(jnp.ones((3, 2)), jnp.ones(3))
    with pytest.raises(ValueError, match=r"lambda params, x: model_fn\(params, x\)\.logits, or"):
        check_one_output(pair)
    with pytest.raises(ValueError, match=r"outputs \(\), expected .* return a single array"):
        check_one_output(jnp.ones(()))


# --- single examples ------------------------------------------------------------------------------


def test_batched():
    def single(params, x):
        assert x["a"].ndim == 1
        return jnp.tanh(x["a"] @ params)

    params = jnp.ones((3, 2))
    found = batched(single)(params, {"a": X})
    np.testing.assert_allclose(found, np.tanh(X @ np.ones((3, 2))), rtol=1e-6)
