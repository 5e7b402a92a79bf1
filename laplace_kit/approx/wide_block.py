r"""One layer with a wide side of low rank plus a diagonal: its curvature and its posterior.

The narrow side has a full eigenbasis $Q$, and for each of its directions o the curvature along the
wide side is $H_o = U \operatorname{diag}(s_o) U^\top + \operatorname{diag}(r_o)$. With a prior
precision that is diagonal there, $C_o = \operatorname{diag}(r_o + d)$,
$V = C_o^{-1/2} U s_o^{1/2}$ and the Cholesky factor $L L^\top = I + V^\top V$ of an R x R matrix,

$$(H_o + d)^{-1} = C_o^{-1/2} (I - V L^{-\top} L^{-1} V^\top) C_o^{-1/2},$$

of which $C_o^{-1/2} (I - V L^{-\top} (I + L)^{-1} V^\top)$ is a root (Andrews, 1968). No matrix has
as many rows as columns along the wide side, whose entries may have any prior precisions.

Arrays are held with the wide side first, `(G, W, N)`: inputs are the wide side if `axis` is 1, and
outputs if it is 2.

References
----------
Andrews (1968), A square root formulation of the Kalman covariance equations. Yang, Robeyns, Wang
and Aitchison (2024), Bayesian low-rank adaptation for large language models.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from laplace_kit.approx.dense_block import MOST_ENTRIES
from laplace_kit.curv.capture.blocks import Block, HeadRows
from laplace_kit.curv.capture.layout import Layout
from laplace_kit.curv.eigenbasis import from_basis, to_basis
from laplace_kit.storage import storable
from laplace_kit.tree import pytree_dataclass, replace


@storable("WideBlock")
@pytree_dataclass(static=("axis", "layout"))
class WideBlock:
    r"""One layer's curvature: $U \operatorname{diag}(s_o) U^\top + \operatorname{diag}(r_o)$.

    `vectors` are U; `basis` is that of the narrow side, `None` for the identity; `values` are s and
    `rest` r, both at least zero, for each direction of the narrow side.
    """

    vectors: Float[Array, "G W R"]
    basis: Float[Array, "G N N"] | None
    values: Float[Array, "G R N"]
    rest: Float[Array, "G W N"]
    axis: int
    layout: Layout

    @property
    def bases(self) -> tuple[Array | None, Array | None]:
        """The bases of inputs and of outputs; that of the wide side has a few columns."""
        return (self.vectors, self.basis) if self.axis == 1 else (self.basis, self.vectors)

    def mv(self, matrix: Float[Array, "G I O *K"]) -> Float[Array, "G I O *K"]:
        """Return the product with a matrix, also for K matrices along the last axis."""
        turned = to_basis(None, self.basis, _wide_first(matrix, self.axis))
        more = (1,) * (matrix.ndim - 3)
        inside = jnp.einsum("gwr,gwo...->gro...", self.vectors, turned)
        inside = inside * self.values.reshape(*self.values.shape, *more)
        product = turned * self.rest.reshape(*self.rest.shape, *more)
        product = product + jnp.einsum("gwr,gro...->gwo...", self.vectors, inside)
        return _wide_first(from_basis(None, self.basis, product), self.axis)

    def to_dense(self) -> Float[Array, "G n n"]:
        """Return the curvature as dense matrices, one for each group."""
        num, size = self.layout.shape[0], self.layout.size // self.layout.shape[0]
        eye = jnp.eye(size, dtype=self.rest.dtype).reshape(*self.layout.shape[1:], size)
        with jax.default_matmul_precision("highest"):
            columns = self.mv(jnp.broadcast_to(eye, (*self.layout.shape, size)))
        return columns.reshape(num, size, size)

    @property
    def can_be_dense(self) -> bool:
        """Whether the layer, or each of several in one, is small enough to be multiplied out."""
        num = self.layout.shape[0]
        return self.layout.size**2 <= MOST_ENTRIES * len(self.layout.parts) * num

    @property
    def is_diagonal(self) -> bool:
        """Whether a prior precision of any values can be added as it is."""
        return self.basis is None

    def represents(self, precision: np.ndarray) -> bool:
        """Return whether a prior precision is shared along the narrow side, if that is rotated."""
        if self.basis is None:
            return True
        parts = [slot.read(precision) for slot in self.layout.slots]
        return all(np.all(v.max(3 - self.axis) == v.min(3 - self.axis)) for v in parts)

    def scaled(self, factor: float | Float[Array, ""]) -> "WideBlock":
        """Return the curvature times a positive number."""
        return replace(self, values=self.values * factor, rest=self.rest * factor)

    def plus(
        self, precision: Float[Array, " P"], *, every_derivative: bool = False
    ) -> "WidePrecision":
        r"""Return the posterior precision; NaN where the prior's differs along a rotated side.

        Derivatives are as those of `Eigenblock.plus`.
        """
        own = _wide_first(self.layout.to_matrix(precision), self.axis)
        if self.basis is None:
            return WidePrecision(self, self.rest + own)
        first, shared = own[..., :1], own == own[..., :1]
        found = WidePrecision(self, self.rest + jnp.where(shared, first, jnp.nan))
        if not every_derivative:
            return found
        with jax.default_matmul_precision("highest"):
            variance = jax.lax.stop_gradient(found.posterior().variance())
        variance = _wide_first(variance, self.axis)
        share = variance / variance.sum(axis=2, keepdims=True)
        value = first + jnp.sum(share * (own - first), axis=2, keepdims=True)
        return WidePrecision(self, self.rest + jnp.where(shared, value, jnp.nan))

    def bounds(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return bounds on the smallest and on the largest eigenvalue."""
        return self.rest.min(), self.rest.max() + self.values.max()

    def log_det(self, delta: Float[Array, ""]) -> Float[Array, ""]:
        r"""Return $\log |H + \delta I|$."""
        with jax.default_matmul_precision("highest"):
            return sum(WidePrecision(self, self.rest + delta).log_det_terms())

    def effective_parameters(self, delta: Float[Array, ""]) -> Float[Array, ""]:
        r"""Return $\operatorname{tr} H (H + \delta I)^{-1}$, a sum of positive terms."""
        precision = WidePrecision(self, self.rest + delta)
        with jax.default_matmul_precision("highest"):
            return jnp.sum(self.rest / precision.diagonal) + delta * precision.inverse_loss()

    def undetermined_parameters(self, delta: Float[Array, ""]) -> Float[Array, ""]:
        r"""Return $\operatorname{tr} \delta (H + \delta I)^{-1}$."""
        precision = WidePrecision(self, self.rest + delta)
        with jax.default_matmul_precision("highest"):
            return delta * (jnp.sum(1 / precision.diagonal) - precision.inverse_loss())


