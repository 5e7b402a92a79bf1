"""The diagonal posterior: independent parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.approx.posterior import Posterior, Structure, spectrum_of
from laplace_kit.curv.operator import CurvatureOperator
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class DiagonalStructure(Structure):
    """The curvature's exact diagonal."""

    diagonal: Float[Array, " P"]

    def mv(self, vector):
        return self.diagonal * vector

    def log_det(self, precision, jitter=0.0):
        return jnp.sum(jnp.log((self.diagonal + precision) * (1 + jitter)))

    def posterior(self, precision, jitter=0.0):
        return DiagonalPosterior(1 / jnp.sqrt((self.diagonal + precision) * (1 + jitter)))

    def scaled(self, factor):
        return DiagonalStructure(self.diagonal * factor)

    def spectrum(self):
        return spectrum_of((self.diagonal,))


def fit_diagonal(operator: CurvatureOperator) -> DiagonalStructure:
    """Return the exact diagonal of an operator; see its `diagonal` for the cost."""
    return DiagonalStructure(operator.diagonal())


@pytree_dataclass()
class DiagonalPosterior(Posterior):
    """Standard deviations, `(P,)`."""

    std: Float[Array, " P"]

    @property
    def size(self):
        return len(self.std)

    @property
    def dtype(self):
        return self.std.dtype

    def scale_mv(self, eps):
        return self.std * eps

    def scale_rmv(self, rows):
        return self.std * rows

    def output_covariance(self, rows):
        return rows.outer(self.std**2)

    def output_variance(self, rows):
        return rows.squares(self.std**2)

    def cross_covariance(self, rows, other):
        with jax.default_matmul_precision("highest"):
            return rows.cross(other, self.std**2)

    def variance(self):
        return self.std**2
