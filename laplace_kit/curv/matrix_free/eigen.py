r"""Extreme eigenpairs of an operator, to a tolerance, by ARPACK's restarted Lanczos."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.linearization import linearized
from laplace_kit.curv.matrix_free.ritz import (
    Eigenpairs,
    check_rank,
    dense_eigenpairs,
    rayleigh_ritz,
    take,
)
from laplace_kit.curv.rounding import rounding
from laplace_kit.errors import check_count, check_option, warn
from laplace_kit.host import fetch, fetch_array

_NORM_STEPS = 12  # Krylov vectors for the norm, which may be a few per cent too small
_MIN_KRYLOV = 20  # smallest number of Krylov vectors


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

    ARPACK, with implicit restarts, finds the largest eigenvalues of $\pm A / \|A\| + 2 I$: they lie
    between 1 and 3, so that one tolerance, relative to the norm, means the same at both ends and at
    every scale. If the Krylov space would be the whole space, the dense matrix is decomposed.

    Parameters
    ----------
    operator
        Any self-adjoint operator, in memory or over a stream. Not inside a JAX transformation.
    num
        The number of pairs, from 1 to P; for both ends, the number at each end, at most P / 2.
    key
        Random key for the start vector.
    which
        `"largest"`, `"smallest"` (the most negative), or `"both"`.
    tolerance
        Bound of the residuals, relative to the norm; by default the square root of the dtype's
        epsilon, or the rounding of a model in lower precision.
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
        If `num` is out of range, `which` is not known, the tolerance is not between 0 and 1, or
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
        # ARPACK's tolerance is relative to an eigenvalue of the shifted matrix, which is at most 3.
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
        warn(
            f"{missing} of {len(signs) * num} eigenpairs have not converged to a residual of "
            f"{tolerance:.2g} times the norm in {max_iterations} iterations; raise `tolerance` or "
            "`max_iterations`.",
            RuntimeWarning,
        )
    return pairs


def _norm(operator, start):
    """Return a rough estimate of the largest absolute eigenvalue, and the number of products."""
    length = float(jnp.linalg.norm(operator.mv(start.astype(operator.dtype))))
    if length == 0:  # as for a matrix of zeros, for which ARPACK has no start vector
        return 1.0, 1
    values, _, spent = _arpack(operator, start, 1, "LM", _NORM_STEPS, tolerance=1.0)
    norm = np.abs(values).max(initial=length / jnp.linalg.norm(start).item())
    return float(norm), spent + 1


def _arpack(operator, start, num, which, size, tolerance, max_iterations=None):
    """Return the converged values and rows, and the number of products.

    The tolerance is relative to the values, or to epsilon to the power of 2/3 if they are smaller.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    spent = 0

    def matvec(v):
        nonlocal spent
        spent += 1
        return fetch_array(operator.mv(jnp.asarray(v, operator.dtype)), start.dtype)

    matrix = LinearOperator(operator.shape, matvec=matvec, dtype=np.dtype(start.dtype))
    try:
        values, vectors = eigsh(
            matrix,
            num,
            v0=fetch(start),
            which=which,
            ncv=size,
            tol=tolerance,
            maxiter=max_iterations,
        )
    except ArpackNoConvergence as partial_result:
        values, vectors = partial_result.eigenvalues, partial_result.eigenvectors
    return values, jnp.asarray(vectors.T, start.dtype), spent
