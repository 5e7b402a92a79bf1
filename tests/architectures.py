"""Models for the tests of layer capture: every way in which parameters enter, and random chains.

Each says itself how its parameters enter, so that what is recognised can be compared with it.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import twins
from flax import nnx

from laplace_kit.curv import coverage
from laplace_kit.model import from_equinox, from_linen, from_nnx

NUM = 5  # examples


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model with inputs; by the path of each parameter its kind, or `"bias of"` a weight."""

    model_fn: Callable
    params: Any
    x: Any
    kinds: dict[str, str]


def kinds_of(model_fn: Callable, params: Any, x: Any) -> dict[str, str]:
    """Return what the library finds, in the words of `Architecture.kinds`."""
    leaves = coverage(model_fn, params, x)
    return {
        leaf.path: leaf.kind + (f" of {leaf.partner}" if leaf.partner else "") for leaf in leaves
    }


def gaussian(seed: int) -> Callable:
    """Return what draws arrays of a shape; in float64 inside `jax.enable_x64`."""
    rng = np.random.default_rng(seed)
    return lambda *shape: twins.array(rng.normal(size=shape))


def tokens(high: int, *shape: int) -> jax.Array:
    return twins.array(np.random.default_rng(1).integers(0, high, shape))


def values_for(shapes: Any, seed: int, *, positive: bool = False) -> Any:
    """Return random values for shapes: nothing at zero or one, as initialisers would have it."""
    normal = gaussian(seed)

    def fill(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            values = normal(*leaf.shape)
            return twins.array(0.5 + np.abs(values)) if positive else values
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(fill, shapes)


def filled(model_fn: Callable, params: Any) -> tuple[Callable, Any]:
    """Fill a model of shapes: frozen statistics, such as variances, are positive."""
    return values_for(model_fn, 2, positive=True), values_for(params, 3)


# --- plain functions ----------------------------------------------------------------------------


def mlp() -> Architecture:
    def model_fn(params, x):
        hidden = jax.nn.relu(jnp.tanh(x @ params["w1"] + params["b1"]) * params["gain"])
        return hidden @ params["w2"].T

    normal = gaussian(0)
    params = {"w1": normal(3, 4), "b1": normal(4), "w2": normal(3, 4), "gain": normal(4)}
    kinds = {"w1": "dense", "b1": "bias of w1", "w2": "dense", "gain": "scale"}
    return Architecture(model_fn, params, normal(NUM, 3), kinds)


def conv_1d() -> Architecture:
    """Channels first, holes in inputs and kernel, uneven and negative padding, a flipped kernel."""

    def model_fn(params, x):
        conv = functools.partial(
            jax.lax.conv_general_dilated, dimension_numbers=("NCW", "OIW", "NCW")
        )
        h = conv(x, params["k1"], (2,), [(2, 1)], lhs_dilation=(2,), rhs_dilation=(2,))
        h = jnp.tanh(h + params["b1"][:, None])
        h = conv(h, params["k2"][:, :, ::-1], (1,), [(-1, 0)], feature_group_count=3)
        return h.sum(axis=2)

    normal = gaussian(0)
    params = {"k1": normal(3, 2, 3), "b1": normal(3), "k2": normal(6, 1, 2)}
    kinds = {"k1": "convolution", "b1": "bias of k1", "k2": "convolution"}
    return Architecture(model_fn, params, normal(NUM, 2, 5), kinds)


def conv_3d() -> Architecture:
    def model_fn(params, x):
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        h = jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 2, 1), "SAME", dimension_numbers=numbers
        )
        return jnp.tanh(h + params["bias"]).mean(axis=(1, 2, 3))

    normal = gaussian(0)
    params = {"kernel": normal(2, 2, 1, 2, 3), "bias": normal(3)}
    kinds = {"kernel": "convolution", "bias": "bias of kernel"}
    return Architecture(model_fn, params, normal(NUM, 2, 3, 2, 2), kinds)


