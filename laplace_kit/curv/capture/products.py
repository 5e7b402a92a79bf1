r"""Products with a weight, $z_t = a_t W$, in the model's form and in one canonical form.

Canonical inputs are `(T, G, I)`: positions that share the weight, groups with their own matrix, and
the inputs that are summed over. Outputs are `(T, G, O)`, the weight's matrices `(G, I, O)`.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jaxtyping import Array, Float, Int

from laplace_kit.curv.capture.layout import Move
from laplace_kit.curv.capture.uses import Use, as_moves
from laplace_kit.program import Program, Step

_Array = Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class MatrixProduct:
    """A `dot_general`: contractions over any axes, batch axes as groups.

    `axes` are those of the other operand, batch, free and contracted; the result has the batch
    axes first and then the free ones of the left operand and of the right.
    """

    step: int
    input_value: int | Literal
    moves: tuple[Move, ...]
    shape: tuple[int, int, int]
    axes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    weight_first: bool

    def inputs(self, a: Array) -> Float[Array, "T G I"]:
        """Return the other operand as inputs."""
        batch, free, contracted = self.axes
        groups, width, _ = self.shape
        return jnp.transpose(a, (*free, *batch, *contracted)).reshape(-1, groups, width)

    def outputs(self, z: _Array) -> _Array:
        """Return the product's value, or its gradient, as outputs `(T, G, O)`."""
        groups, _, out = self.shape
        if self.weight_first:
            return z.reshape(groups, out, -1).transpose(2, 0, 1)
        return z.reshape(groups, -1, out).transpose(1, 0, 2)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A `conv_general_dilated` in any number of dimensions: positions are those of the result."""

    step: int
    input_value: int | Literal
    moves: tuple[Move, ...]
    shape: tuple[int, int, int]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    input_spec: tuple[int, ...]
    output_spec: tuple[int, ...]

    def inputs(self, a: Array) -> Float[Array, "T G I"]:
        """Return the patches under the window, by strided slices: exact in any precision."""
        a = jnp.transpose(a, self.input_spec)  # (N, C, *space)
        holes = [
            (low, high, dilation - 1)
            for (low, high), dilation in zip(self.padding, self.input_dilation, strict=True)
        ]
        a = jax.lax.pad(a, jnp.zeros((), a.dtype), [(0, 0, 0), (0, 0, 0), *holes])
        dilation, strides = np.array(self.kernel_dilation), np.array(self.strides)
        reach = dilation * (np.array(self.window) - 1)
        sizes = (np.array(a.shape[2:]) - reach - 1) // strides + 1

        def under(offset: tuple[int, ...]) -> Array:
            start = dilation * offset
            stop = start + strides * (sizes - 1) + 1
            return jax.lax.slice(a, (0, 0, *start), (*a.shape[:2], *stop), (1, 1, *strides))

        offsets = itertools.product(*(range(k) for k in self.window))
        patches = jnp.stack([under(offset) for offset in offsets], axis=2)  # (N, C, K, *out)
        groups, width, _ = self.shape
        return jnp.moveaxis(patches, (1, 2), (-2, -1)).reshape(-1, groups, width)

    def outputs(self, z: _Array) -> _Array:
        """Return the convolution's value, or its gradient, as outputs `(T, G, O)`."""
        batch, feature, *space = self.output_spec
        groups, _, out = self.shape
        return z.transpose(batch, *space, feature).reshape(-1, groups, out)


@dataclasses.dataclass(frozen=True)
class Lookup:
    """A `gather` of whole rows of a table: positions are the indices."""

    step: int
    input_value: int | Literal
    moves: tuple[Move, ...]
    shape: tuple[int, int, int]
    offset_axes: tuple[int, ...]
    clips: bool

    def inputs(self, indices: Array) -> Int[Array, " T"]:
        """Return the indices of the rows looked up; the number of rows if out of range."""
        flat = indices.reshape(-1)
        num = self.shape[1]
        if self.clips:
            return jnp.clip(flat, 0, num - 1)
        return jnp.where((flat >= 0) & (flat < num), flat, num)

    def outputs(self, z: _Array) -> _Array:
        """Return the rows looked up, or their gradient, as outputs `(T, 1, O)`."""
        positions = [axis for axis in range(z.ndim) if axis not in self.offset_axes]
        return z.transpose(*positions, *self.offset_axes).reshape(-1, 1, self.shape[2])


