r"""One layer's dense posterior, for a prior precision that is not diagonal in its eigenbasis.

Where precisions $d$ differ within a layer, $Q \operatorname{diag}(s) Q^\top +
\operatorname{diag}(d)$ has no Kronecker factors. Such a layer is multiplied out to M matrices
`(n, n)`, one for each set of coupled parameters, and each has its own Cholesky factor:
$L L^\top$ is the precision, $A = L^{-\top}$ a root of the covariance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.curv.capture.blocks import Block
from laplace_kit.curv.capture.layout import Layout
from laplace_kit.storage import storable
from laplace_kit.tree import pytree_dataclass

# Entries of a layer's matrices, those of 5,000 parameters that are all coupled: 100 MB in float32,
# and about a second for each factorisation on two cores.
MOST_ENTRIES = 5_000**2


class DensePrecision(NamedTuple):
    """One layer's posterior precision, by its Cholesky factors `(M, n, n)`; NaN if indefinite."""

    factor: Array
    layout: Layout

    def log_det_terms(self) -> tuple[Float[Array, ""], ...]:
        """Return the terms whose sum is the log-determinant."""
        return (2 * jnp.sum(jnp.log(jnp.diagonal(self.factor, axis1=1, axis2=2))),)

    def posterior(self) -> "DenseBlock":
        """Return the covariance."""
        identity = jnp.broadcast_to(
            jnp.eye(self.factor.shape[1], dtype=self.factor.dtype), self.factor.shape
        )
        with jax.default_matmul_precision("highest"):
            root = jax.scipy.linalg.solve_triangular(self.factor, identity, lower=True, trans=1)
        return DenseBlock(root, self.layout)


def dense_precision(
    curvature: Float[Array, "M n n"],
    prior: Float[Array, " P"],
    layout: Layout,
    jitter: float | Float[Array, ""] = 0.0,
) -> DensePrecision:
    """Return the precision of a layer, its curvature plus its part of the prior precision.

    The curvature's diagonal is raised by the share `jitter`.
    """
    own = layout.to_matrix(prior).reshape(curvature.shape[:2])
    own = own + jitter * jnp.diagonal(curvature, axis1=1, axis2=2)
    index = jnp.arange(curvature.shape[1])
    with jax.default_matmul_precision("highest"):
        factor = jnp.linalg.cholesky(curvature.at[:, index, index].add(own))
    return DensePrecision(factor, layout)


@storable("DenseBlock")
@pytree_dataclass(static=("layout",))
class DenseBlock:
    r"""One layer's covariance $A A^\top$, by its root `(M, n, n)` in the order of its matrices."""

    root: Float[Array, "M n n"]
    layout: Layout

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the covariance."""
        return self.root.dtype

    @property
    def num_projections(self) -> int:
        """The number of vectors on which a row is projected for its output covariance."""
        return self.layout.size

    def scale_mv(self, matrix: Float[Array, "G I O K"]) -> Float[Array, "G I O K"]:
        r"""Return $A m$."""
        return (self.root @ self._parts(matrix)).reshape(matrix.shape)

    def scale_rmv(self, matrix: Float[Array, "G I O K"]) -> Float[Array, "G I O K"]:
        r"""Return $A^\top m$."""
        return (self.root.mT @ self._parts(matrix)).reshape(matrix.shape)

    def variance(self) -> Float[Array, "G I O"]:
        """Return the marginal variances."""
        return jnp.sum(self.root**2, axis=2).reshape(self.layout.shape)

    def output_covariance(self, rows: Block) -> Float[Array, "B R R"]:
        """Return the layer's part of the covariance of outputs."""
        rooted = self._rooted(rows)
        return jnp.einsum("brk,bsk->brs", rooted, rooted)

    def cross_covariance(self, rows: Block, other: Block) -> Float[Array, "B R D S"]:
        """Return the layer's part of the covariance between two batches of outputs."""
        return jnp.einsum("brk,dsk->brds", self._rooted(rows), self._rooted(other))

    def output_variance(self, rows: Block) -> Float[Array, "B R"]:
        """Return the diagonals of the output covariance, at least zero."""
        return jnp.sum(self._rooted(rows) ** 2, axis=2)

    def _rooted(self, rows: Block) -> Float[Array, "B R K"]:
        """Return $J A$: from the rows' factors if there is one matrix, else with dense rows."""
        if len(self.root) == 1:
            return rows.project(self.root.reshape(*self.layout.shape, -1))
        dense = rows.to_dense()
        parts = dense.reshape(*dense.shape[:2], *self.root.shape[:2])
        rooted = jnp.einsum("brmi,mij->brmj", parts, self.root)
        return rooted.reshape(*dense.shape[:2], -1)

    def _parts(self, matrix: Float[Array, "G I O K"]) -> Float[Array, "M n K"]:
        return matrix.reshape(*self.root.shape[:2], -1)