def contractions() -> Architecture:
    """Products over any axes: batches of matrices, moved kernels, vectors, weights on the left."""

    def model_fn(params, x):
        batches = jnp.einsum("ndt,dto->nto", x, params["batched"]) + params["shifts"]
        flipped = params["flipped"].T[:, ::-1].T
        h = jnp.tanh(params["left"] @ jnp.einsum("nto,uo->nut", batches, flipped))
        columns = jnp.reshape(params["fortran"], (6, 2), order="F")
        whole = jnp.einsum("nut,ut->n", h, params["whole"]) + params["scalar"]
        summed = jnp.tanh(h).sum(axis=1) @ params["vector"]
        ends = jnp.stack([whole, summed], axis=1)
        return jnp.stack([h.reshape(len(x), 6) @ columns + params["out"], ends], axis=1)

    normal = gaussian(0)
    shapes = {"batched": (2, 3, 2), "shifts": (3, 2), "flipped": (4, 2), "left": (2, 4)}
    shapes |= {"fortran": (2, 6), "out": (2,), "whole": (2, 3), "scalar": (), "vector": (3,)}
    kinds = dict.fromkeys(shapes, "dense")
    kinds |= {"shifts": "bias of batched", "out": "bias of fortran", "scalar": "bias of whole"}
    params = {name: normal(*shape) for name, shape in shapes.items()}
    return Architecture(model_fn, params, normal(NUM, 2, 3), kinds)


def two_inputs() -> Architecture:
    """Inputs in a dictionary, members of an ensemble by `vmap`, outputs of several axes."""

    def member(params, x):
        conv = jax.lax.conv_general_dilated(x["right"], params["kernel"], (1,), "VALID")
        return jnp.tanh(x["left"] @ params["w"] + params["b"] + conv.mean(axis=2))

    def model_fn(params, x):
        members = jax.vmap(member, (0, None), out_axes=1)(params["members"], x)
        return jnp.einsum("nmi,mio->nmo", members, params["head"]) + params["out"]

    normal = gaussian(0)
    members = {"w": normal(2, 3, 2), "b": normal(2, 2), "kernel": normal(2, 2, 1, 2)}
    params = {"members": members, "head": normal(2, 2, 2), "out": normal(2, 2)}
    kinds = {"head": "dense", "out": "bias of head", "members/w": "dense"}
    kinds |= {"members/b": "bias of members/w", "members/kernel": "convolution"}
    x = {"left": normal(NUM, 3), "right": normal(NUM, 1, 3)}
    return Architecture(model_fn, params, x, kinds)


def lookups() -> Architecture:
    """Tables: entries looked up several times, from the end, beyond the last, or not in rows."""

    def model_fn(params, x):
        position = jnp.arange(1.0, 4.0)[:, None]
        within = x % 4
        rows = [
            jnp.take(params["clipped"], x, axis=0, mode="clip"),
            params["dropped"].at[x].get(mode="fill", fill_value=0),
            params["indexed"][within - 4],
            jnp.take(params["taken"], within, axis=0),
            params["turned"].T[within],
            params["deep"][within][:, :, 1],
            params["positions"][:3],
            params["columns"][:, within].transpose(1, 2, 0),
        ]
        h = functools.reduce(operator.mul, map(jnp.sin, rows)) + sum(rows)
        h = h + params["shift"]
        return jnp.tanh(h * position).sum(axis=1)

    normal = gaussian(0)
    tables = ("clipped", "dropped", "indexed", "taken")
    params = {name: normal(4, 2) for name in tables}
    params |= {"turned": normal(2, 4), "deep": normal(4, 2, 2), "positions": normal(5, 2)}
    params |= {"columns": normal(2, 4), "shift": normal(3, 2)}
    kinds = dict.fromkeys((*tables, "turned", "deep"), "embedding")
    kinds |= {"positions": "other", "columns": "other", "shift": "bias"}
    x = jnp.asarray([[0, 0, 1], [3, 6, 5], [-2, 2, -2], [-9, 3, 1], [2, 2, 2]])
    return Architecture(model_fn, params, x, kinds)


def low_rank_adapters() -> Architecture:
    def model_fn(params, x):
        beside = x @ params["w"] + (x @ params["a"]) @ params["b"] + params["c"]
        return jnp.tanh(beside) @ (params["merged_w"] + params["merged_a"] @ params["merged_b"])

    normal = gaussian(0)
    params = {"w": normal(3, 4), "a": normal(3, 2), "b": normal(2, 4), "c": normal(4)}
    params |= {"merged_w": normal(4, 3), "merged_a": normal(4, 1), "merged_b": normal(1, 3)}
    kinds = dict.fromkeys("wab", "dense") | {"c": "bias"}
    kinds |= dict.fromkeys(("merged_w", "merged_a", "merged_b"), "other")
    return Architecture(model_fn, params, normal(NUM, 3), kinds)


