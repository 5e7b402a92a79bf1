r"""Extreme eigenpairs of an operator, to a tolerance: by restarted Lanczos, or by LOBPCG."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse.linalg import lobpcg_standard
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.linearized import linearized
from laplace_kit.curv.matrix_free.host import on_host, product
from laplace_kit.curv.matrix_free.lanczos import check_rank
from laplace_kit.curv.matrix_free.quadrature import gauss_quadrature
from laplace_kit.errors import check_option
from laplace_kit.tree import pytree_dataclass

_NORM_STEPS = 12  # products spent on the norm: a few per cent short of it does no harm
_MIN_KRYLOV = 20  # vectors that Lanczos keeps at least


@pytree_dataclass(static=("num_products",))
class ExtremeEigenpairs:
    r"""Eigenpairs from the ends of a spectrum.

    `values` `(R,)` in descending order; `vectors` `(R, P)` with orthonormal rows; `residuals`
    `(R,)`, the norms $\|A u - \lambda u\|$, within which of each value there is an eigenvalue;
    `converged` `(R,)`, whether they are as small as was asked for; `num_products`.
    """

    values: Float[Array, " R"]
    vectors: Float[Array, "R P"]
    residuals: Float[Array, " R"]
    converged: Bool[Array, " R"]
    num_products: int


def eigenpairs(
    operator: SelfAdjointOperator,
    num: int,
    *,
    key: PRNGKeyArray,
    which: str = "largest",
    method: str = "lanczos",
    tolerance: float | None = None,
    max_iterations: int = 300,
) -> ExtremeEigenpairs:
    r"""Return eigenpairs from one end of the spectrum, or from both.

    Both methods find the largest eigenvalues of $\pm A + 2 \|A\| I$, where all are positive, so
    that one tolerance, relative to the norm, means the same at both ends. Where the search space
    would be as large as the whole one, the dense matrix is decomposed instead.

    Parameters
    ----------
    operator
        Any self-adjoint operator, in memory or over a stream. Not inside a JAX transformation.
    num
        How many pairs are wanted, from 1 to P; of both ends, as many of each, at most P / 2.
    key
        For the start vectors.
    which
        `"largest"`, `"smallest"` (the most negative), or `"both"`.
    method
        `"lanczos"`, ARPACK's with implicit restarts, which asks for one product at a time; or
        `"lobpcg"`, JAX's, which takes products with blocks of vectors: more products in fewer
        passes over the data, and eigenvalues that repeat come together.
    tolerance
        On the residuals, relative to the norm; by default the square root of the dtype's epsilon.
    max_iterations
        Of restarts, or of blocks.

    Returns
    -------
    pairs
        In float32 or better. Cost: for each end a number of products that grows with how close
        eigenvalues are, and `num` for the residuals; or the dense matrix.

    Raises
    ------
    ValueError
        If `num` is impossible, or a name is not known.
    RuntimeError
        If no pair has converged.

    Warns
    -----
    RuntimeWarning
        If some pairs have not converged. Lanczos leaves them out.

    References
    ----------
    Lehoucq, Sorensen and Yang (1998), ARPACK users' guide. Knyazev (2001), Toward the optimal
    preconditioned eigensolver: locally optimal block preconditioned conjugate gradient method.
    """
    check_option("which", which, ("largest", "smallest", "both"))
    find = {"lanczos": _lanczos, "lobpcg": _lobpcg}[
        check_option("method", method, ("lanczos", "lobpcg"))
    ]
    dim = operator.shape[0]
    check_rank(2 * num if which == "both" else num, dim)
    tolerance = float(jnp.finfo(operator.dtype).eps) ** 0.5 if tolerance is None else tolerance
    if max(5 * num, _MIN_KRYLOV) >= dim:
        return _dense(operator, num, which, tolerance)

    operator = linearized(operator)
    dtype = jnp.promote_types(operator.dtype, jnp.float32)
    starts = jax.random.normal(key, (num, dim), dtype)
    norm = on_host(_norm, operator, starts[0])
    signs = {"largest": (1.0,), "smallest": (-1.0,), "both": (1.0, -1.0)}[which]
    # What both judge by is relative to an eigenvalue of what they are given: up to three norms.
    bound = tolerance / 4
    found = [find(sign * operator + 2 * norm, starts, bound, max_iterations) for sign in signs]
    rows = jnp.concatenate([rows for rows, _ in found])
    if len(rows) == 0:
        raise RuntimeError(
            f"Found no eigenpair within a tolerance of {tolerance:.2g} in {max_iterations} "
            "iterations; raise `tolerance` or `max_iterations`."
        )
    rows = _orthonormal(rows)
    images = operator.matmat(rows.astype(operator.dtype)).astype(dtype)
    values, vectors, residuals = _rayleigh_ritz(rows, images)
    pairs = ExtremeEigenpairs(
        values,
        vectors,
        residuals,
        converged=residuals <= tolerance * norm,
        num_products=_NORM_STEPS + sum(spent for _, spent in found) + len(rows),
    )
    missing = len(signs) * num - int(pairs.converged.sum())
    if missing:
        warnings.warn(
            f"{missing} of {len(signs) * num} eigenpairs have not converged to a residual of "
            f"{tolerance:.2g} times the norm in {max_iterations} iterations; raise `tolerance` or "
            "`max_iterations`.",
            RuntimeWarning,
            stacklevel=2,
        )
    return pairs


def _dense(operator, num, which, tolerance):
    with jax.default_matmul_precision("highest"):
        values, vectors = jnp.linalg.eigh(operator.to_dense())
    dim = len(values)
    rounding = dim * jnp.finfo(values.dtype).eps * jnp.abs(values).max()
    end = {"largest": (num, 0), "smallest": (0, num), "both": (num, num)}[which]
    wanted = np.r_[dim - 1 : dim - 1 - end[0] : -1, end[1] - 1 : -1 : -1]
    residuals = jnp.full(len(wanted), rounding)
    converged = residuals <= max(tolerance * jnp.abs(values).max(), rounding)
    return ExtremeEigenpairs(values[wanted], vectors[:, wanted].T, residuals, converged, dim)


@jax.jit
def _norm(operator, start):
    """Return the largest absolute value among the nodes of a short quadrature."""
    with jax.default_matmul_precision("highest"):
        nodes, _ = gauss_quadrature(_NORM_STEPS)(product(operator), start)
    norm = jnp.abs(nodes).max()
    return jnp.where(norm > 0, norm, 1)


def _lanczos(operator, starts, tolerance, max_iterations):
    """Return eigenvectors as rows, and the number of products, by ARPACK."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    num, dim = starts.shape
    spent = 0

    def matvec(v):
        nonlocal spent
        spent += 1
        return np.asarray(operator.mv(jnp.asarray(v, operator.dtype)), starts.dtype)

    matrix = LinearOperator(operator.shape, matvec=matvec, dtype=np.dtype(starts.dtype))
    size = min(max(2 * num + 1, _MIN_KRYLOV), dim - 1)
    start = np.asarray(starts[0])
    try:
        _, vectors = eigsh(
            matrix, num, which="LA", v0=start, ncv=size, tol=tolerance, maxiter=max_iterations
        )
    except ArpackNoConvergence as partial_result:
        vectors = partial_result.eigenvectors
    return jnp.asarray(vectors.T, starts.dtype), spent


