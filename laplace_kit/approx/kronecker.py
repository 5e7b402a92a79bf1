r"""Kronecker-factored posteriors, K-FAC and EKFAC: each layer diagonal in an eigenbasis of its own.

With $A \otimes B = Q (\lambda_A \otimes \lambda_B) Q^\top$, $Q = Q_A \otimes Q_B$, a prior
precision $\delta$ shared by a layer is added to the eigenvalues. Where its bias has another,
$\delta_b$, the precision for output direction o is $C_o + (\delta_b - \delta) u u^\top$ in the
eigenbasis, with $C_o = \operatorname{diag}(s_{\cdot o} + \delta)$ and $u = Q_A^\top e$ of the
bias's unit vector $e$: a rank-one matter, and still exact. EKFAC replaces
$\lambda_A \otimes \lambda_B$ by the curvature's exact diagonal in the same basis.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from laplace_kit.approx.posterior import Posterior, Spectrum, Structure, without_rounding
from laplace_kit.curv.blocks import Block
from laplace_kit.curv.ggn import GaussNewtonOperator
from laplace_kit.curv.kronecker import kronecker_factors, second_moments
from laplace_kit.curv.layout import Layout, to_flat
from laplace_kit.curv.rows import Rows
from laplace_kit.tree import is_concrete, pytree_dataclass, replace


@pytree_dataclass(static=("layout",))
class Eigenblock:
    """One layer's curvature: eigenvalues, in bases of inputs and outputs (`None`: as they are)."""

    left: Float[Array, "G I I"] | None
    right: Float[Array, "G O O"] | None
    values: Float[Array, "G I O"]
    layout: Layout

    @property
    def _rotated(self) -> tuple[int, ...]:
        """The axes of `(G, I, O)` that are not as they are in the parameters."""
        return tuple(axis for axis, basis in ((1, self.left), (2, self.right)) if basis is not None)

    def mv(self, matrix: Float[Array, "G I O"]) -> Float[Array, "G I O"]:
        r"""Return $Q \operatorname{diag}(s) Q^\top m$."""
        rotated = _to_basis(self, matrix[..., None])
        return _from_basis(self, self.values[..., None] * rotated)[..., 0]

    def represents(self, precision: np.ndarray) -> bool:
        """Tell whether a prior precision is diagonal in the eigenbasis, but for the bias's part."""
        weight, *bias = (slot.read(precision) for slot in self.layout.slots)
        parts = [(weight, self._rotated), *((values, (1, 2)) for values in bias)]
        return all(np.all(v.max(axis=axes) == v.min(axis=axes)) for v, axes in parts)

    def prior(self, precision: Float[Array, " P"]) -> tuple[Array, Array | None]:
        """Return the prior precision that the weight shares, and the bias's where there is one.

        One value for each group and for each entry of an axis that is not rotated; taken from the
        first of those that share it.
        """
        weight, *bias = (slot.read(precision) for slot in self.layout.slots)
        first = (slice(0, 1) if axis in self._rotated else slice(None) for axis in range(3))
        return weight[tuple(first)], bias[0][:, :, :1] if bias else None

    def expand(self, weight: Array, bias: Array | None) -> Float[Array, "G I O"]:
        """Return the prior precisions of all parameters from what `prior` takes of them."""
        groups, width, out = self.layout.shape
        if bias is None:
            return jnp.broadcast_to(weight, self.layout.shape)
        parts = (
            jnp.broadcast_to(weight, (groups, width - 1, out)),
            jnp.broadcast_to(bias, (groups, 1, out)),
        )
        return jnp.concatenate(parts, axis=1)


class _Precision(NamedTuple):
    r"""One layer's posterior precision, $C_o + (\delta_b - \delta) u u^\top$ in its eigenbasis.

    `diagonal` is $C$ `(G, I, O)`; `unit` $u$ `(G, I, 1)` and `rest` $\delta_b - \delta$ `(G, 1, 1)`
    are `None` without a bias.
    """

    diagonal: Array
    unit: Array | None
    rest: Array | None

    @property
    def growth(self) -> Float[Array, "G 1 O"]:
        """The factor by which the bias's part multiplies the determinant."""
        squares = jnp.sum(self.unit**2 / self.diagonal, axis=1, keepdims=True)
        return 1 + self.rest * squares


