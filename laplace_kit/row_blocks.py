r"""Factorisations of symmetric matrices whose rows are spread over the devices of a mesh.

With D devices a matrix of $Q = D b$ rows is D blocks of b rows, one on each device. No device has
more of it at a time than its own block and one other. XLA's own factorisations would gather the
matrix on every device; here the compiler is told what lies where, and the rest is products of
blocks.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.placement import (
    Placement,
    by_last_axis,
    by_rows,
    everywhere,
    num_held,
    num_parts,
)


def add_to_diagonal(matrix: Float[Array, "Q Q"], values: Float[Array, " Q"]) -> Array:
    """Return a matrix plus a diagonal one, each device for its own rows."""
    return jnp.where(_is_diagonal(matrix), matrix + values, matrix)


def diagonal_of(matrix: Float[Array, "Q Q"]) -> Float[Array, " Q"]:
    """Return the diagonal, each device from its own rows."""
    return jnp.sum(jnp.where(_is_diagonal(matrix), matrix, 0), axis=1)


def _is_diagonal(matrix: Float[Array, "Q Q"]) -> Array:
    every = jnp.arange(len(matrix))
    return every[:, None] == every


def cholesky(matrix: Float[Array, "Q Q"], placement: Placement | None) -> Float[Array, "Q Q"]:
    r"""Return L with $L L^\top$ the matrix, by rows; NaN if it is not positive definite.

    One block column after the other, from the left: its corner is factorised by every device, the
    rest divided by the root of the corner, and the product of the column with itself subtracted
    from what is right of it. Cost: three eighths of the operations of one device on each of eight,
    as the first devices are done earlier; each block column is sent to all devices once.

    References
    ----------
    Golub and Van Loan (2013), Matrix computations, section 4.2.
    """
    parts, size = num_parts(placement), num_held(len(matrix), placement)
    rest = by_rows(matrix.reshape(parts, size, -1), placement)
    number = jnp.arange(parts)[:, None, None]
    columns = []
    for k in range(parts):
        column = rest[:, :, :size]
        root = jnp.linalg.cholesky(_block(column, k, placement))
        roots = by_rows(jnp.broadcast_to(root, column.shape), placement)
        solved = jax.lax.linalg.triangular_solve(
            roots, column, left_side=False, lower=True, transpose_a=True
        )
        below = by_rows(jnp.where(number > k, solved, 0), placement)
        columns.append(jnp.where(number == k, root, below))
        if k + 1 < parts:
            sent = everywhere(below, placement)[k + 1 :].reshape(-1, size)
            rest = by_rows(rest[:, :, size:] - below @ sent.T, placement)
    return by_rows(jnp.concatenate(columns, axis=-1).reshape(matrix.shape), placement)


def solve(
    factor: Float[Array, "Q Q"],
    vectors: Float[Array, "K Q"],
    placement: Placement | None,
    *,
    trans: int,
) -> Float[Array, "K Q"]:
    r"""Return $L^{-1} v$, or with `trans` $L^{-\top} v$, for K vectors, which are spread as well.

    Each device solves for its share of the vectors, while the blocks of L are sent to all of them,
    one after the other. Cost: $K Q^2 / D$ operations for each device.

    Parameters
    ----------
    factor
        L, lower triangular, by rows.
    vectors
        K vectors as rows; K need not be a multiple of the number of devices.
    placement
        Over which devices the rows of L are spread.
    trans
        0 or 1.
    """
    parts, size, num = num_parts(placement), num_held(len(factor), placement), len(vectors)
    blocks = by_rows(factor.reshape(parts, size, -1), placement)
    padded = jnp.pad(vectors, ((0, -num % parts), (0, 0)))
    rest = by_rows(padded.reshape(parts, -1, len(factor)), placement)
    solved: list[Array] = []
    for k in range(parts)[:: -1 if trans else 1]:
        rows = _block(blocks, k, placement)
        own = rest[..., k * size : (k + 1) * size]
        if not trans and solved:
            own = own - jnp.concatenate(solved, axis=-1) @ rows[:, : k * size].T
        corner = jnp.broadcast_to(rows[:, k * size :][:, :size], (parts, size, size))
        # Vectors are rows: x L^T = v is L x = v.
        corner = by_rows(corner, placement)
        found = jax.lax.linalg.triangular_solve(
            corner, by_rows(own, placement), left_side=False, lower=True, transpose_a=not trans
        )
        if trans:
            rest = rest[..., : k * size] - found @ rows[:, : k * size]
            solved.insert(0, found)
        else:
            solved.append(found)
    whole = by_rows(jnp.concatenate(solved, axis=-1), placement)
    return by_rows(whole.reshape(-1, len(factor)), placement)[:num]


def _block(
    blocks: Float[Array, "D b c"], k: int, placement: Placement | None
) -> Float[Array, "b c"]:
    """Send the block of device `k` to all devices."""
    number = jnp.arange(len(blocks))[:, None, None]
    return everywhere(jnp.sum(jnp.where(number == k, blocks, 0), axis=0), placement)


def inverse_root(factor: Float[Array, "Q Q"], placement: Placement | None) -> Float[Array, "Q Q"]:
    r"""Return $L^{-\top}$, by its columns; see `solve`."""
    identity = by_rows(jnp.eye(len(factor), dtype=factor.dtype), placement)
    return by_last_axis(solve(factor, identity, placement, trans=1).T, placement)


def eigenvalues(
    matrix: Float[Array, "Q Q"], size: int, placement: Placement | None
) -> Float[Array, " P"]:
    """Return all eigenvalues, ascending, of the first `size` rows and columns; the rest is zero.

    Householder reflections make it tridiagonal, each device on its own rows; the eigenvalues of the
    tridiagonal matrix, of O(Q) numbers, are found on every device by bisection. Cost:
    $4 Q^3 / (3 D)$ operations for each device, in Q steps with one product each.

    References
    ----------
    Golub and Van Loan (2013), Matrix computations, sections 8.3 and 8.4.
    """
    if placement is None:
        return jnp.linalg.eigvalsh(matrix[:size, :size])
    diagonal, beside = _tridiagonal(matrix, placement)
    return jax.scipy.linalg.eigh_tridiagonal(diagonal[:size], beside[: size - 1], eigvals_only=True)


def _tridiagonal(matrix: Array, placement: Placement | None) -> tuple[Array, Array]:
    """Return the diagonal of the tridiagonal matrix, and what is beside it."""
    num = len(matrix)
    every = jnp.arange(num)

    def step(k, state):
        matrix, diagonal, beside = state
        column = everywhere(jnp.sum(jnp.where(every == k, matrix, 0), axis=1), placement)
        below = jnp.where(every > k, column, 0)
        norm = jnp.linalg.norm(below)
        first = jnp.sum(jnp.where(every == k + 1, column, 0))
        length = -jnp.where(first < 0, -norm, norm)
        u = below - jnp.where(every == k + 1, length, 0)
        square = jnp.vdot(u, u)
        scale = jnp.where(square > 0, jnp.sqrt(2 / jnp.where(square > 0, square, 1)), 0)
        u = everywhere(scale * u, placement)
        image = everywhere(by_rows(matrix @ u, placement), placement)
        w = image - 0.5 * jnp.vdot(u, image) * u
        matrix = by_rows(matrix - u[:, None] * w - w[:, None] * u, placement)
        diagonal = diagonal.at[k].set(jnp.sum(jnp.where(every == k, column, 0)))
        return matrix, diagonal, beside.at[k].set(length)

    zeros = jnp.zeros(num, matrix.dtype)
    first = by_rows(matrix, placement), zeros, zeros
    _, diagonal, beside = jax.lax.fori_loop(0, num, step, first)
    return diagonal, beside[:-1]