def calls() -> Architecture:
    """Calls within calls, derivative rules of the user's own, and arrays that the model holds."""
    normal = gaussian(0)
    held, held_on_host = normal(3, 3), np.linspace(0.5, 1.5, 4)

    @jax.custom_jvp
    def doubled_slope(w, a):
        return a @ w

    @doubled_slope.defjvp
    def _(primals, tangents):
        (w, a), (dw, da) = primals, tangents
        return a @ w, 2 * (a @ dw) + da @ w

    @jax.custom_vjp
    def tripled_slope(b, a):
        return a + b

    tripled_slope.defvjp(lambda b, a: (a + b, None), lambda _, g: (3 * g.sum(axis=0), g))

    @jax.checkpoint
    @jax.jit
    def layer(params, a):
        return jnp.tanh(jax.jit(jnp.dot)(a, params["w"]) + params["b"])

    def model_fn(params, x):
        h = layer(params, x @ held) * held_on_host
        return tripled_slope(params["tripled"], doubled_slope(params["doubled"], h))

    params = {"w": normal(3, 4), "b": normal(4), "doubled": normal(4, 2), "tripled": normal(2)}
    kinds = {"w": "dense", "b": "bias of w", "doubled": "other", "tripled": "other"}
    return Architecture(model_fn, params, normal(NUM, 3), kinds)


def stacks() -> Architecture:
    """Slices of one leaf for layer after layer: in scans, in loops, and not quite in step."""

    def block(h, own):
        h = jnp.tanh(h @ own["w"].T + own["b"]) * own["scale"]
        return h, h.sum(axis=1)

    def smooth(h, own):
        z = jax.lax.conv_general_dilated(h, own["kernel"], (1,), "SAME") + own["b"][:, None]
        return jnp.tanh(z), None

    def model_fn(params, x):
        h, seen = jax.lax.scan(jax.checkpoint(block), x, params["scanned"], reverse=True)
        h = jax.lax.scan(smooth, h[:, None], params["convolved"])[0][:, 0]
        w, b, turned = params["w"], params["b"], params["turned"]
        h = jnp.tanh(h @ w["crossed"][0] + b["crossed"][1]) @ w["crossed"][1] + b["crossed"][0]
        h = jnp.tanh(h @ w["fewer"][0] + b["more"][0]) @ w["fewer"][1] + b["more"][1] + b["more"][2]
        for i in range(2):
            h = jnp.tanh(h @ turned[i : i + 1, ::-1].swapaxes(1, 2)[0])
        return (h @ w["one"][1])[:, :2] * seen.T + (x @ w["row"] + b["row"][0])

    normal = gaussian(0)
    scanned = {"w": normal(2, 3, 3), "b": normal(2, 3), "scale": normal(2, 3)}
    convolved = {"kernel": normal(2, 1, 1, 2), "b": normal(2, 1)}
    weights = {"crossed": normal(2, 3, 3), "fewer": normal(2, 3, 3), "one": normal(2, 3, 2)}
    biases = {"crossed": normal(2, 3), "more": normal(3, 3), "row": normal(1, 2)}
    params = {"scanned": scanned, "convolved": convolved, "turned": normal(2, 3, 3)}
    params |= {"w": weights | {"row": normal(3, 2)}, "b": biases}
    kinds = {"scanned/w": "dense", "scanned/b": "bias of scanned/w", "scanned/scale": "scale"}
    kinds |= {"convolved/kernel": "convolution", "convolved/b": "bias of convolved/kernel"}
    kinds |= dict.fromkeys(("w/crossed", "w/fewer", "turned", "w/row"), "dense")
    kinds |= {"b/crossed": "bias", "b/more": "bias", "b/row": "bias of w/row", "w/one": "other"}
    return Architecture(model_fn, params, normal(NUM, 3), kinds)


