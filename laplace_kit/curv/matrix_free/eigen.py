r"""Extreme eigenpairs of an operator, to a tolerance: by restarted Lanczos, of ARPACK."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.linearized import linearized
from laplace_kit.curv.matrix_free.ritz import (
    Eigenpairs,
    check_rank,
    dense_eigenpairs,
    rayleigh_ritz,
    take,
)
from laplace_kit.curv.rounding import rounding
from laplace_kit.errors import check_count, check_option

_NORM_STEPS = 12  # vectors for the norm alone: a few per cent short of it does no harm
_MIN_KRYLOV = 20  # vectors that Lanczos keeps at least


def eigenpairs(
    operator: SelfAdjointOperator,
    num: int,
    *,
    key: PRNGKeyArray,
    which: str = "largest",
    tolerance: float | None = None,
    max_iterations: int = 300,
) -> Eigenpairs:
    r"""Return eigenpairs from one end of the spectrum, or from both.

    ARPACK, with implicit restarts, finds the largest eigenvalues of $\pm A / \|A\| + 2 I$: between
    1 and 3, so that one tolerance, relative to the norm, means the same at both ends and at every
    scale. Where the search space would be as large as the whole one, the dense matrix is
    decomposed.

    Parameters
    ----------
    operator
        Any self-adjoint operator, in memory or over a stream. Not inside a JAX transformation.
    num
        How many pairs are wanted, from 1 to P; of both ends, as many of each, at most P / 2.
    key
        For the start vector.
    which
        `"largest"`, `"smallest"` (the most negative), or `"both"`.
    tolerance
        On the residuals, relative to the norm; by default the square root of the dtype's epsilon,
        or the rounding of a model in lower precision.
    max_iterations
        The number of restarts.

    Returns
    -------
    pairs
        In float32 or better. Cost: for each end a number of products that grows with how close
        eigenvalues are, and `num` for the residuals; or the dense matrix.

    Raises
    ------
    ValueError
        If `num` is impossible, `which` is not known, the tolerance is not a positive number or
        `max_iterations` is not positive.
    RuntimeError
        If no pair has converged.

    Warns
    -----
    RuntimeWarning
        If some pairs have not converged; they are left out.

    References
    ----------
    Lehoucq, Sorensen and Yang (1998), ARPACK users' guide.
    """
    check_option("which", which, ("largest", "smallest", "both"))
    dim = operator.shape[0]
    check_count("max_iterations", max_iterations, "iterations")
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(
            f"Found tolerance={tolerance}, expected a number between 0 and 1, relative to the norm."
        )
    check_rank(2 * num if which == "both" else num, dim)
    if tolerance is None:
        tolerance = max(float(jnp.finfo(operator.dtype).eps) ** 0.5, rounding(operator))
    if max(5 * num, _MIN_KRYLOV) >= dim:
        high, low = {"largest": (num, 0), "smallest": (0, num), "both": (num, num)}[which]
        return take(dense_eigenpairs(operator), np.r_[:high, dim - low : dim])

    operator = linearized(operator)
    start = jax.random.normal(key, (dim,), jnp.promote_types(operator.dtype, jnp.float32))
    norm, spent = _norm(operator, start)
    size = min(max(2 * num + 1, _MIN_KRYLOV), dim - 1)
    signs = {"largest": (1.0,), "smallest": (-1.0,), "both": (1.0, -1.0)}[which]
    rows = []
    for sign in signs:
        # What ARPACK judges by is relative to an eigenvalue of what it is given: up to three.
        shifted = operator * (sign / norm) + 2.0
        _, found, steps = _arpack(shifted, start, num, "LA", size, tolerance / 4, max_iterations)
        rows, spent = [*rows, found], spent + steps
    rows = jnp.concatenate(rows)
    if len(rows) == 0:
        raise RuntimeError(
            f"Found no eigenpair within a tolerance of {tolerance:.2g} in {max_iterations} "
            "iterations; raise `tolerance` or `max_iterations`."
        )
    pairs = rayleigh_ritz(operator, rows, tolerance * norm, spent)
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


def _norm(operator, start):
    """Return the largest absolute eigenvalue, roughly, and the number of products."""
    length = float(jnp.linalg.norm(operator.mv(start.astype(operator.dtype))))
    if length == 0:  # as of a matrix of zeros, on which ARPACK has nothing to start from
        return 1.0, 1
    values, _, spent = _arpack(operator, start, 1, "LM", _NORM_STEPS, tolerance=1.0)
    norm = np.abs(values).max(initial=length / jnp.linalg.norm(start).item())
    return float(norm), spent + 1


def _arpack(operator, start, num, which, size, tolerance, max_iterations=None):
    """Return the values and rows that have converged, and the number of products.

    Its tolerance is relative to the values, but for those smaller than epsilon to the power of 2/3.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    spent = 0

    def matvec(v):
        nonlocal spent
        spent += 1
        return np.asarray(operator.mv(jnp.asarray(v, operator.dtype)), start.dtype)

    matrix = LinearOperator(operator.shape, matvec=matvec, dtype=np.dtype(start.dtype))
    try:
        values, vectors = eigsh(
            matrix,
            num,
            v0=np.asarray(start),
            which=which,
            ncv=size,
            tol=tolerance,
            maxiter=max_iterations,
        )
    except ArpackNoConvergence as partial_result:
        values, vectors = partial_result.eigenvalues, partial_result.eigenvectors
    return values, jnp.asarray(vectors.T, start.dtype), spent
