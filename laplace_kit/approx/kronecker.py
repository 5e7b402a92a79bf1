r"""Kronecker-factored posteriors, K-FAC and EKFAC: each layer is diagonal in its own eigenbasis.

See `eigenblock.py` for one layer, `wide_block.py` for one with a side of low rank plus a diagonal,
and `dense_block.py` for one with a prior precision that differs within it. EKFAC replaces the
eigenvalues $\lambda_A \otimes \lambda_B$ of K-FAC by the curvature's exact diagonal in the same
basis.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from laplace_kit.approx.dense_block import DenseBlock, DensePrecision, dense_precision
from laplace_kit.approx.eigenbases import Basis, eigenbases
from laplace_kit.approx.eigenblock import Eigenblock, EigenPrecision, PosteriorBlock, single
from laplace_kit.approx.posterior import Posterior, Structure, spectrum_of
from laplace_kit.approx.spec import StructureSpec
from laplace_kit.approx.wide_block import WideBlock, WidePosteriorBlock, WidePrecision
from laplace_kit.curv.capture.layout import Layout, to_flat
from laplace_kit.curv.capture.rows import Rows
from laplace_kit.curv.ggn import GaussNewtonOperator
from laplace_kit.curv.kronecker import (
    WEIGHT_SHARING,
    KroneckerFactors,
    kronecker_factors,
    second_moments,
)
from laplace_kit.curv.low_rank_factor import LowRankFactor
from laplace_kit.curv.sides import Widths
from laplace_kit.errors import check_count, check_option
from laplace_kit.host import fetch
from laplace_kit.storage import storable
from laplace_kit.tree import is_concrete, pytree_dataclass, replace


@storable("KroneckerStructure")
@pytree_dataclass(static=("corrected", "dense"))
class KroneckerStructure(Structure):
    """The curvature of every layer in its eigenbasis, none between layers; EKFAC if `corrected`.

    As fitted, it supports prior precisions with one value per leaf: others give NaN, and
    derivatives go to the first entry of each weight. `for_prior` prepares it for any precision:
    `dense` then numbers the layers to multiply out, and `log_det` has derivatives in every entry.
    """

    blocks: tuple[Eigenblock | WideBlock, ...]
    corrected: bool
    dense: tuple[int, ...] | None = None

    @property
    def name(self):
        return "EKFAC" if self.corrected else "K-FAC"

    def for_prior(self, precision):
        """Return the structure that multiplies out the layers within which precisions differ.

        Inside of transformations it multiplies out all layers that are small enough; any others
        need shared precisions, or results are NaN. Cost of a layer with M sets of n coupled
        parameters: $M n^3$ operations and $M n^2$ numbers.

        Raises
        ------
        ValueError
            If precisions differ within a layer that is too large.
        """
        if is_concrete(precision):
            values = fetch(precision)  # on the host, without compilation
            differ = [not block.represents(values) for block in self.blocks]
            for block, differs in zip(self.blocks, differ, strict=True):
                if differs and not block.can_be_dense:
                    own = [slot.read(values).ravel() for slot in block.layout.slots]
                    _refuse(np.concatenate(own))
        else:
            differ = [block.can_be_dense and not block.is_diagonal for block in self.blocks]
        return replace(self, dense=tuple(i for i, differs in enumerate(differ) if differs))

    def mv(self, vector):
        layouts = [block.layout for block in self.blocks]
        with jax.default_matmul_precision("highest"):
            matrices = [block.mv(block.layout.to_matrix(vector)) for block in self.blocks]
        return to_flat(layouts, matrices)

    def log_det(self, precision, jitter=0.0):
        total = jnp.zeros((), precision.dtype)
        every = self.dense is not None
        for part in self._precisions(precision, jitter, every_derivative=every):
            for term in part.log_det_terms():
                total += term
        return total

    def posterior(self, precision, jitter=0.0):
        parts = self._precisions(precision, jitter)
        return KroneckerPosterior(tuple(part.posterior() for part in parts))

    def _precisions(
        self,
        precision: Float[Array, " P"],
        jitter: float | Float[Array, ""],
        *,
        every_derivative: bool = False,
    ) -> list[EigenPrecision | WidePrecision | DensePrecision]:
        """Return the posterior precision of every layer."""
        precision = precision * (1 + jitter)
        return [
            dense_precision(block.to_dense(), precision, block.layout, jitter)
            if index in (self.dense or ())
            else block.plus(precision, every_derivative=every_derivative)
            for index, block in enumerate(self.blocks)
        ]

    def scaled(self, factor):
        return replace(self, blocks=tuple(block.scaled(factor) for block in self.blocks))

    def spectrum(self):
        wide = tuple(block for block in self.blocks if isinstance(block, WideBlock))
        known = (block.values for block in self.blocks if isinstance(block, Eigenblock))
        return spectrum_of(tuple(known), wide)


def _refuse(precision: np.ndarray) -> None:
    raise ValueError(
        f"Found prior precisions that differ within a layer (from {precision.min():.4g} to "
        f"{precision.max():.4g} in one of {precision.size} parameters) that is too large to be "
        "multiplied out to a dense matrix, expected one value for its weight and one for its bias, "
        "which are diagonal in a Kronecker eigenbasis; pass a scalar or one value per leaf, or use "
        "structure='diagonal', 'low_rank' or 'full'."
    )


@partial(jax.jit, static_argnames="placement")
def _blocks(factors, placement=None):
    sides = [side for factor in factors for side in (factor.inputs, factor.gradients)]
    found = iter(eigenbases([side for side in sides if not _is_low_rank(side)], placement))
    bases = [None if _is_low_rank(side) else next(found) for side in sides]
    return tuple(map(_block, factors, bases[::2], bases[1::2]))


def _is_low_rank(side) -> bool:
    return isinstance(side, LowRankFactor)


def _block(
    factor: KroneckerFactors, inputs: Basis | None, gradients: Basis | None
) -> Eigenblock | WideBlock:
    if inputs is not None and gradients is not None:
        (a, left), (b, right) = inputs, gradients
        return Eigenblock(left, right, a[:, :, None] * b[:, None, :], factor.layout)
    axis = 1 if inputs is None else 2
    wide, (values, basis) = (factor.inputs, gradients) if axis == 1 else (factor.gradients, inputs)
    of_vectors, rest = (part[:, :, None] * values[:, None] for part in (wide.values, wide.rest))
    return WideBlock(wide.vectors, basis, of_vectors, rest, axis, factor.layout)


def _with_moments(block: Eigenblock | WideBlock, moments: Array | tuple[Array, Array]):
    if isinstance(block, Eigenblock):
        return replace(block, values=moments)
    values, rest = moments if block.axis == 1 else (jnp.swapaxes(part, 1, 2) for part in moments)
    return replace(block, values=values, rest=rest)


def _of_version_without_rank(parts: dict) -> "Kronecker":
    """Read the options from a file; without `wide`, as earlier versions had it, it is diagonal."""
    return Kronecker(**({"wide": "diagonal"} | parts))


WIDE = ("low_rank", "diagonal")


@storable("Kronecker", write=dataclasses.asdict, read=_of_version_without_rank)
@dataclasses.dataclass(frozen=True)
class Kronecker(StructureSpec):
    """Kronecker-factored curvature by layer as `structure=`, for the GGN and Fisher matrices.

    Parameters
    ----------
    corrected
        EKFAC, with exact second moments in the eigenbasis, `"ekfac"` for short; `False` for K-FAC,
        `"kron"`.
    weight_sharing
        `"expand"` or `"reduce"`, where an example uses a weight at several positions; see
        `laplace_kit.curv.kronecker_factors`.
    max_width
        The largest number of inputs or outputs of a layer that have a matrix as their factor.
        `None` for any width if that fits the memory limit, and otherwise for the largest one that
        fits.
    wide
        What factors of wider sides are, such as the classes of a vocabulary or the wide side of
        adapters. `"low_rank"`: the leading `rank` eigenvectors, and the rest of the diagonal, so
        that the factor keeps its diagonal, at the cost of `rank` vectors. If both sides of a layer
        are wide the outputs are diagonal, and so are those of a lookup or of a layer with a bias.
        `"diagonal"`: only the diagonal.
    rank
        The number of eigenvectors of a wide factor.

    Raises
    ------
    ValueError
        If `weight_sharing` or `wide` is unknown, `max_width` is negative, or `rank` is not
        positive.
    """

    corrected: bool = True
    weight_sharing: Literal["expand", "reduce"] = "expand"
    max_width: int | None = None
    wide: Literal["low_rank", "diagonal"] = "low_rank"
    rank: int = 16

    def __post_init__(self):
        check_option("weight_sharing", self.weight_sharing, WEIGHT_SHARING)
        check_option("wide", self.wide, WIDE)
        check_count("rank", self.rank, "eigenvectors")
        if self.max_width is not None and (self.max_width < 0 or self.max_width % 1):
            raise ValueError(
                f"Found max_width={self.max_width}, expected a whole number of inputs or outputs, "
                "such as 4096, or None to choose it from the memory limit."
            )

    @property
    def name(self):
        return "ekfac" if self.corrected else "kron"

    def forms(self, sizes):
        if sizes.num_columns is None:
            return ()
        if self.max_width is not None:
            return (self,)
        widths = sorted({side.width for side in sizes.kronecker_sides}, reverse=True)
        narrower = [*widths[1:], 0] if widths else []
        kinds = WIDE[WIDE.index(self.wide) :]
        choices = ((width, kind) for width in narrower for kind in kinds)
        return (
            self,
            *(dataclasses.replace(self, max_width=width, wide=kind) for width, kind in choices),
        )

    def rich_forms(self, sizes):
        return self.forms(sizes)[:1]

    @property
    def widths(self) -> Widths:
        """The largest width of a matrix, and the rank of wider factors."""
        return Widths(self.max_width, self.rank if self.wide == "low_rank" else None)

    def remark(self, sizes):
        sides = sizes.kronecker_sides
        num = {"full": 0, "low_rank": 0, "diagonal": 0}
        for side in sides:
            num[side.form(self.widths)] += side.num
        total = sum(num.values())
        words = {"low_rank": f"of rank {self.rank} plus a diagonal", "diagonal": "diagonal"}
        found = [f"{num[form]} of {total} factors" for form in words if num[form]]
        if not found:
            return ""
        wide = f", of more than {self.max_width:,} rows, are "
        parts = [text for form, text in words.items() if num[form]]
        first = found[0] + wide + parts[0]
        return first if len(parts) == 1 else f"{first}, and {num['diagonal']} are {parts[1]}"

    def bytes(self, sizes):
        """Estimate the peak memory: factors, one chunk's part, eigenvectors and their workspace."""
        full = Widths()
        spared = sum(
            side.num_entries(full) - side.num_entries(self.widths) for side in sizes.kronecker_sides
        )
        entries = sizes.kronecker_entries - spared
        return (4 * entries + 6 * sizes.num_params) * sizes.itemsize

    def fit(self, operator, key=None):
        return fit_kronecker(
            operator,
            corrected=self.corrected,
            weight_sharing=self.weight_sharing,
            **self.widths._asdict(),
        )


