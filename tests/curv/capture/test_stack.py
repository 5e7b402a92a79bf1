"""Slices of stacked weights and biases, as in a scan over layers, are groups of one layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from flax import nnx
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit import curv
from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.curv.objective import restrict
from laplace_kit.likelihood import Gaussian
from laplace_kit.model import from_nnx

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape))


class Residual(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, param_dtype=float, rngs=rngs)
        self.norm = nnx.LayerNorm(4, param_dtype=float, rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(self.linear(self.norm(x)))


class ScanOverLayers(nnx.Module):
    def __init__(self, num: int):
        make = nnx.vmap(lambda key: Residual(nnx.Rngs(key)))
        self.layers = make(jax.random.split(jax.random.key(0), num))

    def __call__(self, x):
        step = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return step(x, self.layers)


def scan_of_flax():
    return *from_nnx(ScanOverLayers(3)), normal(3, 4)


def scan_backwards(params, x):
    """Einsum over positions, a convolution for the outputs, from the last layer to the first."""

    def body(h, layer):
        h = jnp.tanh(jnp.einsum("nti,oi->nto", h, layer["w"]) + layer["b"])
        y = jax.lax.conv_general_dilated(
            h, layer["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return h, y.sum((1, 2))

    h, ys = jax.lax.scan(body, x, params, reverse=True)
    return jnp.concatenate([h.mean(axis=1), ys.T], axis=1)


def loop(params, x):
    for w, b in zip(params["w"], params["b"], strict=True):
        x = jnp.tanh(x @ w + b)
    return x * params["twice"][0] + params["twice"][0]


def crossed(params, x):
    """The biases come in another order than the weights that they are added to."""
    for i in range(3):
        x = jnp.tanh(x @ params["w"][i] + params["b"][2 - i])
    return x


def unlike(params, x):
    """One weight of two is a matrix, the other a scale of all entries."""
    return jnp.tanh(x @ params["w"][0]) * params["w"][1].sum()


CASES = {
    "flax": scan_of_flax,
    "backwards": lambda: (
        scan_backwards,
        {"b": normal(3, 4), "k": normal(3, 2, 4, 2), "w": normal(3, 4, 4)},
        normal(5, 3, 4),
    ),
    "loop": lambda: (
        loop,
        {"b": normal(3, 4), "twice": normal(2, 4), "w": normal(3, 4, 4)},
        normal(5, 4),
    ),
    "crossed": lambda: (crossed, {"b": normal(3, 4), "w": normal(3, 4, 4)}, normal(5, 4)),
    "unlike": lambda: (unlike, {"w": normal(2, 4, 4)}, normal(5, 4)),
}
KINDS = {  # and the layer each belongs to
    "flax": {
        "layers/linear/bias": ("bias", 0),
        "layers/linear/kernel": ("dense", 0),
        "layers/norm/bias": ("bias", 1),
        "layers/norm/scale": ("scale", 2),
    },
    "backwards": {"b": ("bias", 1), "k": ("convolution", 0), "w": ("dense", 1)},
    "loop": {"b": ("bias", 1), "twice": ("shared", 0), "w": ("dense", 1)},
    "crossed": {"b": ("bias", 0), "w": ("dense", 1)},
    "unlike": {"w": ("other", 0)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_stacked_layers_are_groups_and_their_rows_exact(name, x64):
    model_fn, params, x = CASES[name]()
    objective, _ = restrict(model_fn, params, Gaussian())
    found = {leaf.path: (leaf.kind, leaf.layer) for leaf in objective.planned(x).plan.layers.leaves}
    assert found == KINDS[name]
    flat, unravel = ravel_pytree(params)
    dense = jax.jit(jax.jacobian(lambda t: model_fn(unravel(t), x)))(flat)
    dense = dense.reshape(len(x), -1, len(flat))
    rows = jax.jit(jacobian)(objective, x)[1]
    twins.assert_close(rows.to_dense(), dense)
    twins.assert_close(rows.squared_sum(), (dense**2).sum((0, 1)))


@pytest.mark.slow
def test_every_layer_of_a_scan_has_kronecker_factors_of_its_own(x64):
    """They equal those of the same network written without a scan."""
    params = {"b": normal(3, 4), "w": normal(3, 4, 4)}
    x, y = normal(5, 4), normal(5, 4)

    def scanned(params, x):
        step = lambda h, layer: (jnp.tanh(h @ layer["w"] + layer["b"]), None)  # noqa: E731
        return jax.lax.scan(step, x, params)[0]

    def written_out(layers, x):
        for layer in layers:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return x

    layers = [{"b": params["b"][i], "w": params["w"][i]} for i in range(3)]
    (stacked,) = curv.kronecker_factors(curv.GGNOperator(scanned, params, (x, y), Gaussian()))
    single = curv.kronecker_factors(curv.GGNOperator(written_out, layers, (x, y), Gaussian()))
    for i, factor in enumerate(single):
        twins.assert_close(stacked.inputs[i], factor.inputs[0])
        twins.assert_close(stacked.gradients[i], factor.gradients[0])
    fitted = [
        lk.fit(model, p, (x, y), likelihood="gaussian", structure="ekfac")
        for model, p in ((scanned, params), (written_out, layers))
    ]
    twins.assert_close(*(la.predict(x).f_cov for la in fitted))
    twins.assert_close(*(la.log_marginal_likelihood() for la in fitted))