@dataclasses.dataclass(frozen=True)
class Stack:
    """Products of one shape as one, each of them a group.

    Their weights are the slices of one leaf, as in a scan over layers, or separate leaves.
    """

    parts: tuple[MatrixProduct | Convolution, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of groups of all parts, inputs and outputs, `(G, I, O)`."""
        groups, width, out = self.parts[0].shape
        return len(self.parts) * groups, width, out

    def moves_of_slices(self, shape: tuple[int, ...]) -> tuple[Move, ...]:
        """Return the moves of the slices, applied to all of them at once, of a leaf's shape."""
        return (
            Move("reshape", (len(self.parts), 1, *shape[1:])),
            *(_lifted(move, len(self.parts)) for move in self.parts[0].moves),
            Move("reshape", self.shape),
        )

    def inputs(self, *operands: Array) -> Float[Array, "T G I"]:
        """Return the parts' inputs."""
        pairs = zip(self.parts, operands, strict=True)
        return jnp.concatenate([part.inputs(a) for part, a in pairs], axis=1)

    def outputs(self, *values: _Array) -> _Array:
        """Return the parts' values, or gradients, as outputs `(T, G, O)`."""
        pairs = zip(self.parts, values, strict=True)
        return jnp.concatenate([part.outputs(z) for part, z in pairs], axis=1)


def _lifted(move: Move, num: int) -> Move:
    """Return the move of a stack that moves each slice by `move`."""
    if move.kind == "reshape":
        return Move("reshape", (num, *move.argument))
    axes = tuple(axis + 1 for axis in move.argument)
    return Move(move.kind, (0, *axes) if move.kind == "transpose" else axes)


Product = MatrixProduct | Convolution | Lookup | Stack


def parts_of(product: Product | None) -> tuple[MatrixProduct | Convolution | Lookup, ...]:
    """Return the single products that a product consists of."""
    if product is None:
        return ()
    return product.parts if isinstance(product, Stack) else (product,)


def read_product(program: Program, use: Use) -> MatrixProduct | Convolution | Lookup | None:
    """Return the product that uses a weight, or `None` if the use is not one of these."""
    if use.repeated or use.step == len(program.steps):
        return None
    step = program.steps[use.step]
    read = _READERS.get(step.primitive.name)
    return read and read(program, use, step)


def _matrix_product(program: Program, use: Use, step: Step) -> MatrixProduct:
    contracted, batch = step.params["dimension_numbers"]
    other = 1 - use.operand
    operand = step.operands[use.operand]
    shape = program.shape(operand)
    groups, width = batch[use.operand], contracted[use.operand]
    out = [axis for axis in range(len(shape)) if axis not in (*groups, *width)]
    matrix = tuple(math.prod(shape[axis] for axis in axes) for axes in (groups, width, out))
    partner = step.operands[other]
    taken = (*batch[other], *contracted[other])
    free = tuple(axis for axis in range(len(program.shape(partner))) if axis not in taken)
    return MatrixProduct(
        step=use.step,
        input_value=partner,
        moves=_canonical(program, use, (*groups, *width, *out), matrix),
        shape=matrix,
        axes=(tuple(batch[other]), free, tuple(contracted[other])),
        weight_first=use.operand == 0,
    )


def _convolution(program: Program, use: Use, step: Step) -> Convolution | None:
    params = step.params
    if use.operand != 1 or params["batch_group_count"] != 1:
        return None
    specs = params["dimension_numbers"]
    out, inner, *space = specs.rhs_spec
    shape = program.shape(step.operands[1])
    window = tuple(shape[axis] for axis in space)
    groups, width = params["feature_group_count"], shape[inner] * math.prod(window)
    matrix = (groups, width, shape[out] // groups)
    grouped = (groups, matrix[2], width)
    moves = _canonical(program, use, (out, inner, *space), grouped)
    return Convolution(
        step=use.step,
        input_value=step.operands[0],
        moves=(*moves, Move("transpose", (0, 2, 1))),
        shape=matrix,
        window=window,
        strides=tuple(params["window_strides"]),
        padding=tuple((low, high) for low, high in params["padding"]),
        input_dilation=tuple(params["lhs_dilation"]),
        kernel_dilation=tuple(params["rhs_dilation"]),
        input_spec=tuple(specs.lhs_spec),
        output_spec=tuple(specs.out_spec),
    )


def _lookup(program: Program, use: Use, step: Step) -> Lookup | None:
    numbers: Any = step.params["dimension_numbers"]
    shape = program.shape(step.operands[0])
    whole_rows = (
        use.operand == 0
        and tuple(numbers.start_index_map) == tuple(numbers.collapsed_slice_dims) == (0,)
        and not numbers.operand_batching_dims
        and tuple(step.params["slice_sizes"]) == (1, *shape[1:])
    )
    if not whole_rows:
        return None
    matrix = (1, shape[0], math.prod(shape[1:]))
    return Lookup(
        step=use.step,
        input_value=step.operands[1],
        moves=_canonical(program, use, tuple(range(len(shape))), matrix),
        shape=matrix,
        offset_axes=tuple(numbers.offset_dims),
        clips=step.params["mode"] == jax.lax.GatherScatterMode.CLIP,
    )


def _canonical(
    program: Program, use: Use, axes: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[Move, ...]:
    """Return the moves from the leaf to the operand, and on to the matrices."""
    moves = as_moves(use.moves, program)
    if axes != tuple(range(len(axes))):
        moves = (*moves, Move("transpose", axes))
    return (*moves, Move("reshape", shape))


_READERS = {
    "dot_general": _matrix_product,
    "conv_general_dilated": _convolution,
    "gather": _lookup,
}
