"""The diagonal posterior: independent parameters."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.approx.posterior import Posterior, Structure, spectrum_of
from laplace_kit.approx.spec import StructureSpec
from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.storage import storable
from laplace_kit.tree import pytree_dataclass


@storable("DiagonalStructure")
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


@storable("Diagonal")
@dataclasses.dataclass(frozen=True)
class Diagonal(StructureSpec):
    """The curvature's exact diagonal as `structure=`; `"diagonal"` for short."""

    @property
    def name(self):
        return "diagonal"

    def bytes(self, sizes):
        """Estimate the peak memory: a handful of vectors."""
        return 6 * sizes.num_params * sizes.itemsize

    def fit(self, operator, key=None):
        return fit_diagonal(operator)


def fit_diagonal(operator: SelfAdjointOperator) -> DiagonalStructure:
    """Return the exact diagonal of an operator; see its `diagonal` for the cost."""
    return DiagonalStructure(operator.diagonal())


@storable("DiagonalPosterior")
@pytree_dataclass()
class DiagonalPosterior(Posterior):
    """Independent Gaussians with standard deviations `std` `(P,)`."""

    std: Float[Array, " P"]

    @property
    def size(self):
        return len(self.std)

    def scale_mv(self, eps):
        return self.std * eps

    def scale_rmv(self, rows):
        return self.std * rows

    @property
    def num_projections(self):
        return 1

    def output_covariance(self, rows):
        return rows.outer(self.std**2)

    def output_variance(self, rows):
        return rows.squares(self.std**2)

    def cross_covariance(self, rows, other):
        with jax.default_matmul_precision("highest"):
            return rows.cross(other, self.std**2)

    def variance(self):
        return self.std**2