def _wide_first(matrix: Float[Array, "G _ _ *K"], axis: int) -> Float[Array, "G _ _ *K"]:
    """Return a matrix with its wide side first, or from there as it was."""
    return matrix if axis == 1 else jnp.swapaxes(matrix, 1, 2)


class WidePrecision(NamedTuple):
    """One layer's posterior precision: the curvature, and `diagonal` C `(G, W, N)`."""

    block: WideBlock
    diagonal: Array

    def log_det_terms(self) -> tuple[Float[Array, ""], ...]:
        """Return the terms whose sum is the log-determinant."""
        lower = self._map(lambda scaled, diagonal: _factor(scaled, diagonal)[0])
        growth = 2 * jnp.sum(jnp.log(jnp.diagonal(lower, axis1=2, axis2=3)))
        return jnp.sum(jnp.log(self.diagonal)), growth

    def inverse_loss(self) -> Float[Array, ""]:
        r"""Return $\operatorname{tr} C^{-1} - \operatorname{tr} (H + d)^{-1}$, at least zero."""

        def of_one(scaled, diagonal):
            lower, half = _factor(scaled, diagonal)
            half = half * jax.lax.rsqrt(diagonal)[..., None]
            solved = jax.scipy.linalg.solve_triangular(lower, half.mT @ half, lower=True)
            rest = jax.scipy.linalg.solve_triangular(lower, solved.mT, lower=True)
            return jnp.trace(rest, axis1=1, axis2=2)

        return self._map(of_one).sum()

    def posterior(self) -> "WidePosteriorBlock":
        """Return the covariance."""
        block = self.block
        size, dtype = block.vectors.shape[2], block.vectors.dtype

        def of_one(scaled, diagonal):
            lower, _ = _factor(scaled, diagonal)
            eye = jnp.broadcast_to(jnp.eye(size, dtype=dtype), lower.shape)
            solve = jax.scipy.linalg.solve_triangular
            return solve(lower, eye, lower=True, trans=1), solve(lower + eye, eye, lower=True)

        with jax.default_matmul_precision("highest"):
            upper, inverse = self._map(of_one)
            roots = _root(block.values).mT[..., None]  # (G, N, R, 1)
            mix = roots * upper
            core = -mix @ (inverse * roots.mT)
        std = jax.lax.rsqrt(self.diagonal)
        return WidePosteriorBlock(
            block.vectors, block.basis, std, mix, core, block.axis, block.layout
        )

    def _map(self, fn: Callable) -> PyTree:
        r"""Return a function of $U s_o^{1/2}$ and $C_o$, of one narrow direction at a time."""
        block = self.block

        @jax.checkpoint  # derivatives keep no scaled vectors
        def of_one(part):
            values, diagonal = part
            return fn(block.vectors * _root(values)[:, None], diagonal)

        parts = (jnp.moveaxis(block.values, 2, 0), jnp.moveaxis(self.diagonal, 2, 0))
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), jax.lax.map(of_one, parts))


def _factor(scaled: Float[Array, "G W R"], diagonal: Float[Array, "G W"]) -> tuple[Array, Array]:
    """Return the Cholesky factor L, and V."""
    half = scaled * jax.lax.rsqrt(diagonal)[..., None]
    gram = half.mT @ half
    return jnp.linalg.cholesky(gram + jnp.eye(gram.shape[-1], dtype=gram.dtype)), half