def fallbacks() -> Architecture:
    """Parameters that are in no product, or in several."""

    def model_fn(params, x):
        h = jnp.tanh(x @ params["tied"]) @ params["tied"].T
        h = jax.lax.scan(lambda h, _: (jnp.tanh(h @ params["again"]), None), h, None, 2)[0]
        h = jax.lax.cond(x.shape[1] > 2, lambda h: h @ params["branch"], lambda h: h, h)
        h = h @ jnp.sin(params["sine"]) + jnp.sum(params["squared"] ** 2)
        counts = jnp.round(3 * x).astype(int) @ params["whole"].astype(int)
        steps = (x @ params["stepped"]).astype(int) + params["shift"]
        return h * params["averaged"][:, None].mean(axis=0) + counts + steps

    normal = gaussian(0)
    params = {"tied": normal(3, 4), "again": normal(3, 3), "branch": normal(3, 3)}
    params |= {"sine": normal(3, 2), "squared": normal(2), "averaged": normal(2)}
    params |= {"whole": 3 * normal(3, 2), "stepped": 3 * normal(3, 2), "shift": normal(2)}
    params |= {"unused": normal(2, 2)}
    kinds = dict.fromkeys(params, "other") | {"tied": "shared", "unused": "unused"}
    kinds |= {"stepped": "dense", "shift": "bias"}
    return Architecture(model_fn, params, normal(NUM, 3), kinds)


def unpaired() -> Architecture:
    """Biases that are not the last row of any weight."""

    def model_fn(params, x):
        w, b = params["w"], params["b"]
        twice = x @ w["twice"]
        outputs = [
            jnp.tanh(twice + b["twice"]) * twice,
            x @ w["turned"] + b["turned"][::-1],
            x @ w["subtracted"] - b["subtracted"],
            x @ w["left"] + b["shared"],
            jnp.tanh(x @ w["right"] + b["shared"]),
            x @ w["spread"] + b["spread"],
            ((x @ w["grown"])[:, :, None] + b["grown"]).sum(axis=2),
            jnp.tanh(x @ w["scaled"] * 2 + b["scaled"]),
        ]
        return jnp.tanh(sum(outputs))

    normal = gaussian(0)
    names = ("twice", "turned", "subtracted", "left", "right", "spread", "grown", "scaled")
    weights = {name: normal(3, 2) for name in names}
    biases = {name: normal(2) for name in ("twice", "turned", "subtracted", "shared", "scaled")}
    biases |= {"spread": normal(), "grown": normal(2)}
    kinds = {f"w/{name}": "dense" for name in weights} | {f"b/{name}": "bias" for name in biases}
    kinds["b/shared"] = "shared"
    return Architecture(model_fn, {"w": weights, "b": biases}, normal(NUM, 3), kinds)


# --- modules ------------------------------------------------------------------------------------


