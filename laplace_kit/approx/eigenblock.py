r"""One layer in its Kronecker eigenbasis: its curvature and its posterior.

With $A \otimes B = Q (\lambda_A \otimes \lambda_B) Q^\top$, $Q = Q_A \otimes Q_B$, a prior
precision $\delta$ shared by a layer is added to the eigenvalues. If the bias has its own precision
$\delta_b$, the precision for output direction o is $C_o + (\delta_b - \delta) u u^\top$ in the
eigenbasis, with $C_o = \operatorname{diag}(s_{\cdot o} + \delta)$ and $u = Q_A^\top e$ for the
bias's unit vector $e$: a rank-one update, still exact. For precisions that differ within a weight
see `dense_block.py`.
"""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from laplace_kit.approx.dense_block import MOST_ENTRIES, DenseBlock
from laplace_kit.curv.capture.blocks import Block
from laplace_kit.curv.capture.layout import Layout, Slot, Slots
from laplace_kit.curv.eigenbasis import from_basis, to_basis
from laplace_kit.storage import storable
from laplace_kit.tree import pytree_dataclass, replace


@storable("Eigenblock")
@pytree_dataclass(static=("layout",))
class Eigenblock:
    """One layer's curvature: eigenvalues, and bases of inputs and outputs (`None`: identity)."""

    left: Float[Array, "G I I"] | None
    right: Float[Array, "G O O"] | None
    values: Float[Array, "G I O"]
    layout: Layout

    @property
    def bases(self) -> tuple[Array | None, Array | None]:
        """The bases of inputs and of outputs."""
        return self.left, self.right

    def scaled(self, factor: float | Float[Array, ""]) -> "Eigenblock":
        """Return the curvature times a positive number."""
        return replace(self, values=self.values * factor)

    def mv(self, matrix: Float[Array, "G I O *K"]) -> Float[Array, "G I O *K"]:
        r"""Return $Q \operatorname{diag}(s) Q^\top m$, also for K matrices along the last axis."""
        rotated = to_basis(self.left, self.right, matrix)
        values = self.values.reshape(*self.values.shape, *(1,) * (matrix.ndim - 3))
        return from_basis(self.left, self.right, values * rotated)

    def to_dense(self) -> Float[Array, "M n n"]:
        """Return the curvature as dense matrices, one for each set of coupled parameters."""
        num, size = self._coupling
        eye = jnp.eye(size, dtype=self.values.dtype).reshape(-1, self.layout.shape[2], size)
        with jax.default_matmul_precision("highest"):
            columns = self.mv(jnp.broadcast_to(eye, (*self.layout.shape, size)))
        return columns.reshape(num, size, size)

    @property
    def can_be_dense(self) -> bool:
        """Whether the layer, or each of several in one, is small enough to be multiplied out."""
        num, size = self._coupling
        return num * size**2 <= MOST_ENTRIES * len(self.layout.parts)

    @property
    def is_diagonal(self) -> bool:
        """Whether the curvature is diagonal without a change of basis."""
        return self.left is None and self.right is None

    def represents(self, precision: np.ndarray) -> bool:
        """Return whether a prior precision is diagonal in the eigenbasis, the bias aside."""
        parts = ((slot.read(precision), axes) for slot, axes in self._mixed_axes)
        return all(np.all(v.max(axis=axes) == v.min(axis=axes)) for v, axes in parts)

    def plus(
        self, precision: Float[Array, " P"], *, every_derivative: bool = False
    ) -> "EigenPrecision":
        r"""Return the posterior precision; NaN where the prior's is not diagonal in the eigenbasis.

        Among entries that share a prior precision, the first gets the derivative. With
        `every_derivative` all entries get it in proportion to their variances, which are computed
        for that purpose; this is correct for functions of the log-determinant only, as
        $\partial \log |H + d| / \partial d_i = \Sigma_{ii}$.
        """
        found = self._add(*self._shared(precision))
        if not every_derivative:
            return found
        with jax.default_matmul_precision("highest"):
            variance = jax.lax.stop_gradient(found.posterior().variance())
        parts = [variance] if self.layout.bias is None else [variance[:, :-1], variance[:, -1:]]
        return self._add(*self._shared(precision, parts))

    def _shared(
        self, precision: Array, variances: list[Array] | None = None
    ) -> list[tuple[Array, Array]]:
        """Return the shared prior precisions of the weight and of the bias, if there is one.

        Each is one value per group and per entry of an axis that is not rotated, with a mask of the
        entries that have it. Reducing the mask to one boolean would be slow to compile.
        """
        shared = []
        for index, (slot, axes) in enumerate(self._mixed_axes):
            values = slot.read(precision)
            first = values[tuple(slice(0, 1 if axis in axes else None) for axis in range(3))]
            value = first
            if variances is not None:
                share = variances[index] / variances[index].sum(axis=axes, keepdims=True)
                value = first + jnp.sum(share * (values - first), axis=axes, keepdims=True)
            shared.append((value, values == first))
        return shared

    def _add(
        self, weight: tuple[Array, Array], bias: tuple[Array, Array] | None = None
    ) -> "EigenPrecision":
        """Return the sum with a prior precision; NaN where an entry differs from the shared value.

        The rotation spreads the NaN to all entries with which that entry is mixed.
        """
        value, has_it = weight
        if bias is None:
            return EigenPrecision(self, self.values + jnp.where(has_it, value, jnp.nan), None, None)
        if self.left is None:  # the bias is a row of its own
            parts = [jnp.where(has_it, value, jnp.nan), jnp.where(bias[1], bias[0], jnp.nan)]
            rows = [
                jnp.broadcast_to(part, (*part.shape[:2], self.layout.shape[2])) for part in parts
            ]
            return EigenPrecision(self, self.values + jnp.concatenate(rows, axis=1), None, None)
        has_it = jnp.pad(has_it, ((0, 0), (0, 1), (0, 0)), constant_values=True)
        diagonal = self.values + jnp.where(has_it, value, jnp.nan)
        rest = jnp.where(bias[1], bias[0], jnp.nan) - value
        return EigenPrecision(self, diagonal, self.left[:, -1, :, None], rest)

    @property
    def _coupling(self) -> tuple[int, int]:
        """The number of sets of coupled parameters, and the size of each set."""
        size = self.layout.shape[2] * (1 if self.left is None else self.layout.shape[1])
        return self.layout.size // size, size

    @property
    def _mixed_axes(self) -> list[tuple[Slot | Slots, tuple[int, ...]]]:
        """The weight, and the bias if there is one, each with its axes of `(G, I, O)` that mix."""
        bases = ((1, self.left), (2, self.right))
        rotated = tuple(axis for axis, basis in bases if basis is not None)
        return [(slot, rotated) for slot in self.layout.slots]


