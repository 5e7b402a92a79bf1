"""Parameters of any pytree come back from files by the names of their parts, or are refused."""

import dataclasses
import itertools
from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from flax import struct
from flax.core import FrozenDict

import laplace_kit as lk
from laplace_kit import storage
from laplace_kit.portable import Node, check_like, from_portable, to_portable
from laplace_kit.tree import replace

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Y = np.arange(6) % 2


class Pair(NamedTuple):
    """Not in alphabetical order, unlike a dictionary."""

    weight: Any
    bias: Any
    steps: Any = None


@struct.dataclass
class Flax:
    weight: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    weight: Any
    bias: Any
    name: str = dataclasses.field(default="", metadata={"static": True})


@jax.tree_util.register_pytree_node_class
class Unnamed:
    """A node that is registered without names for its children."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    def tree_flatten(self):
        return (self.weight, self.bias), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Empty:
    """A node without children, as equinox's identity is one."""


WEIGHT = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)), jnp.float32)
BIAS = jnp.asarray([0.3, -0.2], jnp.float32)
PARAMS = {
    "named tuple": Pair(WEIGHT, BIAS, jnp.asarray(3)),
    "flax dataclass": Flax(WEIGHT, BIAS),
    "registered dataclass": Registered(WEIGHT, BIAS, "linear"),
    "without names": Unnamed(WEIGHT, BIAS),
    "frozen dictionary": FrozenDict(weight=WEIGHT, bias=BIAS),
    "ordered dictionary": OrderedDict(weight=WEIGHT, bias=BIAS),
    "inside of others": {"layers": [(None, Pair(WEIGHT, BIAS))]},
    "next to an empty node": {"layers": [(Empty(), Pair(WEIGHT, BIAS))]},
    "plain": {"weight": WEIGHT, "bias": BIAS},
}


def linear(params, x):
    if isinstance(params, dict) and "layers" in params:
        params = params["layers"][0][1]
    if hasattr(params, "keys"):
        return x @ params["weight"] + params["bias"]
    return x @ params.weight + params.bias


def is_weight(path: str) -> bool:
    return not path.endswith(("bias", "1"))


def fitted(params, **options) -> lk.Laplace:
    return lk.fit(linear, params, (X, Y), likelihood="categorical", structure="full", **options)


def assert_same(loaded, la):
    model, record = replace(la.model, plan=None), replace(la.record, examples=None)
    expected = replace(la, model=model, record=record)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


@pytest.mark.parametrize("kind", PARAMS)
def test_a_posterior_of_any_pytree(kind, tmp_path):
    params = PARAMS[kind]
    la = fitted(params)
    partly = fitted(params, subset=is_weight)
    for posterior in (la, partly):
        posterior.save(tmp_path / "la.npz")
        loaded = lk.load(tmp_path / "la.npz", linear, params=params)
        assert_same(loaded, posterior)
        assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
        shapes = jax.eval_shape(lambda: params)
        assert_same(lk.load(tmp_path / "la.npz", linear, params=shapes), posterior)
    np.testing.assert_array_equal(loaded.predict(X).f_cov, partly.predict(X).f_cov)
    if kind == "plain":
        assert_same(lk.load(tmp_path / "la.npz", linear), partly)
    else:
        with pytest.raises(ValueError, match=r"of the class \w+ in the file, expected `params`"):
            lk.load(tmp_path / "la.npz", linear)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "structure"),
    [
        *itertools.product(PARAMS, ["full", "kron", "ekfac", "diagonal", "low_rank"]),
        # slices of one array are no layer with factors
        *itertools.product(["bare array"], ["full", "diagonal", "low_rank"]),
    ],
)
def test_everything_is_the_same_with_any_pytree(kind, structure, tmp_path):
    plain = {"weight": WEIGHT, "bias": BIAS}
    bare = jnp.concatenate([WEIGHT, BIAS[None]])

    def joined(params, x):
        return x @ params[:-1] + params[-1]

    model_fn, params = (joined, bare) if kind == "bare array" else (linear, PARAMS[kind])
    options = {"likelihood": "categorical", "structure": structure}
    if structure == "low_rank":
        options |= {"rank": 8, "key": jax.random.key(0)}

    def run(model_fn, params):
        la = lk.fit(model_fn, params, (X, Y), **options).tune(bounds=(1e-9, 1e9))
        la.save(tmp_path / "la.npz")
        loaded = lk.load(tmp_path / "la.npz", model_fn, params=params)
        np.testing.assert_array_equal(loaded.predict(X).f_cov, la.predict(X).f_cov)
        return la, la.update((X, Y))

    ours, dictionary = run(model_fn, params), run(linear, plain)
    for found, expected in zip(ours, dictionary, strict=True):
        twins.assert_close(found.prior_precision, expected.prior_precision, rtol=1e-2)
        twins.assert_close(found.predict(X).f_cov, expected.predict(X).f_cov, rtol=1e-2)
        draws = found.sample(jax.random.key(0), 3)
        assert jax.tree.structure(draws) == jax.tree.structure(params)
    sampled = ours[0].predict(X, method="sampled", key=jax.random.key(0), num_samples=500)
    twins.assert_close(sampled.probs, dictionary[0].predict(X).probs, rtol=0.15)


