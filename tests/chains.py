"""Random architectures: chains of layers with small random shapes, for property tests.

The parameters of a layer are named by their kinds, so that a path tells what is to be found.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

NUM = 3  # examples

# What hypothesis takes for the simplest, and draws most often, comes first: nothing degenerate.
sizes = st.sampled_from((2, 3, 1))


@dataclasses.dataclass(frozen=True)
class Link:
    """One layer: the shapes of its parameters by their kinds, and what it does with them."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    apply: Callable[[dict, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Chain:
    """Links, the shape of one example, and the number of tokens where examples are tokens."""

    links: tuple[Link, ...]
    shape: tuple[int, ...]
    num_tokens: int | None
    seed: int

    def __call__(self, params: list[dict], x: jax.Array) -> jax.Array:
        for link, leaves in zip(self.links, params, strict=True):
            x = link.apply(leaves, x)
        return x

    def __repr__(self) -> str:
        listed = [f"{link.name} {link.shapes}" for link in self.links]
        return f"Chain({self.shape}, tokens={self.num_tokens}, {listed})"

    def arrays(self) -> tuple[Any, np.ndarray]:
        """Return parameters and inputs, in float64."""
        rng = np.random.default_rng(self.seed)
        params = [
            {kind: rng.normal(size=shape) for kind, shape in link.shapes.items()}
            for link in self.links
        ]
        if self.num_tokens is not None:
            return params, rng.integers(0, self.num_tokens, (NUM, *self.shape))
        return params, rng.normal(size=(NUM, *self.shape))


@st.composite
def chains(draw) -> Chain:
    """Draw one to four layers after a front, and a head of at most three outputs."""
    links, num_tokens = [], None
    num_axes = draw(sizes)
    shape = start = tuple(draw(sizes) for _ in range(num_axes))
    if num_axes < 3 and draw(st.booleans()):
        num_tokens, width = draw(sizes), draw(sizes)
        links.append(Link("embedding", {"embedding": (num_tokens, width)}, _look_up))
        shape = (*shape, width)
    for i in range(draw(st.sampled_from((3, 4, 2, 1)))):
        makes = LINKS if len(shape) > 1 else LINKS_OF_VECTORS
        make = draw(st.sampled_from((*makes[i:], *makes[:i])))
        links.append(draw(make(shape)))
        shape = _after(links[-1], shape)
    links.append(draw(head(shape)))
    return Chain(tuple(links), start, num_tokens, draw(st.integers(0, 1000)))


def _after(link: Link, shape: tuple[int, ...]) -> tuple[int, ...]:
    def struct(shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    params = {kind: struct(leaf) for kind, leaf in link.shapes.items()}
    return jax.eval_shape(link.apply, params, struct((NUM, *shape))).shape[1:]


def _look_up(params, tokens):
    return params["embedding"][tokens]


# --- links, for an activation of a shape --------------------------------------------------------


@st.composite
def dense(draw, shape):
    """Draw a matrix for the last axis, plain, transposed or of several axes of outputs."""
    form, width, out = draw(st.sampled_from(range(3))), shape[-1], draw(sizes)
    kernel = [(width, out), (out, width), (2, width, out)][form]
    equation = ["...i,io->...o", "...i,oi->...o", "...i,hio->...ho"][form]
    shapes = {"dense": kernel}
    if draw(st.booleans()):
        shapes["bias"] = (2, out) if form == 2 else (out,)

    def apply(params, x):
        return jnp.einsum(equation, x, params["dense"]) + params.get("bias", 0.0)

    return Link(f"dense {equation}", shapes, apply)


@st.composite
def merge_heads(draw, shape):
    """Draw a matrix for the last two axes."""
    shapes = {"dense": (*shape[-2:], draw(sizes))}
    return Link("merge", shapes, lambda params, x: jnp.einsum("...hi,hio", x, params["dense"]))


@st.composite
def batched(draw, shape):
    """Draw matrices of their own for all entries of the axis before the last."""
    out = draw(sizes)
    shapes = {"dense": (*shape[-2:], out), "bias": (shape[-2], out)}

    def apply(params, x):
        return jnp.einsum("...hi,hio->...ho", x, params["dense"]) + params["bias"]

    return Link("batched", shapes, apply)


@st.composite
def convolution(draw, shape):
    """Draw a convolution over all axes but the last; the padding covers the window's reach."""
    *space, channels = shape
    groups = draw(st.sampled_from([g for g in (2, 3, 1) if channels % g == 0]))
    out = groups * draw(st.sampled_from((2, 1)))
    often, seldom = st.sampled_from((2, 1)), st.sampled_from((1, 2))
    numbers = [draw(st.tuples(often, often, seldom, seldom)) for _ in space]
    window, strides, holes, dilation = zip(*numbers, strict=True)
    padding = []
    for size, k, hole, spread in zip(space, window, holes, dilation, strict=True):
        low, missing = draw(st.integers(0, 1)), (k - 1) * spread - (size - 1) * hole
        padding.append((low, max(draw(st.integers(-1, 1)), missing - low)))
    shapes = {"convolution": (*window, channels // groups, out)}
    if draw(st.booleans()):
        shapes["bias"] = (out,)
    letters = "XYZ"[: len(space)]

    def apply(params, x):
        z = jax.lax.conv_general_dilated(
            x,
            params["convolution"],
            strides,
            padding,
            lhs_dilation=holes,
            rhs_dilation=dilation,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            feature_group_count=groups,
        )
        return z + params.get("bias", 0.0)

    name = f"conv strides {strides} padding {padding} holes {holes} {dilation} groups {groups}"
    return Link(name, shapes, apply)


def residual(shape):
    def apply(params, x):
        return x + jnp.tanh(x @ params["dense"] + params["bias"])

    return st.just(Link("residual", {"dense": shape[-1:] * 2, "bias": shape[-1:]}, apply))


def scale(shape):
    return st.just(Link("scale", {"scale": shape}, lambda params, x: x * params["scale"]))


def norm(shape):
    def apply(params, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = jnp.sqrt(0.1 + jnp.mean(centred**2, axis=-1, keepdims=True))
        return centred / spread * params["scale"] + params["bias"]

    return st.just(Link("norm", {"scale": shape[-1:], "bias": shape[-1:]}, apply))


@st.composite
def move(draw, shape):
    """Draw another order of the axes, or of the entries, without parameters."""
    order = draw(st.permutations(range(len(shape))))
    if draw(st.booleans()):
        return Link(f"order {order}", {}, lambda _, x: x.transpose(0, *(1 + i for i in order)))
    return Link("reshape", {}, lambda _, x: x.reshape(len(x), -1, shape[0]))


def activation(shape):
    return st.sampled_from((jnp.tanh, jax.nn.relu, jax.nn.gelu)).map(
        lambda fn: Link(fn.__name__, {}, lambda _, x: fn(x))
    )


@st.composite
def head(draw, shape):
    out = draw(sizes)

    def apply(params, x):
        return jnp.sin(x).reshape(len(x), -1) @ params["dense"] + params["bias"]

    return Link("head", {"dense": (int(np.prod(shape)), out), "bias": (out,)}, apply)


LINKS_OF_VECTORS = (norm, dense, scale, residual, activation)
LINKS = (convolution, *LINKS_OF_VECTORS[:2], batched, merge_heads, move, *LINKS_OF_VECTORS[2:])