Blocks = TypeVar("Blocks", "Eigenblock", "PosteriorBlock | DenseBlock")


def single(blocks: Iterable[Blocks]) -> tuple[Blocks, ...]:
    """Return a block for each single layer, in the order of flat vectors.

    Which layers are one block may depend on the shapes of the inputs, and on the release.
    """
    parts = []
    for block in blocks:
        layouts = block.layout.parts
        for place, layout in enumerate(layouts):
            cut = partial(_part, num=len(layouts), place=place)
            parts.append(replace(jax.tree.map(cut, block), layout=layout))
    return tuple(sorted(parts, key=lambda block: block.layout.weight.start))


def _part(array: Array, num: int, place: int) -> Array:
    return array.reshape(num, -1, *array.shape[1:])[place]


class EigenPrecision(NamedTuple):
    r"""One layer's posterior precision, $C_o + (\delta_b - \delta) u u^\top$ in its eigenbasis.

    `diagonal` is $C$ `(G, I, O)`; `unit` $u$ `(G, I, 1)` and `rest` $\delta_b - \delta$ `(G, 1, O)`
    are `None` without a bias.
    """

    block: Eigenblock
    diagonal: Array
    unit: Array | None
    rest: Array | None

    @property
    def growth(self) -> Float[Array, "G 1 O"]:
        """The factor by which the bias's part multiplies the determinant."""
        squares = jnp.einsum("gio,gio->go", self.unit / self.diagonal, self.unit)
        return 1 + self.rest * squares[:, None]

    def log_det_terms(self) -> tuple[Float[Array, ""], ...]:
        """Return the terms whose sum is the log-determinant."""
        diagonal = jnp.sum(jnp.log(self.diagonal))
        return (diagonal,) if self.unit is None else (diagonal, jnp.sum(jnp.log(self.growth)))

    def posterior(self) -> "PosteriorBlock":
        """Return the covariance."""
        direction = gain = root_gain = None
        if self.unit is not None:
            direction = self.unit / self.diagonal
            growth, rest = self.growth[:, 0], self.rest[:, 0]
            root = jnp.sqrt(growth)
            gain, root_gain = -rest / growth, -rest / (root * (1 + root))
        left, right, layout = self.block.left, self.block.right, self.block.layout
        std = 1 / jnp.sqrt(self.diagonal)
        return PosteriorBlock(left, right, std, direction, gain, root_gain, layout)


