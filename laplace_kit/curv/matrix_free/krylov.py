r"""Solvers of $A x = b$ by products: conjugate gradients, LSMR and Neumann series.

They solve K systems at once, as rows: the matrix multiplies all of them in one call. Convergence is
decided by the true residual $b - A x$, and not by that of the recurrence.
"""

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Num

# Multiplies K vectors, along a leading axis.
Matrix = Callable[[Float[Array, "K P"]], Float[Array, "K P"]]

_POWER_STEPS = 30  # products for the largest eigenvalue, which sets the step of a Neumann series
_SAFETY = 1.1  # factor on that eigenvalue, as power iterations underestimate it
_GROWTH = 1.01  # of a norm that should only decrease: more is not rounding


class Status(enum.IntEnum):
    """Why a solver stopped."""

    CONVERGED = 0
    MAX_ITERATIONS = 1
    INDEFINITE = 2  # or singular: a direction without positive curvature
    INDEFINITE_PRECONDITIONER = 3
    ROUNDING = 4  # which allows no smaller residual
    INCONSISTENT = 5  # singular; the solution is that of least squares
    DIVERGED = 6
    NOT_FINITE = 7


_RUNNING = -1


class Convergence(NamedTuple):
    """Relative residual, number of steps and `Status` of each of K systems."""

    residual: Float[Array, " K"]
    iterations: Int[Array, " K"]
    status: Int[Array, " K"]


def conjugate_gradients(
    matrix: Matrix,
    precondition: Matrix,
    b: Float[Array, "K P"],
    x0: Float[Array, "K P"] | None,
    tolerance: Float[ArrayLike, ""],
    max_iterations: Int[ArrayLike, ""],
) -> tuple[Float[Array, "K P"], Convergence]:
    r"""Solve $A x = b$ for a positive definite matrix.

    If rounding spoils the recurrence, it is restarted from the solution found so far.

    Parameters
    ----------
    matrix, precondition
        $A$ and $M \approx A^{-1}$.
    b, x0
        Right-hand sides and initial solutions.
    tolerance
        Bound of the residual, relative to `b`.
    max_iterations
        Largest number of steps for each system.

    Returns
    -------
    x, report
        Cost: one product for each step of the slowest system, and one for each start.

    References
    ----------
    Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems.
    """
    size = _norm(b)
    target = tolerance * size

    def run(state):
        """Run the recurrence to its end, and compare with the true residual."""
        z = precondition(state.r)
        gamma = _dot(state.r, z)
        first = _Recurrence(state.x, state.r, z, gamma, state.iterations, state.status)
        last = jax.lax.while_loop(_any_running, step, first)
        residual = b - matrix(last.x)
        error = _norm(residual)
        progress = (error < 0.5 * _norm(state.r)) & (last.iterations < max_iterations)
        missed = (last.status == Status.CONVERGED) & (error > target)
        status = jnp.where(missed, jnp.where(progress, _RUNNING, Status.ROUNDING), last.status)
        return _Progress(last.x, residual, last.iterations, status)

    def step(state):
        product = matrix(state.direction)
        curvature = _dot(state.direction, product)
        # Below this, rounding decides its sign.
        smallest = jnp.finfo(b.dtype).eps * _norm(state.direction) * _norm(product)
        status = jnp.where(curvature <= smallest, Status.INDEFINITE, _RUNNING)
        status = jnp.where(state.gamma <= 0, Status.INDEFINITE_PRECONDITIONER, status)
        finite = jnp.isfinite(curvature) & jnp.isfinite(state.gamma)
        status = jnp.where(finite, status, Status.NOT_FINITE)
        status = jnp.where(state.status == _RUNNING, status, state.status)

        moves = status == _RUNNING
        alpha = state.gamma / jnp.where(moves, curvature, 1)
        x = _where(moves, state.x + alpha[:, None] * state.direction, state.x)
        r = _where(moves, state.r - alpha[:, None] * product, state.r)
        z = precondition(r)
        gamma = _dot(r, z)
        beta = gamma / jnp.where(moves, state.gamma, 1)
        direction = _where(moves, z + beta[:, None] * state.direction, state.direction)
        iterations = state.iterations + moves
        status = jnp.where(moves & (iterations >= max_iterations), Status.MAX_ITERATIONS, status)
        status = jnp.where(moves & (_norm(r) <= target), Status.CONVERGED, status)
        return _Recurrence(x, r, direction, gamma, iterations, status)

    first = _begin(matrix, b, x0, target)
    x, r, iterations, status = jax.lax.while_loop(_any_running, run, first)
    return x, Convergence(_norm(r) / _positive(size), iterations, status)


class _Recurrence(NamedTuple):
    """The state of conjugate gradients; `gamma` is $r^T M r$."""

    x: Array
    r: Array
    direction: Array
    gamma: Array
    iterations: Array
    status: Array