def test_a_precision_for_each_leaf_of_a_module(tmp_path):
    params = PARAMS["named tuple"]
    la = fitted(params, prior_precision=Pair(2.0, 0.5, None)).tune(
        per_leaf=True, bounds=(1e-9, 1e9)
    )
    la.save(tmp_path / "la.npz")
    loaded = lk.load(tmp_path / "la.npz", linear, params=params)
    assert_same(loaded, la)
    assert isinstance(loaded.prior_precision, Pair)
    assert isinstance(loaded.tuning.prior_precision, Pair)


@pytest.mark.slow
def test_a_posterior_of_an_equinox_module(tmp_path):
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    model_fn, params = lk.model.from_equinox(module)
    la = lk.fit(model_fn, params, (X, Y), likelihood="categorical", structure="kron")
    la.save(tmp_path / "la.npz")
    for like in (params, module):  # with functions among its leaves
        loaded = lk.load(tmp_path / "la.npz", model_fn, params=like)
        assert_same(loaded, la)
        assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
        np.testing.assert_array_equal(loaded.predict(X).f_cov, la.predict(X).f_cov)
    wider = eqx.nn.MLP(3, 2, 5, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"'layers/0/weight': found \(4, 3\), expected \(5"):
        lk.load(tmp_path / "la.npz", model_fn, params=wider)
    deeper = eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"first at 'layers/2': found nothing, expected 2"):
        lk.load(tmp_path / "la.npz", model_fn, params=deeper)
    without = eqx.nn.MLP(3, 2, 4, 1, use_final_bias=False, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"'layers/1/bias': found \(2,\), expected nothing"):
        lk.load(tmp_path / "la.npz", model_fn, params=without)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Pair(WEIGHT.T, BIAS, 3), "'weight': found (3, 2), expected (2, 3)"),
        (Pair(WEIGHT, None, 3), "'bias': found (2,), expected nothing"),
        (PARAMS["flax dataclass"], "'steps': found steps, expected nothing"),
        (PARAMS["plain"], "'weight': found weight, expected bias"),  # flat in another order
        ({"weight": WEIGHT}, "'bias': found bias, expected nothing"),
        (WEIGHT, "'weight': found weight, expected nothing"),
        (Pair(WEIGHT, BIAS, jnp.ones(2)), "'steps': found (), expected (2,)"),
    ],
    ids=["shape", "missing", "class", "order", "fewer", "array", "frozen"],
)  # fmt: skip
def test_parameters_that_differ_name_the_first_path(other, words, tmp_path):
    fitted(PARAMS["named tuple"]).save(tmp_path / "la.npz")
    with pytest.raises(ValueError, match="differ from `params` first at") as error:
        lk.load(tmp_path / "la.npz", linear, params=other)
    assert words in str(error.value)


def test_plain_parameters_are_compared_too_where_others_are_given(tmp_path):
    fitted(PARAMS["plain"]).save(tmp_path / "la.npz")
    with pytest.raises(ValueError, match="first at 'weight': found weight, expected kernel"):
        lk.load(tmp_path / "la.npz", linear, params={"kernel": WEIGHT, "bias": BIAS})


def test_what_is_plain_stays_plain():
    tree = {"a": [WEIGHT, (None, 3)], 2: {}, 1: ()}
    del tree["a"]  # keys of one kind, as JAX sorts them
    assert to_portable(tree) == tree
    assert from_portable(to_portable(tree)) == tree
    assert to_portable(WEIGHT) is WEIGHT
    assert to_portable(None) is None
    found = to_portable({"a": Pair(WEIGHT, None)})
    assert isinstance(found["a"], Node)
    assert found["a"].kind == "Pair"
    assert found["a"].children == {"weight": WEIGHT, "bias": None, "steps": None}


def test_dictionaries_whose_keys_are_no_strings(tmp_path):
    like = {(0, "a"): BIAS, (1, "b"): 2 * BIAS}
    storage.write(tmp_path / "file", to_portable(like))
    found = from_portable(storage.read(tmp_path / "file"), like)
    assert list(found) == list(like)
    jax.tree.map(np.testing.assert_array_equal, found, like)


def test_what_is_never_a_parameter_may_be_there_besides():
    check_like(Pair(WEIGHT, None), Pair(WEIGHT, jnp.tanh, 3))
    check_like(Pair(WEIGHT, None), Pair(WEIGHT, np.arange(2)))
    with pytest.raises(ValueError, match="'bias': found nothing, expected"):
        check_like(Pair(WEIGHT, None), Pair(WEIGHT, BIAS))