def _root(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the square root, with a derivative of zero at zero."""
    positive = values > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, values, 1)), 0)


@storable("WidePosteriorBlock")
@pytree_dataclass(static=("axis", "layout"))
class WidePosteriorBlock:
    r"""One layer's covariance, $C_o^{-1} - W_o W_o^\top$ for each direction o of the narrow side.

    `std` is $C_o^{-1/2}$; $W_o = C_o^{-1} U M_o$ with M in `mix`; `core` is X of the root
    $C_o^{-1/2} (I + C_o^{-1/2} U X_o U^\top C_o^{-1/2})$.
    """

    vectors: Float[Array, "G W R"]
    basis: Float[Array, "G N N"] | None
    std: Float[Array, "G W N"]
    mix: Float[Array, "G N R R"]
    core: Float[Array, "G N R R"]
    axis: int
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
        matrix = _wide_first(matrix, self.axis)
        product = self.std[..., None] * self._turn(self.core, matrix)
        return _wide_first(from_basis(None, self.basis, product), self.axis)

    def scale_rmv(self, matrix: Float[Array, "G I O K"]) -> Float[Array, "G I O K"]:
        r"""Return $A^\top m$."""
        turned = to_basis(None, self.basis, _wide_first(matrix, self.axis))
        return _wide_first(self._turn(self.core.mT, self.std[..., None] * turned), self.axis)

    def _turn(self, core: Array, matrix: Float[Array, "G W N K"]) -> Float[Array, "G W N K"]:
        std = self.std[..., None]
        inside = jnp.einsum("gwr,gwok->gork", self.vectors, std * matrix)
        return matrix + std * jnp.einsum("gwr,gork->gwok", self.vectors, core @ inside)

    def variance(self) -> Float[Array, "G I O"]:
        """Return the marginal variances."""
        variance = self._along_wide()
        if self.basis is not None:
            variance = jnp.einsum("gpo,gwo->gwp", self.basis**2, variance)
        return _wide_first(variance, self.axis)

    def output_covariance(self, rows: Block) -> Float[Array, "B R R"]:
        """Return the layer's part of the covariance of outputs."""
        return self._covariance(self._rotated(rows).outer, "brgo,bsgo->brs", rows)

    def cross_covariance(self, rows: Block, other: Block) -> Float[Array, "B R D S"]:
        """Return the layer's part of the covariance between two batches of outputs."""
        rotated, others = map(self._rotated, (rows, other))

        def cross(scale: Array) -> Array:
            return rotated.cross(others, scale)

        return self._covariance(cross, "brgo,dsgo->brds", rows, other)

    def output_variance(self, rows: Block) -> Float[Array, "B R"]:
        """Return the diagonals of the output covariance, at least zero."""
        rotated = self._rotated(rows)
        if self.axis == 2 and isinstance(rotated, HeadRows):  # each row has one output
            return rotated.squares(_wide_first(self._along_wide(), self.axis))
        variance = rotated.squares(_wide_first(self.std**2, self.axis))

        def subtract(total, mix):
            along = self._direction(mix)
            if self.axis == 1:
                ones = jnp.ones((along.shape[0], along.shape[2]), along.dtype)
                return total - rotated.squares_along(along, ones), None
            return total - jnp.sum(rotated.along_outputs(along) ** 2, axis=(2, 3)), None

        return jnp.maximum(jax.lax.scan(subtract, variance, self._mixes)[0], 0)

    def _covariance(self, of_scale: Callable, product: str, *batches: Block) -> Array:
        r"""Return $J C^{-1} J'^\top$ less the products of rows along all $W_o$."""
        batches = tuple(map(self._rotated, batches))

        def subtract(total, mix):
            along = self._direction(mix)
            each = [
                rows.along_inputs(along) if self.axis == 1 else rows.along_outputs(along)
                for rows in batches
            ]
            return total - jnp.einsum(product, each[0], each[-1]), None

        total = of_scale(_wide_first(self.std**2, self.axis))
        return jax.lax.scan(subtract, total, self._mixes)[0]

    def _rotated(self, rows: Block) -> Block:
        return rows.rotate(None, self.basis) if self.axis == 1 else rows.rotate(self.basis, None)

    @property
    def _mixes(self) -> Float[Array, "R G N R"]:
        """The columns of `mix`, one after the other."""
        return jnp.moveaxis(self.mix, 3, 0)

    def _direction(self, mix: Float[Array, "G N R"]) -> Float[Array, "G I O"]:
        """Return one column of W for every narrow direction, laid out as the layer's matrices."""
        direction = self.std**2 * jnp.einsum("gwr,gor->gwo", self.vectors, mix)
        return _wide_first(direction, self.axis)

    def _along_wide(self) -> Float[Array, "G W N"]:
        """Return the variances along the wide side for each direction of the narrow one."""

        def subtract(total, mix):
            return total - _wide_first(self._direction(mix), self.axis) ** 2, None

        return jnp.maximum(jax.lax.scan(subtract, self.std**2, self._mixes)[0], 0)