def neumann_series(
    matrix: Matrix,
    precondition: Matrix,
    b: Float[Array, "K P"],
    x0: Float[Array, "K P"] | None,
    tolerance: Float[ArrayLike, ""],
    max_iterations: Int[ArrayLike, ""],
    step: Num[ArrayLike, ""] | None = None,
) -> tuple[Float[Array, "K P"], Convergence]:
    r"""Solve $A x = b$ by $x = \eta \sum_k (I - \eta M A)^k M b$, for a positive definite matrix.

    It is linear in `b` for a given number of terms, unlike conjugate gradients, and slower.

    Parameters
    ----------
    matrix, precondition, b, x0, tolerance, max_iterations
        As for `conjugate_gradients`.
    step
        $\eta$, which must be less than $2 / \lambda_{\max}(M A)$; by default close to half of it,
        by the power method.

    Returns
    -------
    x, report
        Cost: one product for each step of the slowest system; 30 more for the default step.

    References
    ----------
    Saad (2003), Iterative methods for sparse linear systems, chapter 4.
    """
    size = _norm(b)
    target = tolerance * size
    if step is None:
        step = 1 / (_SAFETY * _largest_eigenvalue(matrix, precondition, b))

    def advance(state):
        moves = state.status == _RUNNING
        x = _where(moves, state.x + step * precondition(state.r), state.x)
        r = _where(moves, b - matrix(x), state.r)
        # If the series converges, each step reduces the residual in the norm of M.
        energy = _dot(r, precondition(r))
        status = jnp.where(energy > _GROWTH * energy_at_start, Status.DIVERGED, _RUNNING)
        iterations = state.iterations + moves
        status = jnp.where(iterations >= max_iterations, Status.MAX_ITERATIONS, status)
        status = jnp.where(jnp.isfinite(energy), status, Status.NOT_FINITE)
        status = jnp.where(_norm(r) <= target, Status.CONVERGED, status)
        return _Progress(x, r, iterations, jnp.where(moves, status, state.status))

    first = _begin(matrix, b, x0, target)
    energy_at_start = _dot(first.r, precondition(first.r))
    x, r, iterations, status = jax.lax.while_loop(_any_running, advance, first)
    return x, Convergence(_norm(r) / _positive(size), iterations, status)


def _largest_eigenvalue(matrix: Matrix, precondition: Matrix, like: Array) -> Array:
    """Return the largest absolute eigenvalue of the preconditioned matrix, by the power method."""

    def power(_, u):
        return precondition(matrix(u / _positive(_norm(u))[:, None]))

    start = jax.random.normal(jax.random.key(0), like[:1].shape, like.dtype)
    return _positive(_norm(jax.lax.fori_loop(0, _POWER_STEPS, power, start))[0])


def lsmr(
    matrix: Matrix,
    precondition: Matrix,
    b: Float[Array, "K P"],
    x0: Float[Array, "K P"] | None,
    tolerance: Float[ArrayLike, ""],
    max_iterations: Int[ArrayLike, ""],
) -> tuple[Float[Array, "K P"], Convergence]:
    r"""Solve $A x = b$ for a self-adjoint matrix, indefinite or singular; by matfree.

    The systems are solved as one of $K P$ unknowns, whose matrix has the same eigenvalues, so that
    K vectors share each product.

    Parameters
    ----------
    matrix, precondition
        $A$, and the M of $x = M y$; both are transposed by JAX.
    b, x0, tolerance, max_iterations
        As for `conjugate_gradients`.

    Returns
    -------
    x, report
        The least-squares solution if no x solves a system. Cost: two products for each step; the
        number of steps grows with the condition number, where that of conjugate gradients grows
        with its square root.

    References
    ----------
    Fong and Saunders (2011), LSMR: an iterative algorithm for sparse least-squares problems.
    """
    import matfree.lstsq

    size = _norm(b)
    scale = _positive(size)[:, None]
    x, r = _start(matrix, b / scale, x0)
    r = _where(_norm(r) <= tolerance, jnp.zeros_like(r), r)  # these have converged
    start = jnp.linalg.norm(r)
    # For all systems together, and so for each; halved, as the recurrence's residual is inexact.
    solver = matfree.lstsq.lsmr(
        atol=0.0,
        btol=0.5 * tolerance / _positive(start),
        ctol=0.0,
        maxiter=max_iterations,
        custom_vjp=False,
    )
    y, found = solver(lambda u: precondition(matrix(u)), r)
    x = scale * (x + precondition(y))
    error = _norm(b - matrix(x))

    reason = found["istop"]  # numbered as in SciPy
    status = jnp.full(error.shape, Status.ROUNDING)
    status = jnp.where((reason == 2) | (reason == 5), Status.INCONSISTENT, status)
    status = jnp.where(reason == 7, Status.MAX_ITERATIONS, status)
    status = jnp.where(reason < 0, Status.NOT_FINITE, status)
    status = jnp.where(error <= tolerance * size, Status.CONVERGED, status)
    iterations = jnp.broadcast_to(found["iteration_count"], status.shape)
    return x, Convergence(error / _positive(size), iterations, status)


class _Progress(NamedTuple):
    """Solutions so far, their residuals, the numbers of steps, and each `Status`."""

    x: Array
    r: Array
    iterations: Array
    status: Array


def _begin(matrix: Matrix, b: Array, x0: Array | None, target: Array) -> _Progress:
    """Return the state of a solver that starts from the best multiple of `x0`."""
    x, r = _start(matrix, b, x0)
    status = jnp.where(_norm(r) <= target, Status.CONVERGED, _RUNNING)
    return _Progress(x, r, jnp.zeros_like(status), status)


def _start(matrix: Matrix, b: Array, x0: Array | None) -> tuple[Array, Array]:
    """Return the multiple of `x0` with the smallest residual, at most that of zero, and both."""
    if x0 is None:
        return jnp.zeros_like(b), b
    image = matrix(x0)
    squares = _dot(image, image)
    share = (_dot(image, b) / _positive(squares))[:, None]
    return share * x0, b - share * image


def _any_running(state) -> Array:
    return jnp.any(state.status == _RUNNING)


def _dot(u: Float[Array, "K P"], v: Float[Array, "K P"]) -> Float[Array, " K"]:
    return jnp.sum(u * v, axis=1)


def _norm(u: Float[Array, "K P"]) -> Float[Array, " K"]:
    return jnp.sqrt(_dot(u, u))


def _where(rows: Array, these: Array, those: Array) -> Array:
    return jnp.where(rows[:, None], these, those)


def _positive(size: Array) -> Array:
    """Return divisors: one in place of zero."""
    return jnp.where(size > 0, size, 1)
