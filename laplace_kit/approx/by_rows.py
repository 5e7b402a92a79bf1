r"""The full posterior with its matrix spread over devices by rows: for P beyond what one holds.

The matrix, its Cholesky factor and the root of the covariance have P rows of P entries, of which
each of D devices has a share, filled up to a multiple Q of D by rows of zeros. Everything is exact
and the same as in `full.py`, up to the order of summation.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit import row_blocks
from laplace_kit.approx.posterior import Posterior, Spectrum, Structure, keep, without_rounding
from laplace_kit.approx.spec import Sizes
from laplace_kit.curv.capture.blocks import Block, FactoredRows, HeadRows
from laplace_kit.curv.capture.rows import Rows
from laplace_kit.curv.dense_rows import dense_rows
from laplace_kit.curv.ggn import GaussNewtonOperator
from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.placement import (
    Placement,
    automatic,
    by_last_axis,
    by_rows,
    everywhere,
    num_held,
    placement_of,
)
from laplace_kit.storage import storable
from laplace_kit.tree import pytree_dataclass, replace


def _read(kind: type, parts: dict[str, Any]) -> "RowsStructure | RowsPosterior":
    """Return what was read, without rows of zeros where it lies on one device."""
    rows, size = parts["rows"], parts["size"]
    placement = placement_of(rows)
    return kind(rows if placement else rows[:size, :size], size, placement)


@storable(
    "RowsStructure",
    write=lambda value: {"rows": value.matrix, "size": value.size},
    read=lambda parts: _read(RowsStructure, parts),
)
@pytree_dataclass(static=("size", "placement"))
class RowsStructure(Structure):
    """The curvature as a dense symmetric matrix, by rows; beyond `size` rows are zero."""

    matrix: Float[Array, "Q Q"]
    size: int
    placement: Placement | None

    @property
    def name(self):
        return "Full"

    def mv(self, vector):
        return automatic(self._mv, self.matrix, vector)

    def _mv(self, matrix, vector):
        with jax.default_matmul_precision("highest"):
            product = by_rows(matrix @ self._filled(vector, 0.0), self.placement)
        return everywhere(product, self.placement)[: self.size]

    def log_det(self, precision, jitter=0.0):
        def log_det(matrix, precision, jitter):
            factor = self._factor(matrix, precision, jitter)
            return 2 * jnp.sum(jnp.log(row_blocks.diagonal_of(factor)))

        return automatic(log_det, self.matrix, precision, jitter)

    def posterior(self, precision, jitter=0.0):
        axes = self.placement and self.placement.axes
        factor = automatic(self._factor, self.matrix, precision, jitter, axes=axes)
        return RowsPosterior(factor, self.size, self.placement)

    def _factor(self, matrix, precision, jitter):
        """Return the Cholesky factor of the matrix plus a diagonal, with ones beyond `size`."""
        precision = self._filled(precision, 1.0)
        raised = precision + jitter * (row_blocks.diagonal_of(matrix) + precision)
        with jax.default_matmul_precision("highest"):
            return row_blocks.cholesky(
                by_rows(row_blocks.add_to_diagonal(matrix, raised), self.placement), self.placement
            )

    def scaled(self, factor):
        return replace(self, matrix=self.matrix * factor)

    def spectrum(self):
        """Return all P eigenvalues; cached outside of transformations, as in `FullStructure`."""
        return keep(self, "spectrum", lambda: _spectrum(self))

    def _filled(self, vector: Float[Array, " P"], value: float) -> Float[Array, " Q"]:
        missing = len(self.matrix) - self.size
        return jnp.pad(vector, (0, missing), constant_values=value)


@jax.jit
def _spectrum(structure: RowsStructure) -> Spectrum:
    def values_of(matrix: Float[Array, "Q Q"]) -> Float[Array, " P"]:
        with jax.default_matmul_precision("highest"):
            return row_blocks.eigenvalues(matrix, structure.size, structure.placement)

    values = automatic(values_of, structure.matrix)
    values = without_rounding(values, len(values))
    return Spectrum(values, values[0], len(values))


def fit_by_rows(operator: SelfAdjointOperator) -> RowsStructure:
    """Return the dense curvature by rows, over the devices that hold the examples, if several.

    See `dense_rows` for the cost.

    Raises
    ------
    TypeError
        If the curvature has no factors in the outputs.
    """
    if not isinstance(operator, GaussNewtonOperator):
        raise TypeError(
            f"Found a {type(operator).__name__} for a matrix by rows, expected a Gauss-Newton or "
            'Fisher operator; use structure=lk.Full("primal"), which every device has whole.'
        )
    placement, num = operator.data.placement, operator.shape[0]
    matrix = operator.to_dense() if placement is None else dense_rows(operator)
    return RowsStructure(matrix, num, placement)


def by_rows_bytes(sizes: Sizes) -> int:
    """Estimate the peak memory of a device: its rows in five copies, one of them on their way.

    These are the sum, a chunk's part, the part of the matrix that is not factorised yet, the
    factor and its block that is sent.
    """
    return 5 * sizes.num_params**2 * sizes.itemsize // sizes.num_parts


@storable(
    "RowsPosterior",
    write=lambda value: {"rows": value.cholesky, "size": value.size},
    read=lambda parts: _read(RowsPosterior, parts),
)
@pytree_dataclass(static=("num_params", "placement"))
class RowsPosterior(Posterior):
    r"""The Gaussian of precision $L L^\top$, by rows of L; its root $A = L^{-\top}$ by columns.

    `root` is $A$, laid out by the layers of a model, made by `for_prediction`.
    """

    cholesky: Float[Array, "Q Q"]
    num_params: int
    placement: Placement | None
    root: tuple[Float[Array, "_ _ _ Q"], ...] | None = None

    @property
    def size(self):
        return self.num_params

    def scale_mv(self, eps):
        return self._solve(eps, trans=1)

    def scale_rmv(self, rows):
        return self._solve(rows, trans=0)

    def for_prediction(self, layouts):
        if self.root is not None:
            return self
        return keep(self, layouts, lambda: replace(self, root=_laid_out(self, layouts)))

    @property
    def is_spread(self):
        return self.placement is not None

    @property
    def num_projections(self):
        return num_held(len(self.cholesky), self.placement)

    def output_covariance(self, rows):
        with jax.default_matmul_precision("highest"):
            rooted = self._rooted(rows)
            return jnp.einsum("brp,bsp->brs", rooted, rooted)

    def output_variance(self, rows):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(self._rooted(rows) ** 2, axis=-1)

    def cross_covariance(self, rows, other):
        with jax.default_matmul_precision("highest"):
            return jnp.einsum("brp,dsp->brds", self._rooted(rows), self._rooted(other))

    @jax.jit
    def variance(self):
        def squares(cholesky):
            with jax.default_matmul_precision("highest"):
                root = row_blocks.inverse_root(cholesky, self.placement)
            return jnp.sum(root**2, axis=1)[: self.size]

        return automatic(squares, self.cholesky)

    def _rooted(self, rows: Rows) -> Float[Array, "B R Q"]:
        """Return $J A$, spread over the devices along its last axis."""
        root = _laid_out(self, rows.layouts) if self.root is None else self.root
        pairs = zip(everywhere(rows, self.placement).blocks, root, strict=True)
        return by_last_axis(sum(_projected(*pair) for pair in pairs), self.placement)

    @partial(jax.jit, static_argnames="trans")
    def _solve(self, vectors, trans):
        def solve(cholesky, vectors):
            missing = len(cholesky) - self.size
            flat = jnp.pad(vectors.reshape(-1, self.size), ((0, 0), (0, missing)))
            flat = flat.astype(cholesky.dtype)
            with jax.default_matmul_precision("highest"):
                found = row_blocks.solve(cholesky, flat, self.placement, trans=trans)
            return everywhere(found, self.placement)[:, : self.size].reshape(vectors.shape)

        return automatic(solve, self.cholesky, vectors)


def _projected(block: Block, vectors: Float[Array, "G I O Q"]) -> Float[Array, "B R Q"]:
    """Return `block.project(vectors)`, where axes are not joined with the one that is spread."""
    if isinstance(block, HeadRows) and (block.inputs.shape[1] > 1 or block.basis is not None):
        block = block.factored()
    if not isinstance(block, FactoredRows):
        return block.project(vectors)
    if block.inputs.shape[1] > block.gradients.shape[1]:
        return jnp.einsum("brgio,gioq->brq", block.to_dense(), vectors)
    hidden = jnp.einsum("btgi,gioq->btgoq", block.inputs, vectors)
    return jnp.einsum("brtgo,btgoq->brq", block.gradients, hidden)


@partial(jax.jit, static_argnames="layouts")
def _laid_out(posterior: RowsPosterior, layouts) -> tuple[Float[Array, "_ _ _ Q"], ...]:
    placement = posterior.placement

    def root(cholesky: Float[Array, "Q Q"]) -> tuple[Float[Array, "_ _ _ Q"], ...]:
        with jax.default_matmul_precision("highest"):
            found = row_blocks.inverse_root(cholesky, placement)[: posterior.size]
        return by_last_axis(tuple(layout.to_matrix(found) for layout in layouts), placement)

    axes = placement and placement.axes
    return automatic(root, posterior.cholesky, axes=axes, last=True)
