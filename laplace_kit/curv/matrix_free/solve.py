r"""Solve linear systems $(H + \mathrm{diag}(\delta)) x = v$ by products with the operator."""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Num, PyTree

from laplace_kit import tree
from laplace_kit.curv.linear import DampedOperator, SelfAdjointOperator, WrappedOperator
from laplace_kit.curv.matrix_free.host import on_host, product
from laplace_kit.curv.matrix_free.krylov import Status, conjugate_gradients, lsmr, neumann_series
from laplace_kit.curv.matrix_free.precondition import Preconditioner
from laplace_kit.curv.vector import read_vectors
from laplace_kit.errors import check_option, warn
from laplace_kit.host import fetch, fetch_array
from laplace_kit.selection import select
from laplace_kit.tree import pytree_dataclass

METHODS = ("cg", "lsmr", "neumann")

_ADVICE = {
    Status.MAX_ITERATIONS: (
        "all iterations were used: raise `max_iterations`, `damping` or `tolerance`, or pass a "
        "preconditioner"
    ),
    Status.INDEFINITE: (
        "found a direction without positive curvature, so the matrix is indefinite or "
        "singular: raise `damping`, take the GGN in place of the Hessian, or use method='lsmr'"
    ),
    Status.INDEFINITE_PRECONDITIONER: (
        "the preconditioner is not positive definite: raise its damping, or pass another"
    ),
    Status.ROUNDING: (
        "rounding allows no smaller residual: raise `tolerance` or `damping`, or use float64"
    ),
    Status.INCONSISTENT: (
        "the matrix is singular and no x solves the system, except in the least-squares sense: "
        "raise `damping`"
    ),
    Status.DIVERGED: (
        "the series diverges: lower `step`, or raise `damping` if the matrix is indefinite"
    ),
    Status.NOT_FINITE: "found values that are not finite: check the vector and the parameters",
}


class NotConvergedWarning(RuntimeWarning):
    """A linear solver stopped before the residual was within the tolerance."""


@pytree_dataclass()
class Solution:
    r"""The solution of a linear system, with its residual; a pytree.

    Attributes
    ----------
    x
        In the form of the right-hand side.
    residual
        $\|v - (H + \mathrm{diag}(\delta))\, x\| / \|v\|$, computed from `x`.
    iterations
        The number of steps.
    status
        Why the method stopped, a `Status`. Its shape is `()`, like that of `residual` and
        `iterations`, or `(K,)` for K systems.
    """

    x: PyTree
    residual: Float[Array, "*K"]
    iterations: Int[Array, "*K"]
    status: Int[Array, "*K"]

    @property
    def converged(self) -> Array:
        """Whether the residual is within the tolerance."""
        return self.status == Status.CONVERGED


@pytree_dataclass(static=("method",))
class InverseOperator(WrappedOperator):
    r"""The inverse $(H + \mathrm{diag}(\delta))^{-1}$, whose products solve linear systems.

    With the prior precision for the damping it is the covariance of a Laplace posterior.

    Parameters
    ----------
    operator, damping, method, preconditioner, tolerance, max_iterations, step
        As for `solve`.

    Raises
    ------
    TypeError, ValueError
        As for `solve`.
    """

    operator: SelfAdjointOperator
    damping: PyTree = dataclasses.field(default=0.0, kw_only=True)
    method: Literal["cg", "lsmr", "neumann"] = dataclasses.field(default="cg", kw_only=True)
    preconditioner: Preconditioner | None = dataclasses.field(default=None, kw_only=True)
    tolerance: Float[ArrayLike, ""] | None = dataclasses.field(default=None, kw_only=True)
    max_iterations: Int[ArrayLike, ""] = dataclasses.field(default=1000, kw_only=True)
    step: Num[ArrayLike, ""] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        check_option("method", self.method, METHODS)
        if self.step is not None and self.method != "neumann":
            raise ValueError(
                f"Found step={self.step} for method={self.method!r}, expected it only for the "
                "Neumann series; leave it out, or pass method='neumann'."
            )
        if self.tolerance is not None:
            _check_positive("tolerance", self.tolerance)
        _check_positive("max_iterations", self.max_iterations)
        _check_preconditioner(self.preconditioner)

    @property
    def is_positive_semidefinite(self):
        return DampedOperator(self.operator, self.damping).is_positive_semidefinite

    def mv(self, v):
        return _solve(self, v, None, ()).x

    def matmat(self, vs):
        return _solve(self, vs, None, _leading(vs)).x

    def solve(self, v: PyTree, *, x0: PyTree = None) -> Solution:
        """Return the product with one vector, with residual and status; see `solve`."""
        return _solve(self, v, x0, ())

    def solve_many(self, vs: PyTree, *, x0: PyTree = None) -> Solution:
        """Return the products with K vectors, which share each pass over the data.

        Parameters
        ----------
        vs, x0
            Pytrees like the parameters whose leaves have a leading axis K, or flat `(K, P)`.

        Returns
        -------
        solution
            K vectors in the form of `vs`; residual, iterations and status `(K,)`. Cost: the steps
            of the slowest system, each for all of them.
        """
        return _solve(self, vs, x0, _leading(vs))

    def tolerance_for(self, dtype: jnp.dtype) -> Float[Array, ""]:
        """Return the tolerance for a recurrence in a dtype."""
        default = jnp.sqrt(jnp.finfo(dtype).eps)
        return jnp.asarray(default if self.tolerance is None else self.tolerance, dtype)

    def diagonal(self):
        """Return the diagonal, at P solves; `estimate_diagonal` needs fewer."""
        return jnp.diagonal(self.to_dense())

    def to_dense(self):
        """Return the matrix, at P solves that share each pass over the data."""
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        return self.matmat(jnp.eye(self.shape[0], dtype=self.dtype)).astype(dtype)


