"""The layout of a layer's matrix in flat vectors: slices, and rearrangements of their entries."""

import dataclasses
import math
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_Array = Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Move:
    """A rearrangement: `"reshape"` to a shape, `"transpose"` by axes, or `"flip"` along axes."""

    kind: str
    argument: tuple[int, ...]

    def apply(self, array: _Array, num_axes: int) -> _Array:
        """Rearrange the first `num_axes` axes; later axes are kept."""
        rest = array.shape[num_axes:]
        if self.kind == "reshape":
            return array.reshape((*self.argument, *rest))
        if self.kind == "transpose":
            return array.transpose((*self.argument, *range(num_axes, array.ndim)))
        reverse, keep = slice(None, None, -1), slice(None)
        return array[tuple(reverse if axis in self.argument else keep for axis in range(num_axes))]

    def shape_after(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of an array of shape `shape` after the move."""
        if self.kind == "transpose":
            return tuple(shape[axis] for axis in self.argument)
        return self.argument if self.kind == "reshape" else shape

    def inverse(self, shape: tuple[int, ...]) -> "Move":
        """Return the move back to an array of shape `shape`."""
        if self.kind == "transpose":
            return Move("transpose", tuple(int(axis) for axis in np.argsort(self.argument)))
        return Move("reshape", shape) if self.kind == "reshape" else self


@dataclasses.dataclass(frozen=True)
class Slot:
    """One leaf in the flat vector: where it starts, its shape, and the moves that follow."""

    start: int
    shape: tuple[int, ...]
    moves: tuple[Move, ...] = ()

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    def read(self, flat: Float[_Array, "P *rest"]) -> Float[_Array, "..."]:
        """Return the leaf's entries, moved."""
        shape = self.shape
        leaf = flat[self.start : self.start + self.size].reshape((*shape, *flat.shape[1:]))
        for move in self.moves:
            leaf, shape = move.apply(leaf, len(shape)), move.shape_after(shape)
        return leaf

    def write(self, moved: Float[Array, "..."]) -> Float[Array, "n *rest"]:
        """Return the leaf's part of a flat vector: the inverse of `read`."""
        shapes = [self.shape]
        for move in self.moves:
            shapes.append(move.shape_after(shapes[-1]))
        rest = moved.shape[len(shapes[-1]) :]
        for move, before, after in zip(
            reversed(self.moves), shapes[-2::-1], shapes[:0:-1], strict=True
        ):
            moved = move.inverse(before).apply(moved, len(after))
        return moved.reshape(self.size, *rest)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layer's matrices `(G, I, O)` in flat vectors; a bias is their last row of inputs.

    `weight` moves to `(G, I, O)`, without the bias, and `bias` to `(G, 1, O)`. Compared by value,
    so that programs compiled for one trace of a model serve the next.
    """

    weight: Slot
    bias: Slot | None
    shape: tuple[int, int, int]

    @property
    def size(self) -> int:
        """The number of parameters."""
        return math.prod(self.shape)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slot of the weight, and that of the bias if there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def to_matrix(self, flat: Float[Array, "P *rest"]) -> Float[Array, "G I O *rest"]:
        """Return the layer's matrices from flat vectors, which run along the first axis."""
        parts = [slot.read(flat) for slot in self.slots]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def pieces(self, matrix: Float[Array, "G I O *rest"]) -> list[tuple[int, Array]]:
        """Return the layer's parts of a flat vector, each with its start."""
        if self.bias is None:
            return [(self.weight.start, self.weight.write(matrix))]
        return [
            (self.weight.start, self.weight.write(matrix[:, :-1])),
            (self.bias.start, self.bias.write(matrix[:, -1:])),
        ]


def to_flat(layouts: Iterable[Layout], matrices: Iterable[Array]) -> Float[Array, "P *rest"]:
    """Return vectors in flat order from the matrices `(G, I, O, *rest)` of all layers."""
    pairs = zip(layouts, matrices, strict=True)
    pieces = [piece for layout, matrix in pairs for piece in layout.pieces(matrix)]
    return jnp.concatenate([part for _, part in sorted(pieces, key=lambda piece: piece[0])])
