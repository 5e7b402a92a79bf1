"""Captured rows and their algebra, against the dense Jacobian of the same model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from flax import nnx
from jax.flatten_util import ravel_pytree

from laplace_kit.curv import layers
from laplace_kit.curv.objective import restrict
from laplace_kit.curv.rows import DenseRows, FactoredRows
from laplace_kit.likelihood import Categorical
from laplace_kit.model import from_nnx


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def scaled_mlp(params, x):
    hidden = jax.nn.relu(jnp.tanh(x @ params["w1"] + params["b1"]) * params["gain"])
    return hidden @ params["w2"].T


def exotic(params, x):
    mixed = jnp.einsum("ni,ij,kj->nk", x, jnp.sin(params["sine"]), params["w"])
    return mixed + jnp.sum(params["squared"] ** 2)


def through_calls(params, x):
    layer = jax.checkpoint(jax.jit(lambda kernel, a: jnp.tanh(a @ kernel)))
    return layer(params["w1"], x) @ params["w2"]


def shared(params, x):
    return jnp.tanh(x @ params["w"]) @ params["w"] + 0 * params["unused"][0]


def several_axes(params, x):
    return jnp.einsum("ni,pci->npc", jnp.tanh(x @ params["w1"]), params["w2"])


def attend(params, x):
    """Self-attention as flax writes it: kernels with a head axis, applied by einsum."""
    queries, keys, values = (
        jnp.einsum("nti,ihd->nthd", x, params[name]) for name in ("query", "key", "value")
    )
    weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", queries + params["bias"], keys))
    mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, values)
    return jnp.einsum("nqhd,hdo->nqo", mixed, params["out"]).mean(axis=1)


def attention():
    kernels = {name: normal(i, 4, 2, 3) for i, name in enumerate(("query", "key", "value"))}
    return (
        attend,
        {**kernels, "bias": normal(3, 2, 3), "out": normal(4, 2, 3, 4)},
        normal(5, 3, 5, 4),
    )


def convnet():
    rngs = nnx.Rngs(0)
    module = nnx.Sequential(
        nnx.Conv(2, 4, (3, 3), strides=2, feature_group_count=2, rngs=rngs),
        nnx.relu,
        lambda x: x.reshape(len(x), -1),
        nnx.LayerNorm(16, rngs=rngs),
        nnx.Linear(16, 3, rngs=rngs),
    )
    return *from_nnx(module), normal(5, 3, 4, 4, 2)


CASES = {
    "scaled_mlp": lambda: (
        scaled_mlp,
        {"w1": normal(0, 3, 4), "b1": normal(1, 4), "w2": normal(2, 3, 4), "gain": normal(3, 4)},
        normal(4, 6, 3),
    ),
    "exotic": lambda: (
        exotic,
        {"sine": normal(0, 3, 3), "w": normal(1, 2, 3), "squared": normal(2, 2)},
        normal(4, 6, 3),
    ),
    "through_calls": lambda: (
        through_calls,
        {"w1": normal(0, 3, 3), "w2": normal(1, 3, 2)},
        normal(4, 6, 3),
    ),
    "shared": lambda: (shared, {"w": normal(0, 3, 3), "unused": normal(1, 2)}, normal(4, 6, 3)),
    "several_axes": lambda: (
        several_axes,
        {"w1": normal(0, 3, 4), "w2": normal(1, 2, 3, 4)},
        normal(4, 5, 3),
    ),
    "attention": attention,
    "convnet": convnet,
}
KINDS = {
    "scaled_mlp": {"w1": "dense", "b1": "bias", "w2": "dense", "gain": "scale"},
    "exotic": {"sine": "other", "w": "dense", "squared": "other"},
    "through_calls": {"w1": "dense", "w2": "dense"},
    "shared": {"w": "shared", "unused": "other"},
    "several_axes": {"w1": "dense", "w2": "dense"},
}


def build(name):
    model_fn, params, x = CASES[name]()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    objective, _ = restrict(model_fn, params, Categorical())
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jacobian(lambda vector: objective.model_fn(unravel(vector), x))(flat)
    return objective, x, jacobian.reshape(len(x), -1, len(flat))


@pytest.mark.parametrize("name", CASES)
def test_rows_and_their_algebra_are_those_of_the_dense_jacobian(name, x64):
    objective, x, dense = build(name)
    num = dense.shape[-1]
    scale, vectors = jnp.abs(normal(7, num)), normal(8, 5, num)

    @jax.jit
    def found(objective, x, scale, vectors):
        f, rows = layers.jacobian(objective, x)
        return f, [
            rows.to_dense(),
            rows.squared_sum(),
            rows.gram(),
            rows.scaled_outer(scale),
            rows.scaled_squares(scale),
            rows.project(vectors),
        ]

    f, products = found(objective, x, scale, vectors)
    expected = [
        dense,
        (dense**2).sum(axis=(0, 1)),
        jnp.einsum("nrp,nrq->pq", dense, dense),
        jnp.einsum("nrp,p,nsp->nrs", dense, scale, dense),
        jnp.einsum("nrp,p->nr", dense**2, scale),
        jnp.einsum("nrp,kp->nrk", dense, vectors),
    ]
    np.testing.assert_allclose(f, objective.outputs(x), rtol=1e-12)
    for product, twin in zip(products, expected, strict=True):
        twins.assert_close(product, twin)


@pytest.mark.parametrize("name", KINDS)
def test_kinds_are_recognised(name, x64):
    objective, x, _ = build(name)
    _, found = layers.find_layers(objective, x)
    assert {layer.path: layer.kind for layer in found} == KINDS[name]


def test_a_weight_used_at_one_position_stays_in_factors(x64):
    objective, x, _ = build("scaled_mlp")
    _, rows = jax.eval_shape(layers.jacobian, objective, x)
    paths = ("b1", "gain", "w1", "w2")
    kinds = {path: type(block) for path, block in zip(paths, rows.blocks, strict=True)}
    assert kinds == {"b1": DenseRows, "gain": DenseRows, "w1": FactoredRows, "w2": FactoredRows}
    assert rows.blocks[2].inputs.shape == (6, 3)
    assert rows.blocks[2].gradients.shape == (6, 3, 4)


def test_directions_of_each_example_are_pulled_back(x64):
    objective, x, dense = build("convnet")
    directions = normal(9, 3, 4, 3)
    _, rows = jax.jit(lambda o, x: layers.capture(o, x, lambda f: directions))(objective, x)
    twins.assert_close(rows.to_dense(), jnp.einsum("nrc,ncp->nrp", directions, dense))


def test_a_derivative_rule_of_the_users_own_stays_in_force(x64):
    @jax.custom_jvp
    def doubled_slope(w, a):
        return a @ w

    @doubled_slope.defjvp
    def _(primals, tangents):
        (w, a), (dw, da) = primals, tangents
        return a @ w, 2 * (a @ dw) + da @ w

    params = {"w": normal(0, 3, 2)}
    objective, _ = restrict(lambda p, x: doubled_slope(p["w"], x), params, Categorical())
    x = normal(1, 4, 3)
    _, rows = layers.jacobian(objective, x)
    dense = jax.jacobian(lambda w: doubled_slope(w, x))(params["w"]).reshape(4, 2, 6)
    twins.assert_close(rows.to_dense(), dense)
    assert layers.find_layers(objective, x)[1][0].kind == "other"


@pytest.mark.parametrize("event", [(), (3,), (2, 3)])
def test_unit_directions_span_the_outputs(event):
    units = layers.unit_directions(jnp.zeros((5, *event)))
    num = int(np.prod(event))
    assert units.shape == (num, *event)
    np.testing.assert_array_equal(units.reshape(num, num), np.eye(num))


def test_estimates_grow_with_what_is_held():
    params = {"w": jnp.zeros((5, 7)), "b": jnp.zeros(7)}
    objective, _ = restrict(lambda p, x: x @ p["w"] + p["b"], params, Categorical())
    x = jnp.zeros((3, 5))
    # Inputs 5, gradients 7 a direction, and the bias's exact rows, 7 a direction; twice, 4 bytes.
    assert layers.rows_bytes(objective, x, 10) == 2 * 4 * (5 + 10 * (7 + 7))
    assert layers.gram_bytes(objective, x, 10) == layers.rows_bytes(objective, x, 10) + 4 * (
        5**2 + 7**2
    )
    assert layers.projection_bytes(objective, x, 10, 3) > layers.rows_bytes(objective, x, 10)