@storable("PosteriorBlock")
@pytree_dataclass(static=("layout",))
class PosteriorBlock:
    r"""One layer's covariance, $Q\, (C^{-1} + \gamma w w^\top)\, Q^\top$ for each output direction.

    `std` is $C^{-1/2}$; `direction` $w = C^{-1} u$; `gain` $\gamma$ and `root_gain` $\beta$, with
    the root $Q C^{-1/2} (I + \beta v v^\top)$, $v = C^{-1/2} u$; `None` without a bias.
    """

    left: Float[Array, "G I I"] | None
    right: Float[Array, "G O O"] | None
    std: Float[Array, "G I O"]
    direction: Float[Array, "G I O"] | None
    gain: Float[Array, "G O"] | None
    root_gain: Float[Array, "G O"] | None
    layout: Layout

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the covariance."""
        return self.std.dtype

    @property
    def num_projections(self) -> int:
        """The number of vectors on which a row is projected for its output covariance."""
        return 1

    def scale_mv(self, matrix: Float[Array, "G I O K"]) -> Float[Array, "G I O K"]:
        r"""Return $A m$ with the root $A$."""
        return from_basis(self.left, self.right, self.std[..., None] * self.turn(matrix))

    def scale_rmv(self, matrix: Float[Array, "G I O K"]) -> Float[Array, "G I O K"]:
        r"""Return $A^\top m$."""
        return self.turn(self.std[..., None] * to_basis(self.left, self.right, matrix))

    def turn(self, matrix: Float[Array, "G I O K"]) -> Float[Array, "G I O K"]:
        r"""Return $(I + \beta v v^\top) m$ for each output direction."""
        if self.direction is None:
            return matrix
        v = self.direction / self.std
        inner = jnp.einsum("gio,giok->gok", v, matrix) * self.root_gain[..., None]
        return matrix + v[..., None] * inner[:, None]

    def variance(self) -> Float[Array, "G I O"]:
        """Return the marginal variances."""
        variance = self.std**2
        if self.left is not None:
            variance = jnp.einsum("gij,gjo->gio", self.left**2, variance)
        if self.direction is not None:
            along = jnp.einsum("gij,gjo->gio", self.left, self.direction)
            variance = variance + self.gain[:, None] * along**2
        if self.right is None:
            return variance
        return jnp.einsum("gpo,gio->gip", self.right**2, variance)

    def output_covariance(self, rows: Block) -> Float[Array, "B R R"]:
        """Return the layer's part of the covariance of outputs."""
        rotated = rows.rotate(self.left, self.right)
        covariance = rotated.outer(self.std**2)
        if self.direction is None:
            return covariance
        along = rotated.along_inputs(self.direction)
        return covariance + jnp.einsum("brgo,go,bsgo->brs", along, self.gain, along)

    def cross_covariance(self, rows: Block, other: Block) -> Float[Array, "B R D S"]:
        """Return the layer's part of the covariance between two batches of outputs."""
        rotated, others = (part.rotate(self.left, self.right) for part in (rows, other))
        covariance = rotated.cross(others, self.std**2)
        if self.direction is None:
            return covariance
        along, across = (part.along_inputs(self.direction) for part in (rotated, others))
        return covariance + jnp.einsum("brgo,go,dsgo->brds", along, self.gain, across)

    def output_variance(self, rows: Block) -> Float[Array, "B R"]:
        """Return the diagonals of the output covariance, at least zero."""
        rotated = rows.rotate(self.left, self.right)
        variance = rotated.squares(self.std**2)
        if self.direction is None:
            return variance
        return jnp.maximum(variance + rotated.squares_along(self.direction, self.gain), 0)