def fit_kronecker(
    operator: GaussNewtonOperator,
    *,
    corrected: bool = False,
    weight_sharing: Literal["expand", "reduce"] = "expand",
    max_width: int | None = None,
    rank: int | None = None,
) -> KroneckerStructure:
    """Return the K-FAC structure of an operator, or with `corrected` the EKFAC one.

    Parameters
    ----------
    operator
        A GGN, or an empirical or Monte-Carlo Fisher operator.
    corrected
        Replace the eigenvalues by exact second moments in the eigenbasis (George et al. 2018).
    weight_sharing, max_width, rank
        See `laplace_kit.curv.kronecker_factors`.

    Returns
    -------
    structure
        Cost: that of `kronecker_factors`, twice if corrected, and eigendecompositions of every
        layer's factors, which devices that hold the examples divide among themselves.
    """
    factors = kronecker_factors(
        operator, weight_sharing=weight_sharing, max_width=max_width, rank=rank
    )
    blocks = _blocks(factors, operator.data.placement)
    if corrected:
        wide = tuple(block.axis if isinstance(block, WideBlock) else None for block in blocks)
        moments = second_moments(operator, tuple(block.bases for block in blocks), wide)
        blocks = tuple(map(_with_moments, blocks, moments))
    return KroneckerStructure(blocks, corrected)


