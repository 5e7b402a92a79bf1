r"""Leading eigenpairs of a curvature operator by Lanczos with full reorthogonalisation."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.linearized import linearized
from laplace_kit.curv.matrix_free.eigen import arpack, eigenpairs
from laplace_kit.curv.matrix_free.ritz import (
    Eigenpairs,
    check_rank,
    dense_eigenpairs,
    rayleigh_ritz,
    take,
)
from laplace_kit.curv.rounding import rounding
from laplace_kit.tree import replace

_SMALLEST_DEPTH = 20  # vectors that ARPACK keeps in search of the smallest eigenvalue
_CHECK_DEPTH = 10  # products spent on asking whether a larger eigenvalue was missed
_MAX_ROUNDS = 20
_MAX_RESTARTS = 5  # runs from the vectors that are wanted and have not converged
_BREAKDOWN = 10  # roundings of the norm: what adds less to a Krylov space adds nothing
# A basis is read for inner products and for what they take away: by blocks, from memory once.
_ROWS_IN_CACHE = 8
_ROUNDINGS = 4  # times the square root of P: the rounding of an inner product, at its most


def leading_eigenpairs(
    operator: SelfAdjointOperator, rank: int, *, key: PRNGKeyArray | None = None
) -> tuple[Eigenpairs, Float[Array, ""]]:
    r"""Return the algebraically largest eigenpairs of an operator, and its smallest Ritz value.

    What has not converged starts the next run. A Krylov space holds one copy of each eigenvalue, so
    runs are repeated on the operator deflated by what was found, until a short run shows nothing
    larger than the smallest value kept. A last block of products turns the basis to Ritz vectors
    and measures the residuals. All products of all runs share one linearisation, where memory
    allows. Where the Krylov space would reach the whole space, the dense matrix is decomposed
    instead: exact, and cheaper. Over a stream `eigenpairs` finds them, by ARPACK, which asks the
    host for each product.

    Parameters
    ----------
    operator
        Any self-adjoint operator, in memory or over a stream. Not inside a JAX transformation: how
        many rounds are run depends on values.
    rank
        How many pairs are wanted, from 1 to P. Fewer come back where the matrix has lower rank.
    key
        For the start vector; without one it is a fixed low-discrepancy sequence.

    Returns
    -------
    pairs
        In float32 or better; those within the square root of its epsilon, relative to the norm, are
        said to have converged, or within the rounding of a model in lower precision; eigenvalues
        below that rounding are left out. Cost: `2 rank + 10` products for each run, of which a
        spectrum that decays needs one or two, and `rank` for the residuals; or the dense matrix.
    smallest
        The smallest Ritz value that was met, `()`: no smaller than the smallest eigenvalue where
        that is negative.

    Raises
    ------
    ValueError
        If `rank` is not between 1 and P.
    RuntimeError
        If over a stream no pair has converged.

    Warns
    -----
    RuntimeWarning
        If over a stream some pairs have not converged; they are left out.

    References
    ----------
    Golub and Van Loan (2013), Matrix computations, chapter 10. Parlett (1998), The symmetric
    eigenvalue problem, chapter 13.
    """
    num = operator.shape[0]
    check_rank(rank, num)
    depth = 2 * rank + _CHECK_DEPTH
    if depth >= num:
        pairs = dense_eigenpairs(operator)
        return take(pairs, slice(rank)), pairs.values[-1]
    operator = linearized(operator)
    if not operator.in_memory:
        return _leading_on_host(operator, rank, key)

    found = _krylov_rounds(operator, rank, depth, key)
    bound = _tolerance(found.basis.dtype, rounding(operator)) * float(found.norm)
    pairs = rayleigh_ritz(operator, found.basis, bound, found.num_products)
    return pairs, jnp.minimum(jnp.asarray(found.smallest, pairs.values.dtype), pairs.values[-1])


def _tolerance(dtype: jnp.dtype, rounding: float) -> float:
    """Return how small residuals are to be, relative to the norm: no smaller than rounding."""
    return max(float(jnp.finfo(dtype).eps) ** 0.5, rounding)


def _start_vector(num, round_number, key):
    """Return a unit vector with no structure that a model could share."""
    if key is not None:
        start = jax.random.normal(jax.random.fold_in(key, round_number), (num,))
    else:  # the fractional parts of multiples of an irrational number fill (-1/2, 1/2) evenly
        ratio = np.sqrt(2.0) + round_number * np.sqrt(3.0)
        start = jnp.asarray((np.arange(1, num + 1) * ratio) % 1.0 - 0.5)
    return start / jnp.linalg.norm(start)


class _Found(NamedTuple):
    """A basis of the leading eigenvectors, what was met on the way to it, and its cost."""

    basis: Float[Array, "R P"]
    smallest: float
    norm: float
    num_products: int


def _krylov_rounds(operator, rank, depth, key):
    num = operator.shape[0]
    dtype = jnp.promote_types(operator.dtype, jnp.float32)
    eps = float(jnp.finfo(dtype).eps)
    # In float32 P roundings are as large as all eigenvalues where P is 10 million.
    precision = max(_ROUNDINGS * np.sqrt(num) * eps, rounding(operator))
    tolerance = _tolerance(dtype, rounding(operator))
    basis = jnp.zeros((rank, num), dtype)  # rows of zeros deflate nothing
    values, smallest, norm, spent = np.zeros(0), np.inf, 0.0, 0
    restart, restarts = None, 0
    for round_number in range(_MAX_ROUNDS):
        start = _start_vector(num, round_number, key).astype(dtype) if restart is None else restart
        checking = len(values) == rank
        for steps in (_CHECK_DEPTH, depth) if checking else (depth,):
            ritz = _ritz_pairs(*tridiagonalize(operator, start, basis, steps, norm))
            smallest = min(smallest, ritz.values[-1])
            norm, spent = max(norm, np.abs(ritz.values).max()), spent + steps
            if checking and ritz.values[0] <= values[-1] + precision * norm:
                return _Found(basis, smallest, norm, spent)
        positive = ritz.values > precision * norm
        converged = positive & (ritz.residuals <= tolerance * norm)
        # Both ends of the spectrum converge: only those above the first that has not are leading.
        new = np.logical_and.accumulate(converged)
        if not positive.any():
            break
        wanted = positive & ~new & (np.arange(len(new)) < rank - len(values))
        restart = None
        if wanted.any() and restarts < _MAX_RESTARTS:
            restarts += 1
            restart = _combine(ritz.coordinates[:, wanted].sum(axis=1), ritz.krylov)
        elif not new.any():
            new = positive
        values, basis = _merge(values, basis, ritz, new)
    if len(values) == 0:  # the vector that came closest to a positive eigenvalue
        return _Found(_combine(ritz.coordinates[:, :1].T, ritz.krylov), smallest, norm, spent)
    return _Found(basis[: len(values)], smallest, norm, spent)


def _merge(values, basis, ritz, new):
    """Return the largest of what is kept and what is new, as many as the basis has rows."""
    rank, count = len(basis), len(values)
    candidates = np.concatenate([values, ritz.values[new]])
    kept = np.argsort(-candidates, kind="stable")[:rank]
    # One combination of the rows of both for each candidate.
    weights = np.zeros((len(candidates), rank + len(ritz.krylov)))
    weights[:count, :count] = np.eye(count)
    weights[count:, rank:] = ritz.coordinates[:, new].T
    weights = np.pad(weights[kept], ((0, rank - len(kept)), (0, 0)))
    merged = _combine(weights[:, :rank], basis) + _combine(weights[:, rank:], ritz.krylov)
    return candidates[kept], merged


@jax.jit
def _combine(coefficients: Float[Array, "*R K"], rows: Float[Array, "K P"]) -> Array:
    with jax.default_matmul_precision("highest"):
        return coefficients.astype(rows.dtype) @ rows


@partial(jax.jit, static_argnames="depth")
def tridiagonalize(
    operator: SelfAdjointOperator,
    start: Float[Array, " P"],
    locked: Float[Array, "R P"],
    depth: int,
    norm: Float[ArrayLike, ""] = 0.0,
) -> tuple[Float[Array, "K P"], Float[Array, " K"], Float[Array, " K"]]:
    r"""Tridiagonalise an operator, deflated, by Lanczos with full reorthogonalisation.

    $(I - L^\top L) H (I - L^\top L) Q^\top = Q^\top T + \beta_K r e_K^\top$ with orthonormal rows
    Q and a unit vector r. Where the Krylov space is exhausted, the recurrence goes on from a new
    direction, next to a zero in T: so it finds more copies of eigenvalues that repeat. Rows, where
    `matfree.decomp.tridiag_sym` has columns: on a CPU, to orthogonalise against columns takes
    longer than the products themselves.

    Parameters
    ----------
    operator
        In memory.
    start
        Where the Krylov space starts; of any length but zero, and not in the span of `locked`.
    locked
        Orthonormal rows L, or rows of zeros, which deflate nothing.
    depth
        K, the number of products.
    norm
        Of H, as far as it is known: what deflation leaves can be as small as its rounding.

    Returns
    -------
    rows, alphas, betas
        Q, the diagonal of T, and the norms of what each product adds to the space: all but the last
        are next to the diagonal of T. Where Q and L span the whole space, rows of zeros follow.

    References
    ----------
    Golub and Van Loan (2013), Matrix computations, chapter 10.
    """
    num, dtype = len(start), start.dtype
    eps = jnp.finfo(dtype).eps

    num_locked = jnp.max(jnp.arange(1, len(locked) + 1) * locked.any(axis=1), initial=0)

    def project(v, rows, count):
        return _project(_project(v, locked, num_locked), rows, count)

    def new_direction(rows, i):
        v = jnp.roll(start, i) / jnp.linalg.norm(start)
        v = project(project(v, rows, i), rows, i)
        length = jnp.linalg.norm(v)
        return jnp.where(length > jnp.sqrt(eps), v / length, 0)

    def step(i, state):
        rows, alphas, betas, v, previous, beta, size = state
        rows = rows.at[i].set(v)
        image = operator.mv(v.astype(operator.dtype)).astype(dtype)
        alpha = jnp.vdot(v, image)
        # By the recurrence little is left along the rows, so that to project once is enough.
        rest = project(image - alpha * v - beta * previous, rows, i + 1)
        beta = jnp.linalg.norm(rest)
        size = jnp.maximum(size, jnp.maximum(jnp.abs(alpha), beta))
        goes_on = beta > _BREAKDOWN * eps * size
        beta = jnp.where(goes_on, beta, 0)
        following = jax.lax.cond(goes_on, lambda: rest / beta, lambda: new_direction(rows, i + 1))
        return rows, alphas.at[i].set(alpha), betas.at[i].set(beta), following, v, beta, size

    rows, diagonal, zero = jnp.zeros((depth, num), dtype), jnp.zeros(depth, dtype), 0 * start
    with jax.default_matmul_precision("highest"):
        first, beta, size = new_direction(rows, 0), jnp.zeros((), dtype), jnp.asarray(norm, dtype)
        state = rows, diagonal, diagonal, first, zero, beta, size
        return jax.lax.fori_loop(0, depth, step, state)[:3]


def _project(
    v: Float[Array, " P"], rows: Float[Array, "K P"], count: Int[ArrayLike, ""]
) -> Float[Array, " P"]:
    """Take out of a vector what is along the first `count` rows; those that follow are zeros."""
    size = min(_ROWS_IN_CACHE, len(rows))

    def take_out(k, v):
        # The last block starts earlier: what was taken out can be taken out again.
        block = jax.lax.dynamic_slice_in_dim(rows, k * size, size)
        return v - (block @ v) @ block

    return jax.lax.fori_loop(0, -(-count // max(size, 1)), take_out, v)


def _leading_on_host(operator, rank, key):
    """Return the same over a stream, where products loop on the host."""
    key = jax.random.key(0) if key is None else key
    pairs = eigenpairs(operator, rank, key=key)
    num, eps = operator.shape[0], float(jnp.finfo(pairs.values.dtype).eps)
    values = np.asarray(pairs.values)
    precision = max(_ROUNDINGS * np.sqrt(num) * eps, rounding(operator))
    pairs = take(pairs, slice(max(int(np.sum(values > precision * np.abs(values).max())), 1)))
    if operator.is_positive_semidefinite:
        return pairs, jnp.zeros_like(pairs.values[0])
    # Of the spectrum's far end the sign matters, and the size roughly: relative to itself.
    size = float(np.abs(values).max()) or 1.0
    start, steps = _start_vector(num, 0, key).astype(values.dtype), min(_SMALLEST_DEPTH, num - 1)
    low, _, spent = arpack(operator * (1 / size), start, 1, "SA", steps, tolerance=1e-2)
    smallest = size * np.min(low, initial=float(pairs.values[-1]) / size)
    pairs = replace(pairs, num_products=pairs.num_products + spent)
    return pairs, jnp.asarray(smallest, values.dtype)


class _Ritz(NamedTuple):
    """Values descending, their coordinates (columns) in the Krylov rows, and residual norms."""

    values: np.ndarray
    coordinates: np.ndarray
    krylov: Array
    residuals: np.ndarray


def _ritz_pairs(krylov, alphas, betas):
    alphas, betas = np.asarray(alphas, np.float64), np.asarray(betas, np.float64)
    beside = betas[:-1]
    values, coordinates = np.linalg.eigh(np.diag(alphas) + np.diag(beside, 1) + np.diag(beside, -1))
    values, coordinates = values[::-1], coordinates[:, ::-1]
    return _Ritz(values, coordinates, krylov, betas[-1] * np.abs(coordinates[-1]))
