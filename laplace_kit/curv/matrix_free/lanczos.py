r"""Leading eigenpairs of a curvature operator by deflated Lanczos."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.linearization import linearized
from laplace_kit.curv.matrix_free.host import on_host, product
from laplace_kit.curv.matrix_free.ritz import (
    Eigenpairs,
    check_rank,
    dense_eigenpairs,
    rayleigh_ritz,
    take,
)
from laplace_kit.curv.matrix_free.tridiagonal import Tridiagonal, lanczos
from laplace_kit.curv.operator import CurvatureOperator
from laplace_kit.curv.rounding import rounding
from laplace_kit.host import fetch_array
from laplace_kit.placement import Placement

_CHECK_DEPTH = 10  # products to check whether a larger eigenvalue was missed
_SMALLEST_DEPTH = 20  # products to check for a negative one too, small next to the deflated norm
_MAX_ROUNDS = 20
_MAX_RESTARTS = 5  # runs that start from wanted vectors that have not converged
_ROUNDINGS = 4  # times sqrt(P): bound on the rounding of an inner product


def leading_eigenpairs(
    operator: SelfAdjointOperator, rank: int, *, key: PRNGKeyArray | None = None
) -> tuple[Eigenpairs, Float[Array, ""]]:
    r"""Return the algebraically largest eigenpairs of an operator, and its smallest Ritz value.

    Vectors that have not converged start the next run. A Krylov space holds one copy of each
    eigenvalue, so runs are repeated on the operator deflated by the pairs found, until a short run
    finds nothing larger than the smallest value kept. A last block of products rotates the basis to
    Ritz vectors and computes the residuals. All products share one linearisation if memory allows;
    over a stream each is a pass. If the Krylov space would be the whole space, the dense matrix is
    decomposed instead, which is exact and cheaper.

    Parameters
    ----------
    operator
        Any self-adjoint operator, in memory or over a stream. Not inside a JAX transformation, as
        the number of runs depends on values.
    rank
        The number of pairs, from 1 to P. Fewer are returned if the matrix has lower rank.
    key
        Random key for the start vector; by default it is a fixed low-discrepancy sequence.

    Returns
    -------
    pairs
        In float32 or better. Pairs have converged if the residual, relative to the norm, is within
        the square root of epsilon, or the rounding of a model in lower precision; eigenvalues below
        that rounding are left out. Cost: `2 rank + 10` products for each run (one or two runs if
        the spectrum decays), 10 to check (20 unless the operator is positive semidefinite), and
        `rank` for the residuals; or the dense matrix.
    smallest
        The smallest Ritz value found, `()`: no smaller than the smallest eigenvalue if that is
        negative.

    Raises
    ------
    ValueError
        If `rank` is not between 1 and P.

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
    placement = _placement_of(operator)
    operator = linearized(operator)
    found = _krylov_rounds(operator, rank, depth, key, placement)
    bound = _tolerance(found.basis.dtype, rounding(operator)) * float(found.norm)
    pairs = rayleigh_ritz(operator, found.basis, bound, found.num_products, placement)
    return pairs, jnp.minimum(jnp.asarray(found.smallest, pairs.values.dtype), pairs.values[-1])


def _placement_of(operator: SelfAdjointOperator) -> Placement | None:
    """Return over which devices a curvature's examples in memory, and so vectors, are spread."""
    is_spread = isinstance(operator, CurvatureOperator) and operator.in_memory
    return operator.data.placement if is_spread else None


def _tolerance(dtype: jnp.dtype, rounding: float) -> float:
    """Return the bound of residuals relative to the norm: sqrt(epsilon), at least the rounding."""
    return max(float(jnp.finfo(dtype).eps) ** 0.5, rounding)


