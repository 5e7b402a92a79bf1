r"""Leading eigenpairs of a curvature operator by Lanczos with full reorthogonalisation."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.linearized import linearized
from laplace_kit.tree import pytree_dataclass

_CHECK_DEPTH = 10  # products spent on asking whether a larger eigenvalue was missed
_MAX_ROUNDS = 20
_MAX_RESTARTS = 5  # runs from the vectors that are wanted and have not converged


@pytree_dataclass()
class Eigenpairs:
    r"""Leading eigenpairs of a symmetric matrix.

    `values` `(R,)` in descending order; `vectors` `(R, P)` with orthonormal rows; `residuals`
    `(R,)`, the norms $\|H u - s u\|$; `smallest` `()`, the smallest Ritz value that was met,
    which is no smaller than the smallest eigenvalue where that is negative.
    """

    values: Float[Array, " R"]
    vectors: Float[Array, "R P"]
    residuals: Float[Array, " R"]
    smallest: Float[Array, ""]


def leading_eigenpairs(
    operator: SelfAdjointOperator, rank: int, *, key: PRNGKeyArray | None = None
) -> Eigenpairs:
    r"""Return the algebraically largest eigenpairs of an operator.

    What has not converged starts the next run. Lanczos finds one copy of each eigenvalue, so runs
    are repeated on the operator deflated by what was found, until a short run shows nothing larger
    than the smallest value kept. A last block of products turns the basis to Ritz vectors and
    measures the residuals. All products of all runs share one linearisation, where memory allows.
    Where the Krylov space would reach the whole space, the dense matrix is decomposed instead:
    exact, and cheaper. Over a stream the recurrence is ARPACK's, which asks the host for each
    product.

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
        In float32 or better. Cost: `2 rank + 10` products for each run, of which a spectrum that
        decays needs one or two, and `rank` for the residuals; or the dense matrix.

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
        return _dense(operator, rank)

    operator = linearized(operator)
    find = _krylov_rounds if operator.in_memory else _krylov_on_host
    basis, smallest = find(operator, rank, depth, key)
    return _rayleigh_ritz(operator, basis, smallest)


def check_rank(rank: int, num_params: int) -> int:
    """Return the rank if a `(P, P)` matrix can have it, else raise a `ValueError`."""
    if not 1 <= rank <= num_params:
        raise ValueError(
            f"Found rank={rank}, expected a number from 1 to P={num_params}, the number of "
            "parameters; lower it, or leave it out."
        )
    return rank


def _dense(operator, rank):
    with jax.default_matmul_precision("highest"):
        values, vectors = jnp.linalg.eigh(operator.to_dense())
        values, vectors = values[::-1], vectors[:, ::-1].T
    rounding = len(values) * jnp.finfo(values.dtype).eps * jnp.abs(values).max()
    return Eigenpairs(values[:rank], vectors[:rank], jnp.full(rank, rounding), values[-1])


def _start_vector(num, round_number, key):
    """Return a unit vector with no structure that a model could share."""
    if key is not None:
        start = jax.random.normal(jax.random.fold_in(key, round_number), (num,))
    else:  # the fractional parts of multiples of an irrational number fill (-1/2, 1/2) evenly
        ratio = np.sqrt(2.0) + round_number * np.sqrt(3.0)
        start = jnp.asarray((np.arange(1, num + 1) * ratio) % 1.0 - 0.5)
    return start / jnp.linalg.norm(start)


def _krylov_rounds(operator, rank, depth, key):
    """Return a basis of the leading eigenvectors and the smallest Ritz value."""
    num = operator.shape[0]
    dtype = jnp.promote_types(operator.dtype, jnp.float32)
    eps = float(jnp.finfo(dtype).eps)
    basis = jnp.zeros((rank, num), dtype)  # rows of zeros deflate nothing
    values, smallest, restart, restarts = np.zeros(0), np.inf, None, 0
    for round_number in range(_MAX_ROUNDS):
        start = _start_vector(num, round_number, key).astype(dtype) if restart is None else restart
        checking = len(values) == rank
        for steps in (_CHECK_DEPTH, depth) if checking else (depth,):
            ritz = _ritz_pairs(*tridiagonalize(operator, start, basis, steps), np.sqrt(num) * eps)
            smallest = min(smallest, ritz.values[-1])
            size = max([*values, *np.abs(ritz.values)])
            if checking and ritz.values[0] <= values[-1] + num * eps * size:
                return basis, smallest
        positive = ritz.values > num * eps * size
        # A second copy of an eigenvalue grows out of rounding and is late: left to the next round.
        converged = positive & (ritz.residuals <= np.sqrt(eps) * size)
        # Both ends of the spectrum converge: only those above the first that has not are leading.
        new = np.logical_and.accumulate(converged)
        if not positive.any():
            break
        wanted = positive & ~new & (np.arange(len(new)) < rank - len(values))
        restart = None
        if wanted.any() and restarts < _MAX_RESTARTS:
            restarts += 1
            restart = jnp.asarray(ritz.coordinates[:, wanted].sum(axis=1), dtype) @ ritz.krylov
        elif not new.any():
            new = positive
        found = jnp.asarray(ritz.coordinates[:, new].T, dtype) @ ritz.krylov
        candidates = np.concatenate([values, ritz.values[new]])
        order = np.argsort(-candidates, kind="stable")[:rank]
        merged = jnp.concatenate([basis[: len(values)], found])[order]
        values = candidates[order]
        basis = jnp.zeros_like(basis).at[: len(values)].set(merged)
    return basis[: max(len(values), 1)], smallest


