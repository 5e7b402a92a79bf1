r"""Layer capture: every layer's inputs and output gradients, for any JAX function.

Where a weight enters as $z_t = a_t W$, the gradient of a direction $s$ in the outputs is
$\sum_t a_t\, g_t^\top$ with $g_t = (\partial f / \partial z_t)^\top s$. One forward pass that
records $a$ and adds a zero *probe* to $z$, and one backward pass to the probes, therefore give the
Jacobian of all weights in factors. Parameters that enter in other ways get their exact rows.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from laplace_kit.curv.capture.blocks import Block, FactoredRows, HeadRows, LookupRows
from laplace_kit.curv.capture.heads import Head, find_head
from laplace_kit.curv.capture.layers import Layer
from laplace_kit.curv.capture.layout import Layout
from laplace_kit.curv.capture.products import Lookup, parts_of
from laplace_kit.curv.capture.rows import Rows
from laplace_kit.curv.objective import Objective
from laplace_kit.program import evaluate


class Capture(NamedTuple):
    r"""A model linearised at a batch, layer by layer.

    `outputs` `(B, *event)`; for each layer its position in flat vectors, in `layouts`, and its
    `inputs`: `(B, T, G, I)`, indices `(B, T)` for a lookup, or ones. `pull` maps directions
    $s_{nr}$ `(B, R, *event)` in the outputs to the rows $J_n^\top s_{nr}$, at one backward pass per
    direction. `pull_outputs` maps indices of flat outputs `(R,)` to the rows of these outputs, zero
    beyond the last; a head needs no backward pass, as its rows differ between examples only by the
    inputs.
    """

    outputs: Float[Array, "B *event"]
    layouts: tuple[Layout, ...]
    inputs: tuple[Array, ...]
    pull: Callable[[Float[Array, "B R *event"]], Rows]
    pull_outputs: Callable[[Int[Array, " R"]], Rows]


def capture(objective: Objective, x: PyTree) -> Capture:
    r"""Linearise a model at a batch of inputs, layer by layer.

    Parameters
    ----------
    objective
        The model and its free parameters.
    x
        Inputs with a leading axis B.

    Returns
    -------
    captured
        Cost: one forward pass. Memory: activations for each example, and for each direction that is
        pulled back; the exact rows of leaves that enter no product.
    """
    found = objective.planned(x).plan.layers
    program, leaves = found.program, jax.tree.leaves(objective.params)
    frozen = jax.tree.leaves(objective.model_fn)
    parts = [parts_of(layer.product) for layer in found.layers]
    heads = [find_head(program, layer.product) for layer in found.layers]
    steps = tuple(dict.fromkeys(part.step for part in itertools.chain(*parts)))
    alone = [i for i, leaf in enumerate(found.leaves) if not found.layers[leaf.layer].product]

    def run(probes, exact, x_n):
        used = list(leaves)
        for i, leaf in zip(alone, exact, strict=True):
            used[i] = leaf
        single = [a[None] for a in jax.tree.leaves(x_n)]
        read = evaluate(program, frozen, used, single, dict(zip(steps, probes, strict=True)))
        operands = [[jnp.asarray(read(part.input_value)) for part in layer] for layer in parts]
        factors = [None if head is None else head.factors(read) for head in heads]
        return read(program.output)[0], (operands, factors)

    # Probes and leaves without a product get an axis of examples, weights do not: an example's
    # outputs depend only on its own probes, so one backward pass serves all with unbatched weights.
    num = len(jax.tree.leaves(x)[0])
    results = [program.avals[program.steps[step].results[0]] for step in steps]
    probes = [jnp.zeros((num, *z.shape), z.dtype) for z in results]
    copies = [jnp.broadcast_to(leaves[i], (num, *leaves[i].shape)) for i in alone]
    batched = jax.vmap(run, out_axes=(0, (0, None)))  # heads' factors do not depend on examples
    f, pullback, (operands, factors) = jax.vjp(
        lambda probes, copies: batched(probes, copies, x), probes, copies, has_aux=True
    )
    inputs = tuple(_inputs(layer, a, num) for layer, a in zip(found.layers, operands, strict=True))

    def pull(directions: Float[Array, "B R *event"]) -> Rows:
        gradients, exact = jax.vmap(pullback, in_axes=1, out_axes=1)(directions)
        at_step, lone = dict(zip(steps, gradients, strict=True)), iter(exact)
        pulled = [[at_step[part.step] for part in layer] or [next(lone)] for layer in parts]
        blocks = map(_block, found.layers, inputs, pulled)
        return Rows(tuple(blocks))

    def pull_outputs(columns: Int[Array, " R"]) -> Rows:
        shared = [
            head and _head_rows(head, scale, a, layer, columns)
            for head, scale, a, layer in zip(heads, factors, inputs, found.layers, strict=True)
        ]
        if None not in shared:
            return Rows(tuple(shared))
        units = unit_directions(f, columns)
        pulled = pull(jnp.broadcast_to(units, (num, *units.shape))).blocks
        return Rows(tuple(own or other for own, other in zip(shared, pulled, strict=True)))

    return Capture(f, tuple(layer.layout for layer in found.layers), inputs, pull, pull_outputs)


def _inputs(layer: Layer, operands: list[Array], num: int) -> Array:
    """Return a layer's inputs in canonical form; a bias appends an input of ones."""
    if layer.product is None:
        return jnp.ones((num, 1, 1, 1), jnp.float32)
    a = jax.vmap(layer.product.inputs)(*operands)
    if layer.layout.bias is None:
        return a
    return jnp.concatenate([a, jnp.ones((*a.shape[:-1], 1), a.dtype)], axis=-1)


def _block(layer: Layer, inputs: Array, gradients: list[Array]) -> Block:
    if layer.product is None:
        (g,) = gradients
        g = g.reshape(*g.shape[:2], 1, 1, layer.layout.size)
        return FactoredRows(inputs.astype(g.dtype), g, layer.layout)
    g = jax.vmap(jax.vmap(layer.product.outputs))(*gradients)
    if isinstance(layer.product, Lookup):
        return LookupRows(inputs, g[:, :, :, 0], layer.layout)
    return FactoredRows(inputs, g, layer.layout)


def _head_rows(
    head: Head, factors: Array, inputs: Array, layer: Layer, columns: Int[Array, " R"]
) -> HeadRows:
    places = head.places().at[columns].get(mode="clip")
    factors = factors.at[columns].get(mode="fill", fill_value=0)
    return HeadRows(inputs, places, factors, None, layer.layout)


def jacobian(objective: Objective, x: PyTree) -> tuple[Float[Array, "B *event"], Rows]:
    r"""Return the outputs `(B, *event)` and the rows of $J_n$, one for each flat output."""
    captured = capture(objective, x)
    f = captured.outputs
    columns = jnp.arange(math.prod(f.shape[1:]))
    directions = unit_directions(f, columns)
    return f, captured.pull(jnp.broadcast_to(directions, (len(f), *directions.shape)))


def unit_directions(f: Float[Array, "B *event"], columns: Array) -> Float[Array, "R *event"]:
    """Return unit vectors of one example's outputs by index; zeros beyond the last output."""
    num = math.prod(f.shape[1:])
    return jax.nn.one_hot(columns, num, dtype=f.dtype).reshape(-1, *f.shape[1:])