@pytree_dataclass(static=("corrected",))
class KroneckerStructure(Structure):
    """The curvature of every layer in its eigenbasis, none between layers; EKFAC if `corrected`.

    Derivatives in the prior precision are those in the values that weights and biases share: of an
    array with one entry for each parameter, the first entry of each weight receives them all.
    """

    blocks: tuple[Eigenblock, ...]
    corrected: bool

    @property
    def name(self):
        return "EKFAC" if self.corrected else "K-FAC"

    def check_prior(self, precision):
        """Raise where parameters that share a layer have prior precisions of their own.

        Raises
        ------
        ValueError
            If, outside of transformations, the prior precision is more than one value for each
            weight and for each bias. Inside, results are NaN.
        """
        if not is_concrete(precision):
            return
        values = np.asarray(precision)  # on the host, which need not compile anything for this
        block = next((block for block in self.blocks if not block.represents(values)), None)
        if block is None:
            return
        matrix = block.layout.to_matrix(precision)
        raise ValueError(
            f"Found prior precisions that differ within a layer (from {float(matrix.min()):.4g} to "
            f"{float(matrix.max()):.4g} in one of {block.layout.size} parameters), expected one "
            "value for each weight and one for each bias, as only these are diagonal in a "
            "Kronecker eigenbasis; pass a scalar or one value per leaf, or use "
            "structure='diagonal', 'low_rank' or 'full'."
        )

    def mv(self, vector):
        layouts = [block.layout for block in self.blocks]
        with jax.default_matmul_precision("highest"):
            matrices = [block.mv(block.layout.to_matrix(vector)) for block in self.blocks]
        return to_flat(layouts, matrices)

    def log_det(self, precision, jitter=0.0):
        total = jnp.zeros((), precision.dtype)
        for part in self._precisions(precision):
            total += jnp.sum(jnp.log(part.diagonal))
            if part.unit is not None:
                total += jnp.sum(jnp.log(part.growth))
        return total

    def posterior(self, precision, jitter=0.0):
        parts = zip(self.blocks, self._precisions(precision * (1 + jitter)), strict=True)
        return KroneckerPosterior(tuple(_posterior_block(block, part) for block, part in parts))

    def _precisions(self, precision: Float[Array, " P"]) -> list[_Precision]:
        """Return the posterior precision of every layer; NaN where the prior is no layer's."""
        priors = [block.prior(precision) for block in self.blocks]
        expanded = [block.expand(*prior) for block, prior in zip(self.blocks, priors, strict=True)]
        represented = to_flat([block.layout for block in self.blocks], expanded)
        valid = jnp.all(represented == precision)
        precisions = []
        for block, (weight, bias) in zip(self.blocks, priors, strict=True):
            diagonal = block.values + jnp.where(valid, weight, jnp.nan)
            unit = None if bias is None else block.left[:, -1, :, None]
            precisions.append(_Precision(diagonal, unit, None if bias is None else bias - weight))
        return precisions

    def scaled(self, factor):
        blocks = tuple(replace(block, values=block.values * factor) for block in self.blocks)
        return replace(self, blocks=blocks)

    def spectrum(self):
        values = jnp.concatenate([block.values.reshape(-1) for block in self.blocks])
        return Spectrum(values, values.min(), len(values))


@jax.jit
def _eigenblocks(factors):
    blocks = []
    for factor in factors:
        (a, left), (b, right) = _eigen(factor.inputs), _eigen(factor.gradients)
        blocks.append(Eigenblock(left, right, a[:, :, None] * b[:, None, :], factor.layout))
    return tuple(blocks)


def _eigen(factor: Float[Array, "G n *n"]) -> tuple[Array, Array | None]:
    """Return eigenvalues `(G, n)`, at least zero, and vectors `(G, n, n)` as columns."""
    if factor.ndim == 2:
        return factor, None
    if factor.shape[-1] == 1:
        return factor[:, 0], None
    with jax.default_matmul_precision("highest"):
        values, vectors = jnp.linalg.eigh(factor)
    cleaned = jax.vmap(lambda v: without_rounding(v, len(v)))(values)
    return jnp.maximum(cleaned, 0), vectors