def nnx_convnet() -> Architecture:
    def build():
        types = {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        return nnx.Sequential(
            nnx.Conv(2, 4, (3, 2), strides=2, feature_group_count=2, **types),
            jnp.tanh,
            nnx.ConvTranspose(4, 3, (2, 2), strides=(2, 1), **types),
            nnx.BatchNorm(3, **types),
            lambda h: jnp.tanh(h).reshape(len(h), -1),
            nnx.Linear(24, 2, **types),
        )

    model_fn, params = filled(*from_nnx(nnx.eval_shape(build)))
    kinds = {f"layers/{i}/kernel": "convolution" for i in (0, 2)} | {"layers/5/kernel": "dense"}
    kinds |= {f"layers/{i}/bias": f"bias of layers/{i}/kernel" for i in (0, 2, 5)}
    kinds |= {"layers/3/scale": "scale", "layers/3/bias": "bias"}
    return Architecture(model_fn, params, gaussian(0)(NUM, 4, 4, 2), kinds)


class Residual(nnx.Module):
    def __init__(self):
        types = {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        self.first, self.inner = nnx.Linear(3, 4, **types), nnx.Linear(4, 4, **types)
        self.norm, self.last_norm = nnx.LayerNorm(4, **types), nnx.RMSNorm(4, **types)
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 2, use_bias=False, **types)

    def __call__(self, x):
        h = self.first(x)
        h = h + self.dropout(jax.nn.gelu(self.inner(self.norm(h))))
        return self.head(self.last_norm(h))


def nnx_residual() -> Architecture:
    model_fn, params = filled(*from_nnx(nnx.eval_shape(Residual)))
    kinds = {f"{name}/kernel": "dense" for name in ("first", "inner", "head")}
    kinds |= {f"{name}/bias": f"bias of {name}/kernel" for name in ("first", "inner")}
    kinds |= {"norm/scale": "scale", "norm/bias": "bias", "last_norm/scale": "scale"}
    return Architecture(model_fn, params, gaussian(0)(NUM, 3), kinds)


class Transformer(nnx.Module):
    def __init__(self):
        types = {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        self.embed = nnx.Embed(5, 4, dtype=jnp.float64, **types)
        self.positions = nnx.Param(jnp.zeros((4, 4)))
        self.norm = nnx.LayerNorm(4, **types)
        self.attend = nnx.MultiHeadAttention(2, 4, decode=False, **types)
        self.head = nnx.Linear(4, 2, **types)

    def __call__(self, x):
        h = self.embed(x) + self.positions[...]
        return self.head((h + self.attend(self.norm(h))).mean(axis=1))


def nnx_transformer() -> Architecture:
    model_fn, params = filled(*from_nnx(nnx.eval_shape(Transformer)))
    products = ("head", *(f"attend/{name}" for name in ("query", "key", "value", "out")))
    kinds = {f"{name}/kernel": "dense" for name in products}
    kinds |= {f"{name}/bias": f"bias of {name}/kernel" for name in products}
    kinds |= {"embed/embedding": "embedding", "positions": "bias"}
    kinds |= {"norm/scale": "scale", "norm/bias": "bias"}
    x = tokens(5, NUM, 4).at[:, 2].set(tokens(5, NUM, 4)[:, 0])  # a token twice in each sequence
    return Architecture(model_fn, params, x, kinds)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        h = nn.Conv(4, (2,), padding="CAUSAL", param_dtype=jnp.float64)(x)
        h = nn.BatchNorm(use_running_average=not train, param_dtype=jnp.float64)(h)
        h = nn.DenseGeneral((2, 2), axis=(-2, -1), param_dtype=jnp.float64)(jnp.tanh(h))
        return nn.LayerNorm(param_dtype=jnp.float64)(h)


def linen_module() -> Architecture:
    module, x = LinenNet(), gaussian(0)(NUM, 3, 2)
    variables = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), x)
    model_fn, params = filled(*from_linen(module, variables))
    kinds = {"Conv_0/kernel": "convolution", "DenseGeneral_0/kernel": "dense"}
    kinds |= {f"{name}_0/bias": f"bias of {name}_0/kernel" for name in ("Conv", "DenseGeneral")}
    kinds |= {f"{name}_0/scale": "scale" for name in ("BatchNorm", "LayerNorm")}
    kinds |= {f"{name}_0/bias": "bias" for name in ("BatchNorm", "LayerNorm")}
    return Architecture(model_fn, params, x, kinds)


def equinox_module() -> Architecture:
    import equinox as eqx

    def build(key):
        return eqx.nn.Sequential(
            [
                eqx.nn.Conv1d(2, 3, 2, key=key),
                eqx.nn.Lambda(lambda h: jnp.tanh(h).reshape(-1)),
                eqx.nn.LayerNorm(6),
                eqx.nn.Linear(6, 2, key=key),
            ]
        )

    shapes = eqx.filter_eval_shape(build, jax.random.key(0))
    arrays, structure = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    module = eqx.combine(values_for(arrays, 3), structure)
    model_fn, params = from_equinox(module)
    kinds = {"layers/0/weight": "convolution", "layers/3/weight": "dense"}
    kinds |= {f"layers/{i}/bias": f"bias of layers/{i}/weight" for i in (0, 3)}
    kinds |= {"layers/2/weight": "scale", "layers/2/bias": "bias"}
    return Architecture(model_fn, params, gaussian(0)(NUM, 2, 3), kinds)


ZOO = {
    build.__name__: build
    for build in (
        *(mlp, conv_1d, conv_3d, contractions, two_inputs, lookups, low_rank_adapters, calls),
        *(stacks, fallbacks, unpaired, nnx_convnet, nnx_residual, nnx_transformer, linen_module),
        equinox_module,
    )
}
