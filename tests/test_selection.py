"""Selections of parameters by path, mask or number, and their inverses."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit import tree
from laplace_kit.selection import Named, select


def params() -> dict:
    return {
        "body": [{"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.asarray([7.0, 8.0, 9.0])}],
        "head": jnp.asarray([[10.0], [11.0], [12.0]]),
        "step": jnp.asarray(3),
    }


def assert_trees_equal(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


ELEMENTS = np.asarray([[True, False, True], [False, False, True]])


@pytest.mark.parametrize(
    ("subset", "free"),
    [
        (None, [7, 8, 9, 0, 1, 2, 3, 4, 5, 10, 11, 12]),
        (lambda path: "head" in path, [10, 11, 12]),
        (lambda path: path == "body/0/bias", [7, 8, 9]),
        ({"body": True, "head": False, "step": False}, [7, 8, 9, 0, 1, 2, 3, 4, 5]),
        ({"body": [{"bias": False, "kernel": True}], "head": True, "step": True},
         [0, 1, 2, 3, 4, 5, 10, 11, 12]),
        ({"body": [{"bias": True, "kernel": ELEMENTS}], "head": False, "step": False},
         [7, 8, 9, 0, 2, 5]),
        (True, [7, 8, 9, 0, 1, 2, 3, 4, 5, 10, 11, 12]),
        (np.asarray([11, 0, 4, 3]), [7, 0, 1, 12]),
        (jnp.arange(3, 9), [0, 1, 2, 3, 4, 5]),
        (np.arange(12) % 5 == 1, [8, 3, 12]),
        (Named(("head", "bias")), [7, 8, 9, 10, 11, 12]),
        (Named(("body/0", )), [7, 8, 9, 0, 1, 2, 3, 4, 5]),
    ],
    ids=["all", "predicate", "path", "group", "leaf", "element", "prefix", "numbers", "whole leaf",
         "flat booleans", "names", "name of two components"],
)  # fmt: skip
def test_selection_and_its_inverse(subset, free):
    found, selection = select(params(), subset)
    np.testing.assert_array_equal(tree.ravel(found), free)
    assert_trees_equal(selection.insert(found), params())
    moved = selection.insert(jax.tree.map(lambda leaf: leaf + 100, found))
    flat, before = (ravel_pytree({**whole, "step": ()})[0] for whole in (moved, params()))
    np.testing.assert_array_equal(flat, np.where(np.isin(before, free), before + 100, before))
    assert_trees_equal(selection.take(params()), found)


# As flax.nnx, qwix and tunix, and peft name the weights of adapters.
ADAPTERS = {
    "layers/0/q/lora_a": ["lora_a", "*lora_a"],
    "layers/0/q_einsum/w_lora_a": ["*lora_a", "*_lora_a", "w_lora_a"],
    "layers/0/mlp/kernel_lora_a": ["*lora_a", "*_lora_a", "kernel_lora_a", "layers/*/mlp"],
    "base/layer/0/query/lora_A/default/weight": ["lora_A", "lora_A.default.weight", "query"],
    "base.layer.0.query.lora_A.default.weight": ["lora_A", "lora_A/default", "base.*.0", "query"],
    "layers/0/q/kernel": [],
    "layers/0/q/lora_alpha": ["layers/*/q/*alpha"],
}


@pytest.mark.parametrize("path", ADAPTERS)
def test_names_of_adapters(path):
    names = {name for found in ADAPTERS.values() for name in found}
    matched = {name for name in names if Named((name,))(path)}
    assert matched >= set(ADAPTERS[path])
    assert not Named(("ora_a", "lora", "lora_a*b", "layers/q", "*/*/*/*/*/*/*/*"))(path)
    unlike = {"lora_A", "lora_a", "w_lora_a", "kernel_lora_a", "*_lora_a", "*lora_a"}
    assert matched & unlike == set(ADAPTERS[path]) & unlike


def test_selection_is_differentiable_and_a_pytree():
    mask = {"body": [{"bias": False, "kernel": ELEMENTS}], "head": True, "step": False}
    free, selection = select(params(), mask)

    @jax.jit
    def loss(selection, free):
        whole = selection.insert(free)
        return jnp.sum(whole["body"][0]["kernel"] ** 2) + jnp.sum(whole["head"] ** 3)

    gradient = jax.grad(loss, 1)(selection, free)
    np.testing.assert_array_equal(gradient["body"][0]["kernel"], 2 * jnp.asarray([0.0, 2.0, 5.0]))
    np.testing.assert_allclose(gradient["head"], 3 * params()["head"] ** 2)
    assert gradient["body"][0]["bias"] is None


def test_selection_works_while_tracing():
    def loss(params):
        free, selection = select(params, lambda path: "body" in path)
        return jnp.sum(tree.ravel(selection.insert(free) | {"step": 0.0}) ** 2)

    gradient = jax.jit(jax.grad(loss, allow_int=True))(params())
    np.testing.assert_array_equal(gradient["head"], 2 * params()["head"])


def test_an_array_of_one_shape_with_every_leaf_is_a_prefix():
    like = {"a": jnp.arange(2.0), "b": jnp.arange(2.0, 4.0)}
    free, _ = select(like, np.asarray([False, True]))
    np.testing.assert_array_equal(tree.ravel(free), [1.0, 3.0])


def test_a_bare_array_is_chosen_by_booleans_of_its_shape_or_by_numbers():
    bare = jnp.arange(6.0).reshape(2, 3)
    for subset in (ELEMENTS, np.asarray([0, 2, 5]), ELEMENTS.ravel()):
        free, selection = select(bare, subset)
        np.testing.assert_array_equal(free, [0.0, 2.0, 5.0])
        np.testing.assert_array_equal(selection.insert(free + 1), bare + ELEMENTS)


def test_a_predicate_on_a_bare_array_is_no_mask():
    bare = jnp.arange(6.0).reshape(2, 3)
    for subset in (lambda path: True, jax.tree_util.Partial(lambda one, path: path == one, "")):
        free, selection = select(bare, subset)
        np.testing.assert_array_equal(free, bare)
        np.testing.assert_array_equal(selection.insert(free + 1), bare + 1)
    with pytest.raises(ValueError, match="no free floating-point parameter"):
        select(bare, lambda path: "head" in path)


def test_a_mask_that_can_be_called_is_no_predicate():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Module:
        weight: Any
        inner: Any

        def __call__(self, x):
            return x

    module = Module(jnp.arange(2.0), Module(jnp.arange(3.0), {"a": jnp.ones(2)}))
    for mask in (Module(False, Module(True, {"a": False})), Module(False, Module(True, False))):
        free, _ = select(module, mask)
        np.testing.assert_array_equal(tree.ravel(free), [0.0, 1.0, 2.0])
    free, _ = select(module, lambda path: path == "inner/weight")
    np.testing.assert_array_equal(tree.ravel(free), [0.0, 1.0, 2.0])


def test_empty_leaves_and_integers_have_no_numbers():
    like = {"a": jnp.zeros((0, 3)), "b": jnp.arange(4), "c": jnp.arange(2.0)}
    free, _ = select(like, np.asarray([1]))
    assert free["a"] is None
    assert free["b"] is None
    np.testing.assert_array_equal(free["c"], [1.0])


def test_none_in_the_parameters_stays():
    free, selection = select({"a": None, "b": jnp.ones(2), "n": jnp.arange(2)})
    assert_trees_equal(selection.insert(free), {"a": None, "b": jnp.ones(2), "n": jnp.arange(2)})


@pytest.mark.parametrize(
    "values",
    [
        {"body": 2.0, "head": 3.0, "step": 9},
        {"body": [{"bias": None, "kernel": 2.0}], "head": 3.0, "step": None},
        {"body": [{"bias": 9.0, "kernel": jnp.full((2, 3), 2.0)}], "head": 3.0, "step": 9},
        np.asarray([2.0, 2.0, 2.0, 3.0, 3.0, 3.0]),
    ],
    ids=["groups of all", "leaves of the free", "all", "flat"],
)
def test_values_for_the_free_parameters(values):
    subset = {"body": [{"bias": False, "kernel": ELEMENTS}], "head": True, "step": False}
    free, selection = select(params(), subset)
    found = selection.broadcast(values, free, name="prior_precision")
    np.testing.assert_array_equal(found, [2.0] * 3 + [3.0] * 3)


@pytest.mark.parametrize(
    ("subset", "words"),
    [
        ("head", ["subset='head'", "lambda path: 'head' in path", "body/0/bias"]),
        ({"body": True}, ["prefix", "body/0/kernel"]),
        ({"body": True, "head": 1.0, "step": False}, ["'head'", "float64", "expected booleans"]),
        ({"body": True, "head": np.ones(3, bool), "step": False}, ["'head'", "(3,)", "(3, 1)"]),
        (lambda path: "tail" in path, ["no free", "body/0/bias", "`subset`"]),
        (Named(("head", "tail", "ead")), ["['tail', 'ead'] in no path", "body/0/bias"]),
        (np.asarray([0, 12]), ["Found 12", "0 to 11", "leaves of integers"]),
        (np.asarray([3, -1, -2]), ["Found -1", "2 such numbers", "count from the start"]),
        (np.asarray([3, 1, 3, 3]), ["Found 3 more than once", "2 repetitions", "np.unique"]),
        (np.asarray([0.0, 1.0]), ["float64 numbers", "booleans (12,)"]),
        (np.asarray([], int), ["no free floating-point parameter"]),
        (np.ones(13, bool), ["booleans of shape (13,)", "expected (12,)"]),
        ([0, 3], ["prefix", "array of indices"]),
        ({"body": True, "head": np.asarray([0, 2]), "step": False}, ["'head'", "one array over"]),
        ({"body": False, "head": False, "step": True}, ["no free floating-point parameter"]),
    ],
    ids=[
        "name",
        "structure",
        "numbers",
        "shape",
        "nothing",
        "names",
        "beyond",
        "negative",
        "twice",
        "not whole",
        "no number",
        "length",
        "list",
        "numbers of a leaf",
        "integers only",
    ],
)
def test_selection_names_what_does_not_fit(subset, words):
    with pytest.raises(ValueError, match="expected") as error:
        select(params(), subset)
    assert all(word in str(error.value) for word in words)


def test_values_for_the_free_parameters_take_no_memory_for_the_others():
    like = {"trunk": jnp.ones((512, 512)), "head": jnp.ones(3)}
    free, selection = select(like, np.arange(5))
    program = jax.jit(
        lambda selection, free, values: selection.broadcast(values, free, name="prior_precision")
    )
    values = {"trunk": jnp.asarray(1.0), "head": jnp.asarray(2.0)}
    memory = program.lower(selection, free, values).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4096
    np.testing.assert_array_equal(program(selection, free, values), [2.0] * 3 + [1.0] * 2)


# --- what is no real number -----------------------------------------------------------------------


COMPLEX = {"kernel": jnp.ones((3, 2), jnp.complex64), "head": jnp.ones(2)}


@pytest.mark.parametrize(
    "subset",
    [
        None,
        lambda path: path == "kernel",
        {"kernel": True, "head": False},
        {"kernel": np.eye(3, 2) > 0, "head": True},
        True,
    ],
)
def test_complex_parameters_that_are_chosen_are_refused(subset):
    with pytest.raises(TypeError, match=r"complex64 parameters at 'kernel' of shape \(3, 2\)") as e:
        select(COMPLEX, subset)
    assert "jax.lax.complex(params['real'], params['imag'])" in str(e.value)
    assert "subset=lambda path: path != 'kernel'" in str(e.value)


@pytest.mark.parametrize(
    "subset", [lambda path: path != "kernel", {"kernel": False, "head": True}, np.arange(2)]
)
def test_complex_parameters_that_are_left_out_are_frozen(subset):
    free, selection = select(COMPLEX, subset)
    assert free["kernel"] is None
    assert_trees_equal(selection.insert(free), COMPLEX)


def test_the_last_layer_of_a_model_with_complex_parameters():
    def model(params, x):
        return jnp.abs(x @ params["kernel"]) @ params["head"][:, None]

    x, y = np.ones((5, 3), np.float32), np.zeros((5, 1), np.float32)
    la = lk.fit(model, COMPLEX, (x, y), likelihood="gaussian", subset="last_layer")
    # Features of 3 each, five times: H = 45 everywhere.
    np.testing.assert_allclose(la.posterior.covariance(), np.linalg.inv(45 + np.eye(2)), rtol=1e-4)
    assert la.card()["frozen"] == "1 leaf: kernel (complex64)"
    with pytest.raises(TypeError, match="complex64 parameters at 'kernel'"):
        lk.fit(model, COMPLEX, (x, y), likelihood="gaussian")
    with pytest.raises(TypeError, match="complex64 parameters at 'kernel'"):
        lk.curv.GGNOperator(model, COMPLEX, (x, y), "gaussian")


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [(jnp.tanh, r"\w+"), ("relu", "str"), (np.asarray(["a"]), "ndarray"), (object(), "object")],
)
def test_leaves_that_are_no_numbers(leaf, kind):
    with pytest.raises(
        TypeError, match=rf"of type {kind} at 'layers/0' in the parameters"
    ) as error:
        select({"layers": [leaf, jnp.ones(2)]})
    assert "equinox.partition(module, equinox.is_inexact_array)" in str(error.value)


def test_numbers_of_python_and_random_keys_are_leaves():
    like = {"scale": 2.0, "num": 3, "flag": True, "key": jax.random.key(0)}
    free, selection = select(like)
    assert [name for name, leaf in free.items() if leaf is not None] == ["scale"]
    assert selection.insert(free)["num"] == 3
