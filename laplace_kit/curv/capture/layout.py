"""The layout of a layer's matrix in flat vectors: slices, and rearrangements of their entries."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

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

    def put(self, flat: Float[Array, "P *rest"], moved: Float[Array, "..."]) -> Array:
        """Return flat vectors with the leaf's entries set."""
        own = self.write(moved).astype(flat.dtype)
        return jax.lax.dynamic_update_slice_in_dim(flat, own, self.start, axis=0)


@dataclasses.dataclass(frozen=True)
class Slots:
    """Leaves of one shape that are moved alike, each a group: where they start, and the first."""

    starts: tuple[int, ...]
    first: Slot

    def read(self, flat: Float[_Array, "P *rest"]) -> Float[_Array, "..."]:
        """Return the leaves' entries, moved, one after the other along the first axis."""
        own = dataclasses.replace(self.first, start=0)
        if isinstance(flat, np.ndarray):
            return np.concatenate([own.read(flat[start:]) for start in self.starts])

        def read(start: Int[Array, ""]) -> Float[Array, "..."]:
            return own.read(jax.lax.dynamic_slice_in_dim(flat, start, own.size))

        leaves = jax.vmap(read)(jnp.asarray(self.starts))  # one gather, and not a slice for each
        return leaves.reshape(-1, *leaves.shape[2:])

    def put(self, flat: Float[Array, "P *rest"], moved: Float[Array, "..."]) -> Array:
        """Return flat vectors with the leaves' entries set."""
        cut = jax.vmap(self.first.write)(moved.reshape(len(self.starts), -1, *moved.shape[1:]))
        axes = jax.lax.ScatterDimensionNumbers(tuple(range(1, cut.ndim)), (), (0,))
        starts = jnp.asarray(self.starts)[:, None]
        return jax.lax.scatter(flat, starts, cut.astype(flat.dtype), axes, unique_indices=True)

    @property
    def parts(self) -> tuple[Slot, ...]:
        """The slots of the single leaves."""
        return tuple(dataclasses.replace(self.first, start=start) for start in self.starts)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layer's matrices `(G, I, O)` in flat vectors; a bias is their last row of inputs.

    `weight` moves to `(G, I, O)`, without the bias, and `bias` to `(G, 1, O)`. Compared by value,
    so that programs compiled for one trace of a model serve the next.
    """

    weight: Slot | Slots
    bias: Slot | Slots | None
    shape: tuple[int, int, int]

    @property
    def size(self) -> int:
        """The number of parameters."""
        return math.prod(self.shape)

    @property
    def slots(self) -> tuple[Slot | Slots, ...]:
        """The slot of the weight, and that of the bias if there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def to_matrix(self, flat: Float[Array, "P *rest"]) -> Float[Array, "G I O *rest"]:
        """Return the layer's matrices from flat vectors, which run along the first axis."""
        parts = [slot.read(flat) for slot in self.slots]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def split(
        self, matrix: Float[Array, "G I O *rest"]
    ) -> list[tuple[Slot | Slots, Float[Array, "G _ O *rest"]]]:
        """Return each slot with its part of the layer's matrices."""
        if self.bias is None:
            return [(self.weight, matrix)]
        return [(self.weight, matrix[:, :-1]), (self.bias, matrix[:, -1:])]

    @property
    def parts(self) -> tuple["Layout", ...]:
        """The layouts of the single layers, if this is one of several."""
        if isinstance(self.weight, Slot):
            return (self,)
        weights = self.weight.parts
        biases = (None,) * len(weights) if self.bias is None else self.bias.parts
        shape = (self.shape[0] // len(weights), *self.shape[1:])
        return tuple(Layout(*slots, shape) for slots in zip(weights, biases, strict=True))


def together(layouts: Sequence[Layout]) -> Layout:
    """Return the layout of layers that are laid out alike, each with groups of its own."""
    weight, bias = (
        None if slots[0] is None else Slots(tuple(slot.start for slot in slots), slots[0])
        for slots in zip(*((part.weight, part.bias) for part in layouts), strict=True)
    )
    groups, width, out = layouts[0].shape
    return Layout(weight, bias, (len(layouts) * groups, width, out))


def to_flat(layouts: Iterable[Layout], matrices: Iterable[Array]) -> Float[Array, "P *rest"]:
    """Return vectors in flat order from the matrices `(G, I, O, *rest)` of all layers."""
    pairs = list(zip(layouts, matrices, strict=True))
    parts = [part for layout, matrix in pairs for part in layout.split(matrix)]
    if all(isinstance(slot, Slot) for slot, _ in parts):
        in_order = sorted(parts, key=lambda part: part[0].start)
        return jnp.concatenate([slot.write(moved) for slot, moved in in_order])
    size, rest = sum(layout.size for layout, _ in pairs), parts[0][1].shape[3:]
    flat = jnp.zeros((size, *rest), jnp.result_type(*(moved for _, moved in parts)))
    for slot, moved in parts:
        flat = slot.put(flat, moved)
    return flat