def _start_vector(num, round_number, key):
    """Return a unit vector without structure, random or from a low-discrepancy sequence."""
    if key is not None:
        start = jax.random.normal(jax.random.fold_in(key, round_number), (num,))
    else:  # the fractional parts of multiples of an irrational number fill (-1/2, 1/2) evenly
        ratio = np.sqrt(2.0) + round_number * np.sqrt(3.0)
        start = jnp.asarray((np.arange(1, num + 1) * ratio) % 1.0 - 0.5)
    return start / jnp.linalg.norm(start)


class _Found(NamedTuple):
    """A basis of the leading eigenvectors, the smallest Ritz value, the norm, and the cost."""

    basis: Float[Array, "R P"]
    smallest: float
    norm: float
    num_products: int


def _krylov_rounds(operator, rank, depth, key, placement):
    num = operator.shape[0]
    dtype = jnp.promote_types(operator.dtype, jnp.float32)
    eps = float(jnp.finfo(dtype).eps)
    # In float32 P roundings are as large as all eigenvalues where P is 10 million.
    precision = max(_ROUNDINGS * np.sqrt(num) * eps, rounding(operator))
    tolerance = _tolerance(dtype, rounding(operator))
    check_depth = min(_CHECK_DEPTH if operator.is_positive_semidefinite else _SMALLEST_DEPTH, depth)
    basis = jnp.zeros((rank, num), dtype)  # rows of zeros deflate nothing
    values, smallest, norm, spent = np.zeros(0), np.inf, 0.0, 0
    restart, restarts = None, 0
    for round_number in range(_MAX_ROUNDS):
        start = _start_vector(num, round_number, key).astype(dtype) if restart is None else restart
        checking = len(values) == rank
        for steps in (check_depth, depth) if checking else (depth,):
            found = tridiagonalize(operator, start, basis, steps, norm, placement)
            ritz = _ritz_pairs(*found)
            smallest = min(smallest, ritz.values[-1])
            norm, spent = max(norm, np.abs(ritz.values).max()), spent + steps
            if checking and ritz.values[0] <= values[-1] + precision * norm:
                return _Found(basis, smallest, norm, spent)
        positive = ritz.values > precision * norm
        converged = positive & (ritz.residuals <= tolerance * norm)
        # Both ends of the spectrum converge: only pairs above the first unconverged are leading.
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
    if len(values) == 0:  # take the vector closest to a positive eigenvalue
        return _Found(_combine(ritz.coordinates[:, :1].T, ritz.krylov), smallest, norm, spent)
    return _Found(basis[: len(values)], smallest, norm, spent)


def _merge(values, basis, ritz, new):
    """Return the largest of the kept and the new pairs, at most one for each row of the basis."""
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


def tridiagonalize(
    operator: SelfAdjointOperator,
    start: Float[Array, " P"],
    locked: Float[Array, "R P"],
    depth: int,
    norm: Float[ArrayLike, ""] = 0.0,
    placement: Placement | None = None,
) -> Tridiagonal:
    """Tridiagonalise an operator, deflated, in memory or over a stream; see `lanczos`."""
    return on_host(_tridiagonalize, operator, start, locked, depth, norm, placement)


@partial(jax.jit, static_argnums=(3, 5))
def _tridiagonalize(operator, start, locked, depth, norm, placement):
    mv = product(operator)
    return lanczos(mv, start, depth, locked=locked, norm=norm, placement=placement)


class _Ritz(NamedTuple):
    """Values descending, their coordinates (columns) in the Krylov rows, and residual norms."""

    values: np.ndarray
    coordinates: np.ndarray
    krylov: Array
    residuals: np.ndarray


def _ritz_pairs(krylov, alphas, betas):
    alphas, betas = fetch_array(alphas, np.float64), fetch_array(betas, np.float64)
    beside = betas[:-1]
    values, coordinates = np.linalg.eigh(np.diag(alphas) + np.diag(beside, 1) + np.diag(beside, -1))
    values, coordinates = values[::-1], coordinates[:, ::-1]
    return _Ritz(values, coordinates, krylov, betas[-1] * np.abs(coordinates[-1]))
