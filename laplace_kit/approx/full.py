r"""The full posterior: the dense `(P, P)` curvature, one Cholesky factor for each prior."""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from laplace_kit.approx.posterior import Posterior, Spectrum, Structure, without_rounding
from laplace_kit.curv.operator import CurvatureOperator
from laplace_kit.tree import is_concrete, pytree_dataclass


@pytree_dataclass()
class FullStructure(Structure):
    """The curvature as a dense symmetric matrix."""

    matrix: Float[Array, "P P"]

    def log_det(self, precision):
        with jax.default_matmul_precision("highest"):
            factor = jnp.linalg.cholesky(_add_to_diagonal(self.matrix, precision))
        return 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))

    def posterior(self, precision, jitter=0.0):
        with jax.default_matmul_precision("highest"):
            return FullPosterior(
                jnp.linalg.cholesky(_add_to_diagonal(self.matrix, precision + jitter))
            )

    def spectrum(self):
        """Return all P eigenvalues, by one symmetric decomposition without vectors.

        Outside of transformations it is kept: every further prior precision is then O(P).
        """
        if "_spectrum" in self.__dict__:
            return self.__dict__["_spectrum"]
        with jax.default_matmul_precision("highest"):
            values = jnp.linalg.eigvalsh(self.matrix)
        values = without_rounding(values, len(values))
        spectrum = Spectrum(values, values[0], len(values))
        if is_concrete(spectrum):
            self.__dict__["_spectrum"] = spectrum  # a memo: the field it derives from is frozen
        return spectrum


def fit_full(operator: CurvatureOperator) -> FullStructure:
    """Return the dense curvature of an operator; see its `to_dense` for the cost."""
    return FullStructure(operator.to_dense())


@jax.jit
def _inverse_factor(cholesky):
    with jax.default_matmul_precision("highest"):
        return solve_triangular(cholesky, jnp.eye(len(cholesky), dtype=cholesky.dtype), lower=True)


def _add_to_diagonal(matrix, values):
    index = jnp.arange(len(matrix))
    return matrix.at[index, index].add(values)


@pytree_dataclass()
class FullPosterior(Posterior):
    r"""$L L^\top = H + d$, so the covariance's root is $A = L^{-\top}$.

    `inverse` is $L^{-1}$ once `for_prediction` has made it: with it, the rows' factors need not be
    multiplied out before they meet the root.
    """

    cholesky: Float[Array, "P P"]
    inverse: Float[Array, "P P"] | None = None

    @property
    def size(self):
        return len(self.cholesky)

    @property
    def dtype(self):
        return self.cholesky.dtype

    def scale_mv(self, eps):
        return self._solve(eps, trans=1)

    def scale_rmv(self, rows):
        return self._solve(rows, trans=0)

    def for_prediction(self):
        """Return the posterior with the inverse factor; kept outside of transformations."""
        if self.inverse is not None:
            return self
        if "_prepared" not in self.__dict__:
            prepared = FullPosterior(self.cholesky, _inverse_factor(self.cholesky))
            if not is_concrete(prepared):
                return prepared
            self.__dict__["_prepared"] = prepared  # a memo: the field it derives from is frozen
        return self.__dict__["_prepared"]

    @property
    def num_projections(self):
        return self.size

    def output_covariance(self, rows):
        with jax.default_matmul_precision("highest"):
            rooted = rows.project(self.for_prediction().inverse)
            return jnp.einsum("brp,bsp->brs", rooted, rooted)

    def output_variance(self, rows):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(rows.project(self.for_prediction().inverse) ** 2, axis=-1)

    def variance(self):
        return jnp.sum(self.for_prediction().inverse ** 2, axis=0)

    def _solve(self, vectors, trans):
        columns = vectors.reshape(-1, self.size).astype(self.dtype).T
        with jax.default_matmul_precision("highest"):
            solved = solve_triangular(self.cholesky, columns, lower=True, trans=trans)
        return solved.T.reshape(vectors.shape)
