r"""The full posterior: the dense `(P, P)` curvature, one Cholesky factor for each prior."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.approx.posterior import Posterior, Spectrum, Structure, keep, without_rounding
from laplace_kit.curv.operator import CurvatureOperator
from laplace_kit.tree import pytree_dataclass, replace


@pytree_dataclass()
class FullStructure(Structure):
    """The curvature as a dense symmetric matrix."""

    matrix: Float[Array, "P P"]

    def mv(self, vector):
        with jax.default_matmul_precision("highest"):
            return self.matrix @ vector

    def log_det(self, precision, jitter=0.0):
        return 2 * jnp.sum(jnp.log(jnp.diagonal(self._factor(precision, jitter))))

    def posterior(self, precision, jitter=0.0):
        return FullPosterior(self._factor(precision, jitter))

    def _factor(self, precision, jitter):
        raised = precision + jitter * (jnp.diagonal(self.matrix) + precision)
        with jax.default_matmul_precision("highest"):
            return jnp.linalg.cholesky(_add_to_diagonal(self.matrix, raised))

    def scaled(self, factor):
        return FullStructure(self.matrix * factor)

    def spectrum(self):
        """Return all P eigenvalues, by one symmetric decomposition without vectors.

        Outside of transformations it is kept: every further prior precision is then O(P).
        """
        return keep(self, "spectrum", lambda: _spectrum(self.matrix))


@jax.jit
def _spectrum(matrix: Float[Array, "P P"]) -> Spectrum:
    with jax.default_matmul_precision("highest"):
        values = jnp.linalg.eigvalsh(matrix)
    values = without_rounding(values, len(values))
    return Spectrum(values, values[0], len(values))


def fit_full(operator: CurvatureOperator) -> FullStructure:
    """Return the dense curvature of an operator; see its `to_dense` for the cost."""
    return FullStructure(operator.to_dense())


@partial(jax.jit, static_argnames="layouts")
def _root(cholesky, layouts):
    identity = jnp.eye(len(cholesky), dtype=cholesky.dtype)
    with jax.default_matmul_precision("highest"):
        root = jax.scipy.linalg.solve_triangular(cholesky, identity, lower=True, trans=1)
    return tuple(layout.to_matrix(root) for layout in layouts)


def _add_to_diagonal(matrix, values):
    index = jnp.arange(len(matrix))
    return matrix.at[index, index].add(values)


@pytree_dataclass()
class FullPosterior(Posterior):
    r"""$L L^\top = H + d$, so the covariance's root is $A = L^{-\top}$.

    `root` is $A$, laid out by the layers of a model, once `for_prediction` has made it: with it,
    the rows' factors need not be multiplied out before they meet it.
    """

    cholesky: Float[Array, "P P"]
    root: tuple[Float[Array, "_ _ _ P"], ...] | None = None

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

    def for_prediction(self, layouts):
        """Return the posterior with its root; kept outside of transformations."""
        if self.root is not None:
            return self
        return keep(self, layouts, lambda: replace(self, root=self._root_for(layouts)))

    @property
    def num_projections(self):
        return self.size

    def output_covariance(self, rows):
        with jax.default_matmul_precision("highest"):
            rooted = rows.project(self._root_for(rows.layouts))
            return jnp.einsum("brp,bsp->brs", rooted, rooted)

    def output_variance(self, rows):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(rows.project(self._root_for(rows.layouts)) ** 2, axis=-1)

    def cross_covariance(self, rows, other):
        with jax.default_matmul_precision("highest"):
            root = self._root_for(rows.layouts)
            return jnp.einsum("brp,dsp->brds", rows.project(root), other.project(root))

    @jax.jit
    def variance(self):
        return jnp.sum(self.scale_mv(jnp.eye(self.size, dtype=self.dtype)) ** 2, axis=0)

    def _root_for(self, layouts):
        return _root(self.cholesky, layouts) if self.root is None else self.root

    @partial(jax.jit, static_argnames="trans")
    def _solve(self, vectors, trans):
        columns = vectors.reshape(-1, self.size).astype(self.dtype).T
        with jax.default_matmul_precision("highest"):
            solved = jax.scipy.linalg.solve_triangular(
                self.cholesky, columns, lower=True, trans=trans
            )
        return solved.T.reshape(vectors.shape)