def solve(
    operator: SelfAdjointOperator,
    v: PyTree,
    *,
    damping: PyTree = 0.0,
    method: Literal["cg", "lsmr", "neumann"] = "cg",
    preconditioner: Preconditioner | None = None,
    tolerance: Float[ArrayLike, ""] | None = None,
    max_iterations: Int[ArrayLike, ""] = 1000,
    x0: PyTree = None,
    step: Num[ArrayLike, ""] | None = None,
) -> Solution:
    r"""Return $x = (H + \mathrm{diag}(\delta))^{-1} v$ by products with the operator.

    In memory it is one compiled program and can be part of another. It is differentiable in `v`,
    the damping and the operator's arrays, by another solve with the same options for each
    derivative (the implicit function theorem), whose convergence is not reported. Over a stream the
    host loops, with a pass over the data for each product.

    Parameters
    ----------
    operator
        Any self-adjoint operator, for $H$.
    v
        A pytree like the parameters, or flat `(P,)`.
    damping
        $\delta$: a scalar, one value per leaf or group (a pytree prefix of the parameters), one per
        parameter, or flat `(P,)`. With the prior precision, x is the product with the covariance of
        a Laplace posterior.
    method
        `"cg"`, conjugate gradients, for a positive definite matrix: one product for each step.
        `"lsmr"` for any matrix, singular ones in the least-squares sense: two products for each
        step, and more steps. `"neumann"`, the series $\eta \sum_k (I - \eta M A)^k M v$ for a
        positive definite matrix $A$: one product for each term, and many terms.
    preconditioner
        From `diagonal_preconditioner` or `kronecker_preconditioner`, or any object whose `mv`
        multiplies flat vectors by a positive definite matrix $M$ that is close to the inverse.
    tolerance
        Bound of the residual's norm relative to that of `v`; by default $\sqrt\epsilon$ of the
        dtype of the recurrence, 1.5e-8 in float64 and 3.5e-4 in float32, where rounding allows
        little less for an ill-conditioned matrix.
    max_iterations
        The number of steps after which a method stops.
    x0
        An approximate solution in the form of `v`; its multiple with the smallest residual is the
        start.
    step
        $\eta$ of the Neumann series, less than $2 / \lambda_{\max}(M A)$; by default close to half
        of that, at 30 more products.

    Returns
    -------
    solution
        `x` in the form of `v` and the dtype of the parameters, with residual, iterations and
        status. Vectors of the recurrence are held in float32 or better.

    Raises
    ------
    TypeError
        If the preconditioner does not multiply vectors, or the data are a stream inside `jax.jit`.
    ValueError
        If `v`, `x0` or `damping` has none of its forms, or an option is not as described.

    Warns
    -----
    NotConvergedWarning
        If the residual is above the tolerance, with the reason and a remedy; inside JAX
        transformations, check `solution.converged`.

    References
    ----------
    Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems. Fong and
    Saunders (2011), LSMR: an iterative algorithm for sparse least-squares problems.
    """
    inverse = InverseOperator(
        operator,
        damping=damping,
        method=method,
        preconditioner=preconditioner,
        tolerance=tolerance,
        max_iterations=max_iterations,
        step=step,
    )
    return _solve(inverse, v, x0, ())


