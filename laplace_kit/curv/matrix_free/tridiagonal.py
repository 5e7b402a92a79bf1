r"""Lanczos with full reorthogonalisation: tridiagonal matrices, in the bases of Krylov spaces.

Rows, where `matfree.decomp.hessenberg` has columns: on a CPU, to orthogonalise against columns
takes longer than the products themselves.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

_BREAKDOWN = 10  # roundings of the norm: what adds less to a Krylov space adds nothing
# A basis is read for inner products and for what they take away: by blocks, from memory once.
_ROWS_IN_CACHE = 8


class Tridiagonal(NamedTuple):
    r"""Orthonormal rows Q, the diagonal of T, and the norms of what each product adds to the space.

    All but the last of these are next to the diagonal of T. Zeros follow where the space ends.
    """

    rows: Float[Array, "K P"]
    alphas: Float[Array, " K"]
    betas: Float[Array, " K"]


def lanczos(
    mv: Callable[[Float[Array, " P"]], Float[Array, " P"]],
    start: Float[Array, " P"],
    depth: int,
    *,
    locked: Float[Array, "R P"] | None = None,
    norm: Float[ArrayLike, ""] = 0.0,
) -> Tridiagonal:
    r"""Return a tridiagonal T with $H Q^\top = Q^\top T + \beta_K r e_K^\top$, r a unit vector.

    Parameters
    ----------
    mv
        The product with a self-adjoint matrix $H$; where it loops on the host, inside of `on_host`.
    start
        Where the Krylov space starts; of any length but zero.
    depth
        K, the number of products.
    locked
        Orthonormal rows L, or rows of zeros, which deflate the matrix to
        $(I - L^\top L) H (I - L^\top L)$; `start` is not in their span. With them the recurrence
        goes on where the space is exhausted, from a new direction next to a zero in T: so it finds
        more copies of eigenvalues that repeat. Without them it ends there; what rounding may add
        is next to entries of T as small.
    norm
        That of H, as far as it is known: what deflation leaves can be as small as its rounding.

    Returns
    -------
    tridiagonal
        In the dtype of `start`. Cost: K products, and $4 P K^2$ operations.

    References
    ----------
    Golub and Van Loan (2013), Matrix computations, chapter 10.
    """

    def step(i, state):
        image = mv(state.direction)
        with jax.disable_jit(False):  # over a stream, only the products loop on the host
            return _advance(state, image, start, deflation, i)

    with jax.disable_jit(False):
        first, deflation = _first(start, locked, jnp.asarray(norm, start.dtype), depth)
    return Tridiagonal(*jax.lax.fori_loop(0, depth, step, first)[:3])


def ritz_pairs(
    alphas: Float[Array, " K"], betas: Float[Array, " K"]
) -> tuple[Float[Array, " K"], Float[Array, "K K"]]:
    """Return the Ritz values, ascending, and as columns their vectors' coordinates in the rows.

    What lies beyond the end of the space is vacant: its values are from within the spectrum, and
    its vectors have no part in the rows that were reached.
    """
    beside = betas[:-1]
    reached = jnp.append(True, jnp.cumprod(beside > 0).astype(bool))
    diagonal = jnp.where(reached, alphas, alphas[0])
    return jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1))


class _State(NamedTuple):
    """What one step hands to the next; `size` is the largest number met in T, or the norm."""

    rows: Array
    alphas: Array
    betas: Array
    direction: Array
    previous: Array
    beta: Array
    size: Array


class _Deflation(NamedTuple):
    """Rows to leave out, and how many of them there are before rows of zeros."""

    rows: Array
    count: Array


@partial(jax.jit, static_argnames="depth")
def _first(start, locked, norm, depth):
    deflation = None
    if locked is not None:
        numbers = jnp.arange(1, len(locked) + 1)
        deflation = _Deflation(locked, jnp.max(numbers * locked.any(axis=1), initial=0))
    rows, diagonal = jnp.zeros((depth, len(start)), start.dtype), jnp.zeros(depth, start.dtype)
    direction, zero = _new_direction(start, deflation, rows, 0), jnp.zeros((), start.dtype)
    return _State(rows, diagonal, diagonal, direction, 0 * start, zero, norm), deflation


@jax.jit
def _advance(state, image, start, deflation, i):
    rows, alphas, betas, v, previous, beta, size = state
    rows = rows.at[i].set(v)
    with jax.default_matmul_precision("highest"):
        # The square of the length is one but for rounding, or zero beyond the end of the space.
        alpha = jnp.vdot(v, image) / jnp.maximum(jnp.vdot(v, v), 0.5)
        # By the recurrence little is left along the rows, so that to project once is enough.
        rest = _project(image - alpha * v - beta * previous, deflation, rows, i + 1)
        beta = jnp.linalg.norm(rest)
        size = jnp.maximum(size, jnp.maximum(jnp.abs(alpha), beta))
        goes_on = beta > _BREAKDOWN * jnp.finfo(v.dtype).eps * size
        beta = jnp.where(goes_on, beta, 0)
        following = jax.lax.cond(
            goes_on,
            lambda: rest / beta,
            lambda: 0 * v if deflation is None else _new_direction(start, deflation, rows, i + 1),
        )
    return _State(rows, alphas.at[i].set(alpha), betas.at[i].set(beta), following, v, beta, size)


def _new_direction(start, deflation, rows, i):
    v = jnp.roll(start, i) / jnp.linalg.norm(start)
    if deflation is None:
        return v
    with jax.default_matmul_precision("highest"):
        v = _project(_project(v, deflation, rows, i), deflation, rows, i)
    length = jnp.linalg.norm(v)
    return jnp.where(length > jnp.sqrt(jnp.finfo(v.dtype).eps), v / length, 0)


def _project(v, deflation, rows, count):
    """Return what of a vector is orthogonal to the deflation and the first `count` rows."""
    v = v if deflation is None else _take_out(v, *deflation)
    return _take_out(v, rows, count)


def _take_out(
    v: Float[Array, " P"], rows: Float[Array, "K P"], count: Int[ArrayLike, ""]
) -> Float[Array, " P"]:
    """Take out of a vector what is along the first `count` rows; those that follow are zeros."""
    size = min(_ROWS_IN_CACHE, len(rows))

    def take_out(k, v):
        # The last block starts earlier: what was taken out can be taken out again.
        block = jax.lax.dynamic_slice_in_dim(rows, k * size, size)
        return v - (block @ v) @ block

    return jax.lax.fori_loop(0, -(-count // max(size, 1)), take_out, v)
