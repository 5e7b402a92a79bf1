"""Eigenpairs with their residuals: Ritz pairs of a subspace, or all pairs of the dense matrix."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.rounding import rounding
from laplace_kit.placement import Placement, automatic, by_last_axis, everywhere
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass(static=("num_products",))
class Eigenpairs:
    r"""Eigenpairs of a symmetric matrix, with their residuals.

    `values` `(R,)` in descending order; `vectors` `(R, P)` with orthonormal rows; `residuals`
    `(R,)`, the norms $\|A u - \lambda u\|$: there is an eigenvalue within this distance of each
    value; `converged` `(R,)`, whether residuals are within the tolerance; `num_products`.
    """

    values: Float[Array, " R"]
    vectors: Float[Array, "R P"]
    residuals: Float[Array, " R"]
    converged: Bool[Array, " R"]
    num_products: int


def rayleigh_ritz(
    operator: SelfAdjointOperator,
    rows: Float[Array, "R P"],
    bound: float,
    num_products: int,
    placement: Placement | None = None,
) -> Eigenpairs:
    """Return the eigenpairs of an operator on a subspace.

    Parameters
    ----------
    operator
        Any self-adjoint operator, in memory or over a stream.
    rows
        Vectors that span the subspace; they need not be orthonormal.
    bound
        The largest residual that counts as converged.
    num_products
        The number of products already made for the rows.
    placement
        Devices over which rows are spread along P, by products one after the other. `None`: every
        device has all of them, and all products share a pass.

    Returns
    -------
    pairs
        In the dtype of the rows. Cost: R products in one pass over the data.

    References
    ----------
    Parlett (1998), The symmetric eigenvalue problem, chapter 11.
    """
    if placement is None:
        basis = _orthonormal(rows)
        images = operator.matmat(basis.astype(operator.dtype)).astype(basis.dtype)
    else:
        basis, images = automatic(partial(_spread_images, placement), operator, rows)
    values, vectors, residuals = _ritz_pairs(basis, images)
    return Eigenpairs(values, vectors, residuals, residuals <= bound, num_products + len(rows))


def dense_eigenpairs(operator: SelfAdjointOperator) -> Eigenpairs:
    """Return all eigenpairs, from the dense matrix; the residuals are a bound on its rounding."""
    with jax.default_matmul_precision("highest"):
        values, vectors = jnp.linalg.eigh(operator.to_dense())
    num = len(values)
    relative = max(num * float(jnp.finfo(values.dtype).eps), rounding(operator))
    return Eigenpairs(*_descending(values, vectors, relative), num)


def take(pairs: Eigenpairs, wanted) -> Eigenpairs:
    """Return the pairs selected by a slice or an index array."""
    parts = pairs.values, pairs.vectors, pairs.residuals, pairs.converged
    if isinstance(wanted, slice):
        wanted = np.arange(len(pairs.values))[wanted]
    return Eigenpairs(*_rows(parts, wanted), pairs.num_products)


def check_rank(rank: int, num_params: int) -> int:
    """Return a possible rank of a `(P, P)` matrix; raise a `ValueError` for others."""
    if not hasattr(type(rank), "__index__") or not 1 <= rank <= num_params:
        raise ValueError(
            f"Found rank={rank}, expected a number from 1 to P={num_params}, the number of "
            "parameters; lower it, or leave it out."
        )
    return rank


@jax.jit
def _rows(parts, index):
    return tuple(part[index] for part in parts)


@jax.jit
def _descending(values, vectors, relative):
    residuals = jnp.full(len(values), relative * jnp.abs(values).max())
    return values[::-1], vectors[:, ::-1].T, residuals, jnp.ones(len(values), bool)


@jax.jit
def _orthonormal(rows):
    with jax.default_matmul_precision("highest"):
        return jnp.linalg.qr(rows.T)[0].T


@partial(jax.jit, static_argnums=0)
def _spread_images(placement, operator, rows):
    """Return an orthonormal basis of nearly orthonormal rows, and its images, spread along P."""
    basis = by_last_axis(rows, placement)
    with jax.default_matmul_precision("highest"):
        for _ in range(2):  # the second time for roundings of the first
            root = jnp.linalg.cholesky(basis @ basis.T)
            inverse = jax.scipy.linalg.solve_triangular(root, jnp.eye(len(root)), lower=True)
            basis = by_last_axis(inverse.astype(basis.dtype) @ basis, placement)

    def image(v):
        whole = everywhere(v, placement).astype(operator.dtype)
        return by_last_axis(operator.mv(whole).astype(v.dtype), placement)

    return basis, by_last_axis(jax.lax.map(image, basis), placement)


@jax.jit
def _ritz_pairs(basis, images):
    with jax.default_matmul_precision("highest"):
        small = basis @ images.T
        values, rotation = jnp.linalg.eigh(0.5 * (small + small.T))
        values, rotation = values[::-1], rotation[:, ::-1].T
        vectors, images = rotation @ basis, rotation @ images
    return values, vectors, jnp.linalg.norm(images - values[:, None] * vectors, axis=1)