def fit_kronecker(
    operator: GaussNewtonOperator,
    *,
    corrected: bool = False,
    weight_sharing: Literal["expand", "reduce"] = "expand",
) -> KroneckerStructure:
    """Return the K-FAC structure of an operator, or with `corrected` the EKFAC one.

    Parameters
    ----------
    operator
        A GGN, or an empirical or Monte-Carlo Fisher operator.
    corrected
        Replace the eigenvalues by exact second moments in the eigenbasis (George et al. 2018).
    weight_sharing
        See `laplace_kit.curv.kronecker_factors`.

    Returns
    -------
    structure
        Cost: that of `kronecker_factors`, once more if corrected, and eigendecompositions of every
        layer's factors.
    """
    factors = kronecker_factors(operator, weight_sharing=weight_sharing)
    blocks = _eigenblocks(factors)
    if corrected:
        moments = second_moments(operator, tuple((block.left, block.right) for block in blocks))
        pairs = zip(blocks, moments, strict=True)
        blocks = tuple(replace(block, values=values) for block, values in pairs)
    return KroneckerStructure(blocks, corrected)


# --- the posterior --------------------------------------------------------------------------------


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
        """Return its diagonals alone, at least zero."""
        rotated = rows.rotate(self.left, self.right)
        variance = rotated.squares(self.std**2)
        if self.direction is None:
            return variance
        return jnp.maximum(variance + rotated.squares_along(self.direction, self.gain), 0)


def _posterior_block(block: Eigenblock, precision: _Precision) -> PosteriorBlock:
    direction = gain = root_gain = None
    if precision.unit is not None:
        direction = precision.unit / precision.diagonal
        growth, rest = precision.growth[:, 0], precision.rest[:, 0]
        root = jnp.sqrt(growth)
        gain, root_gain = -rest / growth, -rest / (root * (1 + root))
    std = 1 / jnp.sqrt(precision.diagonal)
    return PosteriorBlock(block.left, block.right, std, direction, gain, root_gain, block.layout)


def _to_basis(
    block: Eigenblock | PosteriorBlock, matrix: Float[Array, "G I O K"]
) -> Float[Array, "G I O K"]:
    r"""Return $Q^\top m$."""
    if block.left is not None:
        matrix = jnp.einsum("gji,gjok->giok", block.left, matrix)
    return matrix if block.right is None else jnp.einsum("gpo,gipk->giok", block.right, matrix)


def _from_basis(
    block: Eigenblock | PosteriorBlock, matrix: Float[Array, "G I O K"]
) -> Float[Array, "G I O K"]:
    """Return $Q m$."""
    if block.left is not None:
        matrix = jnp.einsum("gij,gjok->giok", block.left, matrix)
    return matrix if block.right is None else jnp.einsum("gop,gipk->giok", block.right, matrix)


@pytree_dataclass()
class KroneckerPosterior(Posterior):
    """Independent layers, each with the covariance of a `PosteriorBlock`."""

    blocks: tuple[PosteriorBlock, ...]

    @property
    def size(self):
        return sum(block.layout.size for block in self.blocks)

    @property
    def dtype(self):
        return self.blocks[0].std.dtype

    def scale_mv(self, eps):
        return self._by_block(
            eps, lambda block, m: _from_basis(block, block.std[..., None] * block.turn(m))
        )

    def scale_rmv(self, rows):
        return self._by_block(
            rows, lambda block, m: block.turn(block.std[..., None] * _to_basis(block, m))
        )

    def output_covariance(self, rows):
        return self._over_rows(PosteriorBlock.output_covariance, rows)

    def output_variance(self, rows):
        return self._over_rows(PosteriorBlock.output_variance, rows)

    def cross_covariance(self, rows, other):
        return self._over_rows(PosteriorBlock.cross_covariance, rows, other)

    def variance(self):
        with jax.default_matmul_precision("highest"):
            return to_flat(self._layouts, [block.variance() for block in self.blocks])

    @property
    def _layouts(self) -> tuple[Layout, ...]:
        return tuple(block.layout for block in self.blocks)

    def _by_block(self, vectors, fn):
        columns = vectors.reshape(-1, self.size).T
        with jax.default_matmul_precision("highest"):
            matrices = [fn(block, block.layout.to_matrix(columns)) for block in self.blocks]
        return to_flat(self._layouts, matrices).T.reshape(vectors.shape)

    def _over_rows(self, fn, *batches: Rows) -> Array:
        if any(rows.layouts != self._layouts for rows in batches):
            raise ValueError(
                "Found inputs for which the model's layers differ from those the posterior was "
                "fitted with, expected the same layers; fit and predict with inputs of the same "
                "kind, or use structure='diagonal' or 'low_rank', which do not know layers."
            )
        with jax.default_matmul_precision("highest"):
            layers = zip(self.blocks, *(rows.blocks for rows in batches), strict=True)
            return sum(fn(block, *parts) for block, *parts in layers)
