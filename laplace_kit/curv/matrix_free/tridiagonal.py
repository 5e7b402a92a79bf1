r"""Lanczos tridiagonalisation with full reorthogonalisation.

Krylov vectors are rows, where `matfree.decomp.hessenberg` has columns: on a CPU, orthogonalising
against columns takes longer than the products.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from laplace_kit.placement import Placement, by_last_axis, everywhere

_BREAKDOWN = 10  # in roundings of the norm: smaller additions end the Krylov space
# A basis is read for inner products and for subtraction: in blocks that stay in the cache.
_ROWS_IN_CACHE = 8


class Tridiagonal(NamedTuple):
    r"""Orthonormal rows Q, the diagonal of T, and the norms of each product's new direction.

    All but the last of these norms are the off-diagonal of T. Zeros follow where the space ends.
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
    placement: Placement | None = None,
) -> Tridiagonal:
    r"""Return a tridiagonal T with $H Q^\top = Q^\top T + \beta_K r e_K^\top$, r a unit vector.

    Parameters
    ----------
    mv
        The product with a self-adjoint matrix $H$; if it loops on the host, inside `on_host`.
    start
        The start vector of the Krylov space; nonzero, of any length.
    depth
        K, the number of products.
    locked
        Orthonormal rows L, or rows of zeros, which deflate the matrix to
        $(I - L^\top L) H (I - L^\top L)$; `start` is not in their span. With them the recurrence
        continues when the space is exhausted, from a new direction and with a zero in T, and so
        finds more copies of repeated eigenvalues. Without them it ends there; directions that
        rounding may add have equally small entries in T.
    norm
        The norm of H, if it is known: the deflated matrix can be as small as its rounding.
    placement
        Devices over which rows are spread along P; only the vectors of a product are whole on each.

    Returns
    -------
    tridiagonal
        In the dtype of `start`. Cost: K products, and $4 P K^2$ operations.

    References
    ----------
    Golub and Van Loan (2013), Matrix computations, chapter 10.
    """

    def step(i, state):
        image = mv(everywhere(state.direction, placement))
        with jax.disable_jit(False):  # over a stream, only the products loop on the host
            return _advance(state, image, start, deflation, i, placement)

    with jax.disable_jit(False):
        norm = jnp.asarray(norm, start.dtype)
        first, deflation = _first(start, locked, norm, depth, placement)
    return Tridiagonal(*jax.lax.fori_loop(0, depth, step, first)[:3])


def ritz_pairs(
    alphas: Float[Array, " K"], betas: Float[Array, " K"]
) -> tuple[Float[Array, " K"], Float[Array, "K K"]]:
    """Return the Ritz values, ascending, and as columns their vectors' coordinates in the rows.

    Steps beyond the end of the space give values within the spectrum, whose vectors have no
    component along the rows of the space.
    """
    beside = betas[:-1]
    reached = jnp.append(True, jnp.cumprod(beside > 0).astype(bool))
    diagonal = jnp.where(reached, alphas, alphas[0])
    return jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1))


class _State(NamedTuple):
    """The state between steps; `size` is the largest entry of T so far, or the norm."""

    rows: Array
    alphas: Array
    betas: Array
    direction: Array
    previous: Array
    beta: Array
    size: Array


class _Deflation(NamedTuple):
    """Rows to project out, and their number without trailing rows of zeros."""

    rows: Array
    count: Array


@partial(jax.jit, static_argnames=("depth", "placement"))
def _first(start, locked, norm, depth, placement):
    deflation = None
    start, locked = by_last_axis((start, locked), placement)
    if locked is not None:
        numbers = jnp.arange(1, len(locked) + 1)
        deflation = _Deflation(locked, jnp.max(numbers * locked.any(axis=1), initial=0))
    rows, diagonal = jnp.zeros((depth, len(start)), start.dtype), jnp.zeros(depth, start.dtype)
    rows = by_last_axis(rows, placement)
    direction, zero = _new_direction(start, deflation, rows, 0), jnp.zeros((), start.dtype)
    return _State(rows, diagonal, diagonal, direction, 0 * start, zero, norm), deflation


@partial(jax.jit, static_argnames="placement")
def _advance(state, image, start, deflation, i, placement):
    rows, alphas, betas, v, previous, beta, size = state
    image, start, v = by_last_axis((image, start, v), placement)
    rows = by_last_axis(rows.at[i].set(v), placement)
    with jax.default_matmul_precision("highest"):
        # The squared length is one up to rounding, or zero beyond the end of the space.
        alpha = jnp.vdot(v, image) / jnp.maximum(jnp.vdot(v, v), 0.5)
        # The recurrence leaves little along the rows, so that projecting once is enough.
        rest = _project(image - alpha * v - beta * previous, deflation, rows, i + 1)
        beta = jnp.linalg.norm(rest)
        size = jnp.maximum(size, jnp.maximum(jnp.abs(alpha), beta))
        continues = beta > _BREAKDOWN * jnp.finfo(v.dtype).eps * size
        beta = jnp.where(continues, beta, 0)
        following = jax.lax.cond(
            continues,
            lambda: rest / beta,
            lambda: 0 * v if deflation is None else _new_direction(start, deflation, rows, i + 1),
        )
    following, v = by_last_axis((following, v), placement)
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
    """Return a vector's part orthogonal to the deflation and the first `count` rows."""
    v = v if deflation is None else _project_out(v, *deflation)
    return _project_out(v, rows, count)


def _project_out(
    v: Float[Array, " P"], rows: Float[Array, "K P"], count: Int[ArrayLike, ""]
) -> Float[Array, " P"]:
    """Subtract a vector's projection on the first `count` rows; later rows are zeros."""
    size = min(_ROWS_IN_CACHE, len(rows))

    def subtract(k, v):
        # The last block may overlap the one before: projecting twice does no harm.
        block = jax.lax.dynamic_slice_in_dim(rows, k * size, size)
        return v - (block @ v) @ block

    return jax.lax.fori_loop(0, -(-count // max(size, 1)), subtract, v)