def _leading(vs: PyTree) -> tuple[int, ...]:
    leaves = jax.tree.leaves(vs)
    return np.shape(leaves[0])[:1] if leaves else (0,)


def _solve(inverse: InverseOperator, v: PyTree, x0: PyTree, leading: tuple[int, ...]) -> Solution:
    solution = on_host(_solve_rows, inverse, v, x0, leading)
    if tree.is_concrete(solution):
        _warn_unless_converged(solution, inverse)
    return solution


@partial(jax.jit, static_argnums=3)
def _solve_rows(inverse, v, x0, leading):
    free = select(inverse.params)[0]
    dtype = jnp.promote_types(inverse.dtype, jnp.float32)

    def as_rows(vectors: PyTree) -> Float[Array, "K P"]:
        flat = tree.ravel(vectors, num_leading=len(leading)).astype(dtype)
        return flat.reshape(-1, flat.shape[-1])

    vectors, restore = read_vectors(v, inverse.params, free, leading)
    guess = None
    if x0 is not None:
        guess = as_rows(read_vectors(x0, inverse.params, free, leading)[0])
    rows, report = _apply_inverse(inverse, as_rows(vectors), guess)
    flat, report = jax.tree.map(lambda a: a.reshape(*leading, *a.shape[1:]), (rows, report))
    return Solution(restore(tree.unravel(flat, free)), *report)


def _apply_inverse(inverse, b, x0):
    mv = product(inverse.operator)
    damping = DampedOperator(inverse.operator, inverse.damping).damping_vector().astype(b.dtype)
    preconditioner = inverse.preconditioner
    precondition = (lambda r: r) if preconditioner is None else jax.vmap(preconditioner.mv)
    limits = inverse.tolerance_for(b.dtype), inverse.max_iterations

    def matrix(x: Float[Array, "K P"]) -> Float[Array, "K P"]:
        return mv(x) + damping * x

    def solver(matrix, b):
        # Scaled, so that squares of small or large vectors stay in the range of float32.
        size = jnp.max(jnp.abs(b), axis=1, initial=0, keepdims=True)
        size = jnp.where(size == 0, 1, size)
        x, report = solve_scaled(matrix, b / size)
        return size * x, report

    def solve_scaled(matrix, b):
        if inverse.method == "cg":
            return conjugate_gradients(matrix, precondition, b, x0, *limits)
        if inverse.method == "lsmr":
            return lsmr(matrix, precondition, b, x0, *limits)
        return neumann_series(matrix, precondition, b, x0, *limits, inverse.step)

    if not inverse.in_memory:
        return solver(matrix, b)
    return jax.lax.custom_linear_solve(matrix, b, solver, symmetric=True, has_aux=True)


def _warn_unless_converged(solution: Solution, inverse: InverseOperator) -> None:
    report = solution.residual, solution.iterations, solution.status
    residual, iterations, status = (part.ravel() for part in fetch(report))
    failed = np.flatnonzero(status != Status.CONVERGED)
    if not len(failed):
        return
    worst = failed[np.argmax(np.nan_to_num(residual[failed], nan=np.inf))]
    which = "" if len(status) == 1 else f" in {len(failed)} of {len(status)} systems, at worst"
    tolerance = float(inverse.tolerance_for(residual.dtype))
    warn(
        f"The solver did not converge{which}: found a relative residual of {residual[worst]:.2g} "
        f"after {iterations[worst]} iterations of method={inverse.method!r}, expected at most "
        f"tolerance={tolerance:.2g}; {_ADVICE[Status(int(status[worst]))]}.",
        NotConvergedWarning,
    )


def _check_positive(name: str, value: ArrayLike) -> None:
    if tree.is_concrete(value) and not fetch_array(value) > 0:
        raise ValueError(f"Found {name}={value}, expected a positive number; raise it.")


def _check_preconditioner(preconditioner: Preconditioner | None) -> None:
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(preconditioner))
    if preconditioner is not None and (is_leaf or not isinstance(preconditioner, Preconditioner)):
        raise TypeError(
            f"Found a preconditioner of type {type(preconditioner).__name__}, expected a pytree "
            "whose `mv` multiplies flat vectors; make one by diagonal_preconditioner or "
            "kronecker_preconditioner."
        )
