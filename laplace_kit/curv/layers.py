r"""Layer capture: every layer's inputs and output gradients, for any JAX function.

Where a weight enters as $z = a W$, the gradient of a direction $s$ in the outputs is
$\sum_t a_t\, g_t^\top$ with $g = (\partial f / \partial z)^\top s$ over the positions $t$ that
share the weight. So one forward pass that records $a$ and adds a zero *probe* to $z$, and one
backward pass to the probes, give the Jacobian of all weights as factors, never formed. Parameters
that enter otherwise (biases, scales, shared or unrecognised ones) get their exact rows.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.curv.objective import Objective
from laplace_kit.curv.rows import DenseRows, FactoredRows, Layout, Rows
from laplace_kit.curv.uses import Program, Use, apply_step, find_uses, flatten_program


class Layer(NamedTuple):
    """How one leaf enters: its path, the kind of use, and for a factored weight the product."""

    path: str
    kind: str
    product: "WeightProduct | None"


class WeightProduct:
    """A weight in a matrix product `z = a W`, as the model writes it and in canonical form."""

    def __init__(self, program: Program, use: Use):
        self.step = use.step
        self._moves = use.moves
        operation = program.steps[use.step]
        (lhs, rhs), _ = operation.params["dimension_numbers"]
        self._weight_first = use.operand == 0
        self._weight_axes, self._input_axes = (lhs, rhs) if self._weight_first else (rhs, lhs)
        self.input_value = operation.operands[1 - use.operand]
        transposed = any(move.primitive.name == "transpose" for move in use.moves)
        leading = tuple(range(len(self._weight_axes)))
        # Whether the canonical matrix has its entries in another order than the leaf.
        self.permutes = transposed or tuple(self._weight_axes) != leading

    def to_matrix(self, leaf: Array) -> Float[Array, "I O"]:
        """Return the leaf as the matrix that multiplies."""
        for move in self._moves:
            (leaf,) = apply_step(move, (leaf,))
        return _contracted_first(leaf, self._weight_axes)

    def inputs(self, a: Array) -> Float[Array, "T I"]:
        """Return the other operand as positions by inputs."""
        return _contracted_first(a, self._input_axes).T

    def outputs(self, z: Array, num_outputs: int) -> Float[Array, "T O"]:
        """Return the product's value, or its gradient, as positions by outputs."""
        return z.reshape(num_outputs, -1).T if self._weight_first else z.reshape(-1, num_outputs)


def _contracted_first(operand: Array, axes: tuple[int, ...]) -> Float[Array, "I F"]:
    free = [axis for axis in range(operand.ndim) if axis not in axes]
    num = math.prod(operand.shape[axis] for axis in axes)
    return jnp.transpose(operand, (*axes, *free)).reshape(num, -1)


def find_layers(objective: Objective, x: PyTree) -> tuple[Program, tuple[Layer, ...]]:
    """Trace the model for one example and say how each free leaf enters it.

    Parameters
    ----------
    objective
        The model and its free parameters.
    x
        Inputs with a leading axis, or their shapes: values are not read.

    Returns
    -------
    program, layers
        The flat program of one example, and a layer for each leaf. Kinds: `"dense"` (a matrix
        product, whose gradient is factored); `"bias"`, `"scale"` (added to or multiplied with
        activations); `"shared"` (used more than once); `"unused"`; `"other"`. All but the first
        get exact per-example rows.
    """
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), x)
    program = flatten_program(objective.model_fn, objective.params, one)
    layers = []
    for path, uses in zip(tree.paths(objective.params), find_uses(program), strict=True):
        kind = _kind(program, uses)
        product = WeightProduct(program, uses[0]) if kind == "dense" else None
        layers.append(Layer(path, kind, product))
    return program, tuple(layers)


def _kind(program: Program, uses: tuple[Use, ...]) -> str:
    if len(uses) != 1:
        return "shared" if uses else "unused"
    (use,) = uses
    if use.step == len(program.steps):
        return "other"
    operation = program.steps[use.step]
    name = operation.primitive.name
    if name == "dot_general" and not use.repeated:
        _, batch = operation.params["dimension_numbers"]
        return "other" if batch[0] else "dense"
    return {"add": "bias", "sub": "bias", "mul": "scale"}.get(name, "other")


