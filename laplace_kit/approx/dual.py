r"""The full posterior in its dual form: exact, without a matrix of P by P.

With $H = \Phi^\top \Phi$, $\Phi$ `(M, P)` the design matrix of the linearised model, and any
diagonal prior $d$, let $K = \Phi d^{-1} \Phi^\top$, the prior covariance of $\Phi \theta$, and
$I + K = C C^\top$ (Cholesky), `(M, M)`. Then $\log|H + d| = \log|d| + \log|C C^\top|$, and with
$B = \Phi d^{-1/2}$ the covariance $d^{-1/2} (I + B^\top B)^{-1} d^{-1/2}$ has the root
$A = d^{-1/2} (I + B^\top M B)$ with $M = -C^{-\top} (C + I)^{-1}$; see `low_rank.py`.

An output with row $v = J d^{-1/2}$ has the variance $|v|^2 - |C^{-1} B v|^2$, with a rounding error
of about ten units in the last place of the prior's $|v|^2$. Where that matters, the variance is
computed as $|v - B^\top c|^2 + |c|^2$ with $c = (I + K)^{-1} B v$, which is never negative and
whose error is of second order in that of c. The rounding of the kernel itself remains: data
directions in which K is below some units in the last place of its largest eigenvalue cannot be
told apart, in any form.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.approx.posterior import Posterior, Spectrum, Structure, keep
from laplace_kit.approx.spec import Sizes
from laplace_kit.curv.capture.rows import Rows
from laplace_kit.curv.design import Design, by_example, design_matrix
from laplace_kit.curv.ggn import GaussNewtonOperator
from laplace_kit.storage import storable
from laplace_kit.tree import pytree_dataclass

# A difference of this many units in the last place is known to three digits or more.
_LOST = 1e4


@storable("DualStructure")
@pytree_dataclass()
class DualStructure(Structure):
    r"""The curvature $\Phi^\top \Phi$, by its design matrix."""

    design: Design

    @property
    def name(self):
        return "Full"

    def mv(self, vector):
        with jax.default_matmul_precision("highest"):
            return self.design.combine(self.design.project(vector[None]))[0]

    def log_det(self, precision, jitter=0.0):
        factor = _factor(self.design, 1 / precision, jitter)
        return jnp.sum(jnp.log(precision)) + 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))

    def posterior(self, precision, jitter=0.0):
        variance = 1 / precision
        return DualPosterior(self.design, variance, _factor(self.design, variance, jitter))

    def scaled(self, factor):
        return DualStructure(self.design.scaled(jnp.sqrt(factor)))

    def spectrum(self):
        r"""Return the M eigenvalues of $\Phi \Phi^\top$, by one decomposition without vectors.

        They are cached outside of transformations, so that each further prior precision costs O(M).
        """
        return keep(self, "spectrum", lambda: _spectrum(self.design))


def fit_dual(operator: GaussNewtonOperator) -> DualStructure:
    """Return the curvature by its design matrix; see `design_matrix` for the cost."""
    return DualStructure(design_matrix(operator))


def dual_bytes(sizes: Sizes) -> int | float:
    """Estimate the peak memory of the dual form.

    It counts the kernel, one layer's part of it with a rearranged copy, and a Cholesky factor; the
    design matrix and the chunks from which it is joined; a handful of vectors.
    """
    if sizes.num_rows is None:  # more rows than fit; see `Sizes`
        return math.inf
    design_entries = sizes.num_data * sizes.design_entries
    num = 4 * sizes.num_rows**2 + 2 * design_entries + 6 * sizes.num_params
    return num * sizes.itemsize


def dual_work(sizes: Sizes) -> int:
    """Estimate the number of operations for the kernel and its factorisation."""
    return sizes.num_rows * sizes.num_data * sizes.design_entries + sizes.num_rows**3


@jax.jit
def _spectrum(design):
    num, size = design.shape
    with jax.default_matmul_precision("highest"):
        kernel = design.gram(jnp.ones(size, design.dtype))
        values = jnp.maximum(jnp.linalg.eigvalsh(kernel), 0)
    smallest = values[0] if num >= size else jnp.zeros((), values.dtype)
    return Spectrum(values, smallest, size)


def _factor(
    design: Design, variance: Float[Array, " P"], jitter: float | Float[Array, ""]
) -> Float[Array, "M M"]:
    with jax.default_matmul_precision("highest"):
        kernel = design.gram(variance)
        matrix = jnp.eye(len(kernel), dtype=kernel.dtype) + kernel
        return jnp.linalg.cholesky(matrix + jitter * jnp.diag(jnp.diagonal(matrix)))


@storable("DualPosterior")
@pytree_dataclass()
class DualPosterior(Posterior):
    r"""The Gaussian of precision $\Phi^\top \Phi + d$, by $C$ with $C C^\top = I + K$.

    `prior_variance` is $d^{-1}$ `(P,)` and `cholesky` $C$ `(M, M)`.
    """

    design: Design
    prior_variance: Float[Array, " P"]
    cholesky: Float[Array, "M M"]

    @property
    def size(self):
        return len(self.prior_variance)

    @property
    def dtype(self):
        return self.prior_variance.dtype

    @jax.jit
    def scale_mv(self, eps):
        return self._prior_std * self._turn(eps, transpose=False)

    @jax.jit
    def scale_rmv(self, rows):
        return self._turn(rows * self._prior_std, transpose=True)

    @property
    def num_projections(self):
        """The number of projections that hold as much as one example's products with all data."""
        columns = self.design.rows.blocks[0].gradients.shape[1]
        widest = max(block.gradients.shape[-1] for block in self.design.rows.blocks)
        return -(-2 * columns * len(self.cholesky) // widest)

    def output_covariance(self, rows):
        rows = by_example(rows)
        with jax.default_matmul_precision("highest"):
            prior, learned = rows.outer(self.prior_variance), self._learned(rows)
            difference = prior - jnp.einsum("brk,bsk->brs", learned, learned)
            return jax.lax.cond(
                _keep_digits(*(jnp.einsum("brr->br", part) for part in (difference, prior))),
                lambda: difference,
                lambda: self._by_residuals(rows, learned),
            )

    def output_variance(self, rows):
        rows = by_example(rows)
        with jax.default_matmul_precision("highest"):
            prior, learned = rows.squares(self.prior_variance), self._learned(rows)
            difference = prior - jnp.sum(learned**2, axis=-1)
            return jax.lax.cond(
                _keep_digits(difference, prior),
                lambda: difference,
                lambda: jnp.einsum("brr->br", self._by_residuals(rows, learned)),
            )

    def cross_covariance(self, rows, other):
        rows, other = by_example(rows), by_example(other)
        with jax.default_matmul_precision("highest"):
            learned, others = self._learned(rows), self._learned(other)
            prior = rows.squares(self.prior_variance)
            return jax.lax.cond(
                _keep_digits(prior - jnp.sum(learned**2, axis=-1), prior),
                lambda: (
                    rows.cross(other, self.prior_variance)
                    - jnp.einsum("brk,dsk->brds", learned, others)
                ),
                lambda: self._cross_by_residuals(rows, other, learned, others),
            )

    @jax.jit
    def variance(self):
        identity = jnp.eye(len(self.cholesky), dtype=self.dtype)
        with jax.default_matmul_precision("highest"):
            inverse = jax.scipy.linalg.cho_solve((self.cholesky, True), identity)
            learned = self.design.weighted_squares(inverse)
            return self.prior_variance * jnp.maximum(1 - self.prior_variance * learned, 0)

    @property
    def _prior_std(self) -> Float[Array, " P"]:
        return jnp.sqrt(self.prior_variance)

    def _learned(self, rows: Rows) -> Float[Array, "B R M"]:
        r"""Return $J d^{-1} \Phi^\top C^{-\top}$, whose square the data subtract from the prior."""
        kernel = self.design.cross(rows, self.prior_variance)
        solved = self._solve(kernel.reshape(-1, kernel.shape[-1]), trans=0)
        return solved.reshape(kernel.shape)

    def _by_residuals(self, rows: Rows, learned: Float[Array, "B R M"]) -> Float[Array, "B R R"]:
        r"""Return $Z Z^\top + c c^\top$ of every example, one at a time."""

        def for_example(args):
            residual, c = self._residual(*args)
            return residual @ residual.T + c @ c.T

        return jax.lax.map(for_example, (rows, learned))

    def _cross_by_residuals(self, rows, other, learned, others) -> Float[Array, "B R D S"]:
        r"""Return $Z Z'^\top + c c'^\top$ for all pairs, without a dense $Z'$."""
        c_other = self._solve(others.reshape(-1, others.shape[-1]), trans=1).reshape(others.shape)

        def for_example(args):
            residual, c = self._residual(*args)
            weighted = residual * self._prior_std
            matrices = [layout.to_matrix(weighted.T) for layout in other.layouts]
            rest = c - self.design.project(weighted)
            return other.project(matrices) + jnp.einsum("dsk,rk->dsr", c_other, rest)

        return jnp.moveaxis(jax.lax.map(for_example, (rows, learned)), 3, 1)

    def _residual(
        self, row: Rows, learned: Float[Array, "R M"]
    ) -> tuple[Float[Array, "R P"], Float[Array, "R M"]]:
        r"""Return $Z = v - B^\top c$ and $c$ for the rows of one example, without its axis."""
        dense = jax.tree.map(lambda leaf: leaf[None], row).to_dense()[0]
        c = self._solve(learned, trans=1)
        return (dense - self.design.combine(c)) * self._prior_std, c

    def _turn(self, vectors: Float[Array, "*batch P"], *, transpose: bool) -> Array:
        r"""Return $(I + B^\top M B) v$ along the last axis, or with $M^\top$ for $M$."""
        flat = vectors.reshape(-1, self.size).astype(self.dtype)
        with jax.default_matmul_precision("highest"):
            inner = self.design.project(flat * self._prior_std)
            if transpose:
                inner = -self._solve_shifted(self._solve(inner, trans=0), trans=1)
            else:
                inner = -self._solve(self._solve_shifted(inner, trans=0), trans=1)
            turned = flat + self.design.combine(inner) * self._prior_std
        return turned.reshape(vectors.shape)

    def _solve(self, vectors: Float[Array, "K M"], trans: int) -> Float[Array, "K M"]:
        return jax.scipy.linalg.solve_triangular(
            self.cholesky, vectors.T, lower=True, trans=trans
        ).T

    def _solve_shifted(self, vectors: Float[Array, "K M"], trans: int) -> Float[Array, "K M"]:
        shifted = self.cholesky + jnp.eye(len(self.cholesky), dtype=self.dtype)
        return jax.scipy.linalg.solve_triangular(shifted, vectors.T, lower=True, trans=trans).T


def _keep_digits(difference: Array, prior: Array) -> Array:
    """Return whether differences from the prior's variances have three correct digits."""
    return jnp.all(difference >= _LOST * jnp.finfo(prior.dtype).eps * prior)
