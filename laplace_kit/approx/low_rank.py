r"""The low-rank posterior: leading eigenpairs of the curvature, and the prior everywhere else.

With $H \approx U^\top s U$ (rows of $U$ orthonormal) and any diagonal prior $d$, let
$B = s^{1/2} U d^{-1/2}$ and $I + B B^\top = C C^\top$ (Cholesky), `(R, R)`. Then
$\log|H + d| = \log|d| + \log|C C^\top|$, and the covariance $d^{-1/2} (I + B^\top B)^{-1} d^{-1/2}$
has the root $A = d^{-1/2} (I + B^\top M B)$ with $M = -C^{-\top} (C + I)^{-1}$, for which
$M + M^\top + M B B^\top M^\top = -(C C^\top)^{-1}$, as Woodbury's formula requires.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from laplace_kit.approx.posterior import Posterior, Spectrum, Structure, keep, without_rounding
from laplace_kit.approx.spec import StructureSpec
from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.matrix_free.lanczos import leading_eigenpairs
from laplace_kit.curv.matrix_free.ritz import check_rank
from laplace_kit.curv.rounding import rounding
from laplace_kit.errors import check_count
from laplace_kit.placement import on_automatic_axes
from laplace_kit.storage import storable
from laplace_kit.tree import pytree_dataclass, replace

DEFAULT_RANK = 50
# Vectors besides those that are counted by the rank: 20 of the two runs, and of a product.
_OTHER_VECTORS = 40
# With more parameters than this multiple of the rank, rows lie mostly outside of the eigenvectors.
_DIRECTIONS_THAT_MATTER = 32


@storable("LowRankStructure")
@pytree_dataclass()
class LowRankStructure(Structure):
    r"""Leading eigenvalues `(R,)`, at least zero, and eigenvectors as orthonormal rows `(R, P)`.

    `residuals` `(R,)` are the norms $\|H u - s u\|$. `smallest` is the smallest eigenvalue that
    Lanczos found: if it makes $H + d$ indefinite, the results are NaN, not clipped.
    """

    values: Float[Array, " R"]
    vectors: Float[Array, "R P"]
    residuals: Float[Array, " R"]
    smallest: Float[Array, ""]

    def mv(self, vector):
        with jax.default_matmul_precision("highest"):
            return (self.values * (self.vectors @ vector)) @ self.vectors

    def log_det(self, precision, jitter=0.0):
        _, factor = self._rows_and_factor(self._definite(precision), jitter)
        return jnp.sum(jnp.log(precision)) + 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))

    def posterior(self, precision, jitter=0.0):
        precision = self._definite(precision)
        rows, factor = self._rows_and_factor(precision, jitter)
        identity = jnp.eye(len(factor), dtype=factor.dtype)
        with jax.default_matmul_precision("highest"):
            inverse = jax.scipy.linalg.solve_triangular(factor + identity, identity, lower=True)
            inner = -jax.scipy.linalg.solve_triangular(factor, inverse, lower=True, trans=1)
            shrinkage = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
        return LowRankPosterior(1 / jnp.sqrt(precision), rows, inner, shrinkage)

    def scaled(self, factor):
        values, residuals, smallest = (
            part * factor for part in (self.values, self.residuals, self.smallest)
        )
        return LowRankStructure(values, self.vectors, residuals, smallest)

    def spectrum(self):
        return Spectrum(self.values, self.smallest, self.vectors.shape[1])

    def _definite(self, precision):
        return jnp.where(self.smallest + precision.min() > 0, precision, jnp.nan)

    def _rows_and_factor(self, precision, jitter):
        rows = jnp.sqrt(self.values)[:, None] * self.vectors / jnp.sqrt(precision)
        with jax.default_matmul_precision("highest"):
            gram = rows @ rows.T
            matrix = jnp.eye(len(rows), dtype=rows.dtype) + gram
            return rows, jnp.linalg.cholesky(matrix + jitter * jnp.diag(jnp.diagonal(matrix)))


@storable("LowRank")
@dataclasses.dataclass(frozen=True)
class LowRank(StructureSpec):
    """The leading eigenpairs of the curvature as `structure=`; `"low_rank"` for short.

    Parameters
    ----------
    rank
        The number of eigenpairs, at most P; `None` for 50, or P if smaller.

    Raises
    ------
    ValueError
        If the rank is not positive; in `fit`, if it exceeds P.
    """

    rank: int | None = None

    def __post_init__(self):
        if self.rank is not None:
            check_count("rank", self.rank, "eigenpairs")

    @property
    def name(self):
        return "low_rank"

    def forms(self, sizes):
        return (LowRank(self._rank_among(sizes.num_params)),)

    def bytes(self, sizes):
        """Estimate the peak memory.

        The `2 rank + 10` Krylov vectors of a run and of the one before, the eigenvectors, and some
        vectors for a product and its linearisation.
        """
        num_vectors = 5 * self._rank_among(sizes.num_params) + _OTHER_VECTORS
        return num_vectors * sizes.num_params * sizes.itemsize

    def remedy(self, sizes, limit):
        num_vectors = limit // (sizes.num_params * sizes.itemsize)
        rank = (num_vectors - _OTHER_VECTORS) // 5
        return f"rank={rank}" if rank >= 1 else ""

    def fit(self, operator, key=None):
        return fit_low_rank(operator, self._rank_among(operator.shape[0]), key=key)

    def _rank_among(self, num_params: int) -> int:
        if self.rank is None:
            return min(DEFAULT_RANK, num_params)
        return check_rank(self.rank, num_params)


def fit_low_rank(
    operator: SelfAdjointOperator, rank: int, *, key: PRNGKeyArray | None = None
) -> LowRankStructure:
    """Return the leading eigenpairs of an operator; see `leading_eigenpairs` for the cost."""
    find = partial(leading_eigenpairs, rank=rank, key=key)
    pairs, smallest = on_automatic_axes(find, operator)
    if operator.is_positive_semidefinite:  # negative values are rounding
        smallest = jnp.maximum(smallest, 0)
    values, smallest = _met(pairs.values, smallest, operator.shape[0], rounding(operator))
    return LowRankStructure(values, pairs.vectors, pairs.residuals, smallest)


@partial(jax.jit, static_argnames="size")
def _met(values, smallest, size, coarsest):
    """Return the leading eigenvalues and the smallest one, with rounding below zero removed."""
    met = without_rounding(jnp.append(values, smallest), size, coarsest)
    return jnp.maximum(met[:-1], 0), met[-1]


@partial(jax.jit, static_argnames="layouts")
def _lay_out(posterior, layouts):
    with jax.default_matmul_precision("highest"):
        learned = (posterior.shrinkage @ (posterior.rows * posterior.prior_std)).T
    return tuple(layout.to_matrix(learned) for layout in layouts)


@storable("LowRankPosterior")
@pytree_dataclass()
class LowRankPosterior(Posterior):
    r"""The Gaussian with the root $A = d^{-1/2} (I + B^\top M B)$; see the module's formulas.

    `prior_std` `(P,)`, `rows` $B$ `(R, P)`, `inner` $M$ and `shrinkage` $C^{-1}$ `(R, R)`;
    `laid_out` is $d^{-1/2} B^\top C^{-\top}$ by the layers of a model, made by `for_prediction`.
    """

    prior_std: Float[Array, " P"]
    rows: Float[Array, "R P"]
    inner: Float[Array, "R R"]
    shrinkage: Float[Array, "R R"]
    laid_out: tuple[Float[Array, "_ _ _ R"], ...] | None = None

    @property
    def size(self):
        return len(self.prior_std)

    @property
    def dtype(self):
        return self.prior_std.dtype

    @jax.jit
    def scale_mv(self, eps):
        return self.prior_std * self._turn(eps, self.inner)

    @jax.jit
    def scale_rmv(self, rows):
        return self._turn(rows * self.prior_std, self.inner.T)

    def output_covariance(self, rows):
        with jax.default_matmul_precision("highest"):
            if self._multiplies_out:
                rooted = self.scale_rmv(rows.to_dense())
                return jnp.einsum("brp,bsp->brs", rooted, rooted)
            learned = self._learned(rows)
            correction = jnp.einsum("brk,bsk->brs", learned, learned)
            return rows.outer(self.prior_std**2) - correction

    def output_variance(self, rows):
        with jax.default_matmul_precision("highest"):
            if self._multiplies_out:
                return jnp.sum(self.scale_rmv(rows.to_dense()) ** 2, axis=-1)
            correction = jnp.sum(self._learned(rows) ** 2, axis=-1)
            return jnp.maximum(rows.squares(self.prior_std**2) - correction, 0)

    def cross_covariance(self, rows, other):
        if self._multiplies_out:
            return super().cross_covariance(rows, other)
        with jax.default_matmul_precision("highest"):
            learned, others = self._learned(rows), self._learned(other)
            correction = jnp.einsum("brk,dsk->brds", learned, others)
            return rows.cross(other, self.prior_std**2) - correction

    def for_prediction(self, layouts):
        if self.laid_out is not None or self._multiplies_out:
            return self
        return keep(self, layouts, lambda: replace(self, laid_out=_lay_out(self, layouts)))

    @property
    def num_projections(self):
        return self.size if self._multiplies_out else len(self.rows)

    @jax.jit
    def variance(self):
        with jax.default_matmul_precision("highest"):
            if self._multiplies_out:
                return jnp.sum(self.scale_rmv(jnp.eye(self.size, dtype=self.dtype)) ** 2, axis=1)
            return self.prior_std**2 * (1 - jnp.sum((self.shrinkage @ self.rows) ** 2, axis=0))

    @property
    def _multiplies_out(self) -> bool:
        """Whether to apply the root to dense rows instead of subtracting from the prior covariance.

        The difference loses digits where the eigenvectors span all of a row and the data outweigh
        the prior. That happens with few parameters, where dense rows are affordable.
        """
        return self.size <= _DIRECTIONS_THAT_MATTER * len(self.rows)

    def _learned(self, rows):
        r"""Return $J d^{-1/2} B^\top C^{-\top}$: the data subtract its square from the prior."""
        laid_out = _lay_out(self, rows.layouts) if self.laid_out is None else self.laid_out
        return rows.project(laid_out)

    def _turn(self, vectors, inner):
        """Return $(I + B^T M B) v$ along the last axis, with `inner` for $M$."""
        with jax.default_matmul_precision("highest"):
            return vectors + ((vectors @ self.rows.T) @ inner.T) @ self.rows