@partial(jax.jit, static_argnames="depth")
def tridiagonalize(
    operator: SelfAdjointOperator,
    start: Float[Array, " P"],
    locked: Float[Array, "R P"],
    depth: int,
) -> tuple[Float[Array, "K P"], Float[Array, " K"], Float[Array, " K"]]:
    r"""Tridiagonalise an operator, deflated, by Lanczos with full reorthogonalisation.

    $(I - L^\top L) H (I - L^\top L) Q^\top = Q^\top T + \beta_K r e_K^\top$ with orthonormal rows
    Q and a unit vector r. Rows, where `matfree.decomp.tridiag_sym` has columns: on a CPU, to
    orthogonalise against columns takes longer than the products themselves.

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

    Returns
    -------
    rows, alphas, betas
        Q, the diagonal of T, and the norms of what each product adds to the space: all but the last
        are next to the diagonal of T. Beyond one that is zero nothing has a meaning.

    References
    ----------
    Golub and Van Loan (2013), Matrix computations, chapter 10.
    """

    def project(v, rows):
        for basis in (locked, rows):
            v = v - (basis @ v) @ basis
        return v

    def step(i, state):
        rows, alphas, betas, v, previous, beta = state
        rows = rows.at[i].set(v)
        image = operator.mv(v.astype(operator.dtype)).astype(v.dtype)
        alpha = jnp.vdot(v, image)
        # By the recurrence little is left along the rows, so that to project once is enough.
        rest = project(image - alpha * v - beta * previous, rows)
        beta = jnp.linalg.norm(rest)
        following = rest / jnp.where(beta > 0, beta, 1)
        return rows, alphas.at[i].set(alpha), betas.at[i].set(beta), following, v, beta

    num, dtype = len(start), start.dtype
    rows, diagonal, zero = jnp.zeros((depth, num), dtype), jnp.zeros(depth, dtype), 0 * start
    with jax.default_matmul_precision("highest"):
        first = project(project(start, rows), rows)
        first = first / jnp.linalg.norm(first)
        state = rows, diagonal, diagonal, first, zero, jnp.zeros((), dtype)
        return jax.lax.fori_loop(0, depth, step, state)[:3]


def _krylov_on_host(operator, rank, depth, key):
    """Return the same over a stream, where products loop on the host, by ARPACK."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    num = operator.shape[0]
    dtype = np.dtype(jnp.promote_types(operator.dtype, jnp.float32))
    start = np.asarray(_start_vector(num, 0, key), dtype)

    def product(v):
        return np.asarray(operator.mv(jnp.asarray(v, operator.dtype)), dtype)

    matrix = LinearOperator(operator.shape, matvec=product, dtype=dtype)
    if not product(start).any():  # no Krylov space: the matrix is zero
        return jnp.zeros((1, num), dtype), 0.0

    def extreme(count, which, tolerance):
        size = min(max(depth, 20), num - 1)
        try:
            return eigsh(matrix, count, which=which, v0=start, ncv=size, tol=tolerance)
        except ArpackNoConvergence as partial_result:
            return partial_result.eigenvalues, partial_result.eigenvectors

    eps = float(jnp.finfo(dtype).eps)
    values, vectors = extreme(rank, "LA", np.sqrt(eps))
    rounding = num * eps * np.abs(values).max(initial=0.0)
    keep = values > rounding if (values > rounding).any() else np.arange(len(values)) == 0
    if operator.is_positive_semidefinite:
        smallest = 0.0
    else:
        smallest = min(extreme(1, "SA", 1e-2)[0], default=np.inf)
    return jnp.asarray(vectors[:, keep].T, dtype), smallest


class _Ritz(NamedTuple):
    """Values descending, their coordinates (columns) in the Krylov rows, and residual norms."""

    values: np.ndarray
    coordinates: np.ndarray
    krylov: Array
    residuals: np.ndarray


def _ritz_pairs(krylov, alphas, betas, precision):
    """Decompose the tridiagonal matrix up to its breakdown, where the Krylov space is exhausted."""
    alphas, betas = np.asarray(alphas, np.float64), np.asarray(betas, np.float64)
    alive = betas > 10 * precision * np.abs(alphas).max()
    steps = len(alphas) if alive.all() else int(np.argmin(alive)) + 1
    matrix = np.diag(alphas[:steps])
    matrix += np.diag(betas[: steps - 1], 1) + np.diag(betas[: steps - 1], -1)
    values, coordinates = np.linalg.eigh(matrix)
    values, coordinates = values[::-1], coordinates[:, ::-1]
    residuals = betas[steps - 1] * np.abs(coordinates[-1])
    return _Ritz(values, coordinates, krylov[:steps], residuals)


def _rayleigh_ritz(operator, basis, smallest):
    basis = _orthonormal(basis)
    images = operator.matmat(basis.astype(operator.dtype)).astype(basis.dtype)
    return _ritz_vectors(basis, images, jnp.asarray(smallest, basis.dtype))


@jax.jit
def _orthonormal(rows):
    with jax.default_matmul_precision("highest"):
        return jnp.linalg.qr(rows.T)[0].T


@jax.jit
def _ritz_vectors(basis, images, smallest):
    with jax.default_matmul_precision("highest"):
        small = basis @ images.T
        values, rotation = jnp.linalg.eigh(0.5 * (small + small.T))
        values, rotation = values[::-1], rotation[:, ::-1].T
        vectors, images = rotation @ basis, rotation @ images
    residuals = jnp.linalg.norm(images - values[:, None] * vectors, axis=1)
    return Eigenpairs(values, vectors, residuals, jnp.minimum(smallest, values[-1]))