def _lobpcg(operator, starts, tolerance, max_iterations):
    """Return eigenvectors as rows, and the number of products, by JAX."""
    num, dim = starts.shape
    # JAX asks for residuals below `10 P (|A u| + value)` times its tolerance.
    rows, steps = on_host(_blocks, operator, starts, tolerance / (20 * dim), max_iterations)
    return rows, 2 + num + 4 * num * int(steps)


@partial(jax.jit, static_argnums=3)
def _blocks(operator, starts, tolerance, max_iterations):
    mv = product(operator)
    _, columns, steps = lobpcg_standard(
        lambda block: mv(block.T).T, starts.T, max_iterations, tolerance
    )
    return columns.T, steps


@jax.jit
def _orthonormal(rows):
    with jax.default_matmul_precision("highest"):
        return jnp.linalg.qr(rows.T)[0].T


@jax.jit
def _rayleigh_ritz(basis, images):
    with jax.default_matmul_precision("highest"):
        small = basis @ images.T
        values, rotation = jnp.linalg.eigh(0.5 * (small + small.T))
        values, rotation = values[::-1], rotation[:, ::-1].T
        vectors, images = rotation @ basis, rotation @ images
    return values, vectors, jnp.linalg.norm(images - values[:, None] * vectors, axis=1)