@storable("KroneckerPosterior")
@pytree_dataclass()
class KroneckerPosterior(Posterior):
    """Independent layers, each with a covariance in its eigenbasis or a dense one."""

    blocks: tuple[PosteriorBlock | WidePosteriorBlock | DenseBlock, ...]

    @property
    def size(self):
        return sum(block.layout.size for block in self.blocks)

    @property
    def dtype(self):
        return self.blocks[0].dtype

    @property
    def num_projections(self):
        return max(block.num_projections for block in self.blocks)

    @jax.jit
    def scale_mv(self, eps):
        return self._by_block(eps, lambda block, m: block.scale_mv(m))

    @jax.jit
    def scale_rmv(self, rows):
        return self._by_block(rows, lambda block, m: block.scale_rmv(m))

    def output_covariance(self, rows):
        return self._over_rows(lambda block, part: block.output_covariance(part), rows)

    def output_variance(self, rows):
        return self._over_rows(lambda block, part: block.output_variance(part), rows)

    def cross_covariance(self, rows, other):
        return self._over_rows(lambda block, *parts: block.cross_covariance(*parts), rows, other)

    @jax.jit
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
        blocks = self.blocks
        if any(
            rows.layouts != self._layouts for rows in batches
        ):  # layers may be grouped otherwise
            blocks, batches = single(blocks), [rows.split() for rows in batches]
        if any(rows.layouts != tuple(block.layout for block in blocks) for rows in batches):
            raise ValueError(
                "Found inputs for which the model's layers differ from those the posterior was "
                "fitted with, expected the same layers; fit and predict with inputs of the same "
                "kind, or use structure='diagonal' or 'low_rank', which do not depend on layers."
            )
        with jax.default_matmul_precision("highest"):
            layers = zip(blocks, *(rows.blocks for rows in batches), strict=True)
            return sum(fn(block, *parts) for block, *parts in layers)
