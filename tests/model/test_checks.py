"""What is passed for a model: modules name their adapter, functions their arguments."""

import collections
import functools
import subprocess
import sys

import exact
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import X, Y
from flax import nnx

import laplace_kit as lk
from laplace_kit.model import (
    batched,
)
from laplace_kit.model.checks import (
    check_model,
    check_one_output,
)


class Keras:
    """A stand-in for a layer of Keras, which is told by the class that it inherits from."""

    def __call__(self, x):
        return x


class Haiku(Keras):
    """A stand-in for a transform of Haiku."""


Keras.__module__, Keras.__name__ = "keras.src.layers.layer", "Layer"
Haiku.__module__, Haiku.__name__ = "haiku._src.transform", "TransformedWithState"


def modules() -> dict:
    eqx = pytest.importorskip("equinox")
    return {
        "from_nnx": nnx.Linear(3, 2, rngs=nnx.Rngs(0)),
        "from_linen": nn.Dense(2),
        "from_equinox": eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)),
        "from_keras": type("Model", (Keras,), {})(),
        "from_haiku": Haiku(),
    }


@pytest.mark.parametrize(
    "adapter", ["from_nnx", "from_linen", "from_equinox", "from_keras", "from_haiku"]
)
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


def test_no_library_is_imported_before_its_adapter_is_called():
    code = "import sys, laplace_kit as lk; lk.model.from_torch; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "torchax", "equinox"} & {*done.stdout.split()}


def test_torch_modules_passed_for_a_function():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"model_fn, params = lk\.model\.from_torch"):
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
