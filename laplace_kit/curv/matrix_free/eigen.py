r"""Extreme eigenpairs of an operator, to a tolerance: by restarted Lanczos, or by LOBPCG."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse.linalg import lobpcg_standard
from jaxtyping import PRNGKeyArray

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.linearized import linearized
from laplace_kit.curv.matrix_free.host import on_host, product
from laplace_kit.curv.matrix_free.ritz import (
    Eigenpairs,
    check_rank,
    dense_eigenpairs,
    rayleigh_ritz,
    take,
)
from laplace_kit.errors import check_count, check_option

_NORM_STEPS = 12  # vectors for the norm alone: a few per cent short of it does no harm
_MIN_KRYLOV = 20  # vectors that Lanczos keeps at least


def eigenpairs(
    operator: SelfAdjointOperator,
    num: int,
    *,
    key: PRNGKeyArray,
    which: str = "largest",
    method: str = "lanczos",
    tolerance: float | None = None,
    max_iterations: int = 300,
    progress: bool = False,
) -> Eigenpairs:
    r"""Return eigenpairs from one end of the spectrum, or from both.

    Both methods find the largest eigenvalues of $\pm A / \|A\| + 2 I$, which lie between 1 and 3,
    so that one tolerance, relative to the norm, means the same at both ends and at every scale.
    Where the search space would be as large as the whole one, the dense matrix is decomposed.

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
    progress
        Count the products of Lanczos on the screen.

    Returns
    -------
    pairs
        In float32 or better. Cost: for each end a number of products that grows with how close
        eigenvalues are, and `num` for the residuals; or the dense matrix.

    Raises
    ------
    ValueError
        If `num` is impossible, a name is not known, the tolerance is not a positive number or
        `max_iterations` is not positive.
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
    check_option("method", method, ("lanczos", "lobpcg"))
    if progress and method == "lobpcg":
        raise ValueError(
            "Found progress=True with method='lobpcg', expected False, as its loop is compiled; "
            "take method='lanczos', or for a stream lk.data.as_data(batches, progress=True)."
        )
    find = partial(_lanczos, progress=progress) if method == "lanczos" else _lobpcg
    dim = operator.shape[0]
    check_count("max_iterations", max_iterations, "iterations")
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(
            f"Found tolerance={tolerance}, expected a number between 0 and 1, relative to the norm."
        )
    check_rank(2 * num if which == "both" else num, dim)
    tolerance = float(jnp.finfo(operator.dtype).eps) ** 0.5 if tolerance is None else tolerance
    if max(5 * num, _MIN_KRYLOV) >= dim:
        high, low = {"largest": (num, 0), "smallest": (0, num), "both": (num, num)}[which]
        return take(dense_eigenpairs(operator), np.r_[:high, dim - low : dim])

    operator = linearized(operator)
    dtype = jnp.promote_types(operator.dtype, jnp.float32)
    starts = jax.random.normal(key, (num, dim), dtype)
    norm, spent = _norm(operator, starts[0])
    signs = {"largest": (1.0,), "smallest": (-1.0,), "both": (1.0, -1.0)}[which]
    # What both judge by is relative to an eigenvalue of what they are given: up to three.
    bound = tolerance / 4
    found = [find(operator * (sign / norm) + 2.0, starts, bound, max_iterations) for sign in signs]
    rows = jnp.concatenate([rows for rows, _ in found])
    if len(rows) == 0:
        raise RuntimeError(
            f"Found no eigenpair within a tolerance of {tolerance:.2g} in {max_iterations} "
            "iterations; raise `tolerance` or `max_iterations`, or take method='lobpcg'."
        )
    spent += sum(spent for _, spent in found)
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
    values, _, spent = arpack(operator, start, 1, "LM", _NORM_STEPS, tolerance=1.0)
    norm = np.abs(values).max(initial=length / jnp.linalg.norm(start).item())
    return float(norm), spent + 1


def _lanczos(operator, starts, tolerance, max_iterations, *, progress):
    """Return eigenvectors as rows, and the number of products, by ARPACK."""
    num, dim = starts.shape
    size = min(max(2 * num + 1, _MIN_KRYLOV), dim - 1)
    _, rows, spent = arpack(
        operator, starts[0], num, "LA", size, tolerance, max_iterations, progress=progress
    )
    return rows, spent


def arpack(operator, start, num, which, size, tolerance, max_iterations=None, *, progress=False):
    """Return the values and rows that have converged, and the number of products.

    Its tolerance is relative to the values, but for those smaller than epsilon to the power of 2/3.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
    from tqdm.auto import tqdm

    counter = tqdm(desc="products", leave=False, disable=not progress)
    spent = 0

    def matvec(v):
        nonlocal spent
        spent += 1
        counter.update()
        return np.asarray(operator.mv(jnp.asarray(v, operator.dtype)), start.dtype)

    matrix = LinearOperator(operator.shape, matvec=matvec, dtype=np.dtype(start.dtype))
    try:
        values, vectors = eigsh(
            matrix,
            num,
            which=which,
            v0=np.asarray(start),
            ncv=size,
            tol=tolerance,
            maxiter=max_iterations,
        )
    except ArpackNoConvergence as partial_result:
        values, vectors = partial_result.eigenvalues, partial_result.eigenvectors
    finally:
        counter.close()
    return values, jnp.asarray(vectors.T, start.dtype), spent


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