def capture(
    objective: Objective,
    x: PyTree,
    factor: Callable[[Float[Array, "B *event"]], Float[Array, "B R *event"]],
) -> tuple[Float[Array, "B *event"], Rows]:
    r"""Return the outputs and the rows $J_n^\top s_{nr}$ of every example, in factors.

    Parameters
    ----------
    objective
        The model and its free parameters.
    x
        Inputs with a leading axis B.
    factor
        From the outputs to R directions $s_{nr}$ in them for each example.

    Returns
    -------
    outputs, rows
        Cost: one forward pass, and one backward pass for each direction. Memory: activations for
        each example and direction, and the exact rows of leaves that are not factored.
    """
    program, layers = find_layers(objective, x)
    products = [layer.product for layer in layers if layer.product]
    leaves = jax.tree.leaves(objective.params)
    exact = [leaf for leaf, layer in zip(leaves, layers, strict=True) if not layer.product]

    def run(probes, exact, x_n):
        rest = iter(exact)
        used = [
            leaf if layer.product else next(rest)
            for leaf, layer in zip(leaves, layers, strict=True)
        ]
        single = [a[None] for a in jax.tree.leaves(x_n)]
        return _run(program, products, used, single, probes)

    # Probes and exact leaves get an axis of examples, weights do not: an example's outputs depend
    # on its own probes only, so that one backward pass serves them all with unbatched weights.
    num = len(jax.tree.leaves(x)[0])
    shapes = jax.eval_shape(lambda: jax.vmap(lambda x_n: run(None, exact, x_n)[1])(x))
    probes = [jnp.zeros(z.shape, z.dtype) for _, z in shapes]
    copies = [jnp.broadcast_to(leaf, (num, *leaf.shape)) for leaf in exact]
    f, pullback, recorded = jax.vjp(
        lambda probes, copies: jax.vmap(run)(probes, copies, x), probes, copies, has_aux=True
    )
    gradients, exact_rows = jax.vmap(pullback, in_axes=1, out_axes=1)(factor(f))
    inputs = [a for a, _ in recorded]
    factored, rows, blocks = iter(zip(inputs, gradients, strict=True)), iter(exact_rows), []
    for leaf, layer in zip(leaves, layers, strict=True):
        if layer.product:
            blocks.append(_factored_block(layer.product, leaf, *next(factored)))
        else:
            block = next(rows)
            blocks.append(DenseRows(block.reshape(*block.shape[:2], -1)))
    return f, Rows(tuple(blocks))


def _run(program: Program, products, leaves, inputs, probes):
    """Evaluate the program; add the probes to the products and record their inputs and values."""
    values = dict(program.constants)
    values.update(zip(program.leaves, leaves, strict=True))
    values.update(zip(program.inputs, inputs, strict=True))

    def read(operand):
        return operand.val if isinstance(operand, Literal) else values[operand]

    numbers = {product.step: number for number, product in enumerate(products)}
    recorded = [None] * len(products)
    for position, step in enumerate(program.steps):
        results = apply_step(step, [read(operand) for operand in step.operands])
        if position in numbers:
            number = numbers[position]
            recorded[number] = (read(products[number].input_value), results[0])
            if probes is not None:
                results = (results[0] + probes[number],)
        values.update(zip(step.results, results, strict=True))
    return read(program.output)[0], recorded


def _factored_block(product: WeightProduct, leaf: Array, inputs: Array, gradients: Array):
    """Return the rows of one weight: in factors where one position uses it, else multiplied out."""
    layout = Layout(product.to_matrix, product.permutes, leaf)
    a = jax.vmap(product.inputs)(inputs)
    g = jax.vmap(jax.vmap(lambda z: product.outputs(z, layout.shape[1])))(gradients)
    if a.shape[1] == 1:
        return FactoredRows(a[:, 0], g[:, :, 0], layout)
    return DenseRows(layout.to_flat(jnp.einsum("bti,brto->brio", a, g)))


def jacobian(objective: Objective, x: PyTree) -> tuple[Float[Array, "B *event"], Rows]:
    r"""Return the outputs `(B, *event)` and the rows of $J_n$, one for each flat output."""

    def units(f):
        directions = unit_directions(f)
        return jnp.broadcast_to(directions, (len(f), *directions.shape))

    return capture(objective, x, units)


def unit_directions(f: Float[Array, "B *event"]) -> Float[Array, "C *event"]:
    """Return the unit vectors of one example's outputs, in flat order."""
    num = math.prod(f.shape[1:])
    return jnp.eye(num, dtype=f.dtype).reshape(num, *f.shape[1:])


# --- memory -------------------------------------------------------------------------------------


def rows_bytes(objective: Objective, x: PyTree, num_directions: int) -> int:
    """Estimate the bytes of one example's rows, twice: they are made, and used."""
    rows = _rows_of_one(objective, x, num_directions)
    return 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(rows))


def gram_bytes(objective: Objective, x: PyTree, num_directions: int) -> int:
    """Estimate the bytes that one example takes while products of its rows are summed."""
    factored = _factored_blocks(objective, x, num_directions)
    widths = [(b.inputs.size, b.gradients.size // num_directions) for b in factored]
    largest = max((inputs**2 + outputs**2 for inputs, outputs in widths), default=0)
    itemsize = tree.dtype(objective.params).itemsize
    return rows_bytes(objective, x, num_directions) + largest * itemsize


def projection_bytes(objective: Objective, x: PyTree, num_directions: int, num_vectors: int) -> int:
    """Estimate the bytes that one example takes while its rows are projected on vectors."""
    factored = _factored_blocks(objective, x, num_directions)
    widths = sum(block.gradients.size // num_directions for block in factored)
    itemsize = max(tree.dtype(objective.params).itemsize, 4)
    projected = num_vectors * (widths + 2 * num_directions) * itemsize
    return rows_bytes(objective, x, num_directions) + projected


def _factored_blocks(objective, x, num_directions) -> list[FactoredRows]:
    blocks = _rows_of_one(objective, x, num_directions).blocks
    return [block for block in blocks if isinstance(block, FactoredRows)]


def _rows_of_one(objective: Objective, x: PyTree, num_directions: int) -> Rows:
    """Return the shapes of one example's rows; nothing is computed, and the trace is kept."""
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), x)
    return _capture_zeros.eval_shape(objective, one, num_directions=num_directions)


@partial(jax.jit, static_argnames="num_directions")
def _capture_zeros(objective, x, num_directions):
    def directions(f):
        return jnp.zeros((1, num_directions, *f.shape[1:]), f.dtype)

    return capture(objective, x, directions)[1]
