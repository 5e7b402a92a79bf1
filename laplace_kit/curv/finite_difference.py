r"""Hessian products of functions without a second derivative, by central differences of gradients.

A difference over a step $h$ errs by truncation, $O(h^2)$, and by rounding, $O(\epsilon / h)$. Where
the two balance depends on the function and on the direction: along a sharp eigenvector of a trained
network, at steps hundreds of times smaller than along random directions. No formula in only
$\epsilon$ can choose the step, so a sequence of steps is tried, successive ones are extrapolated to
$h = 0$, and the extrapolation that agrees best with its neighbours is taken. Extrapolation allows
larger steps, and with them less rounding.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num, PyTree

from laplace_kit import tree
from laplace_kit.curv.linearization import linearized
from laplace_kit.curv.objective import chunk_loss
from laplace_kit.curv.operator import STATIC, CurvatureOperator, by_unit_vectors
from laplace_kit.curv.vector import read_vectors
from laplace_kit.tree import pytree_dataclass

# Steps between one half and 1/4374 of the parameters' size serve both kinds of directions.
_NUM_STEPS, _RATIO, _LARGEST = 8, 3.0, 0.5
_NUM_ORDERS = 4  # errors of order h^2, h^4, h^6 and h^8


@pytree_dataclass()
class HessianProductEstimate:
    r"""A product $(\nabla^2 f + \gamma I) v$ and an estimate of its error's Euclidean norm."""

    product: PyTree
    error: Float[Array, ""]


def finite_difference_hvp(
    fun: Callable,
    params: PyTree,
    v: PyTree,
    *,
    step: Num[ArrayLike, ""] | None = None,
    damping: Num[ArrayLike, ""] = 0.0,
) -> PyTree:
    r"""Return $(\nabla^2 f(\theta) + \gamma I) v$ from differences of gradients.

    $$(\nabla f(\theta + h v) - \nabla f(\theta - h v)) / (2 h) + \gamma v$$

    Parameters
    ----------
    fun
        A differentiable scalar function $f$; it need not have a second derivative.
    params
        A pytree of floating-point arrays.
    v
        A pytree like `params`, or a flat `(P,)` array.
    step
        $h$, for the plain formula with its error of order $h^2$. By default steps are tried and
        extrapolated; see `finite_difference_hvp_with_error`.
    damping
        $\gamma$, of either sign.

    Returns
    -------
    product
        In the form of `v`. Cost: two gradients with a `step`, 16 without.

    Raises
    ------
    ValueError
        If `step` is not positive, or it or `damping` is not finite.
    """
    if step is None:
        return finite_difference_hvp_with_error(fun, params, v, damping=damping).product
    if tree.is_concrete(step) and not 0 < float(step) < math.inf:
        raise ValueError(
            f"Found step={step}, expected a positive, finite number; leave it out to have steps "
            "tried."
        )
    v, restore = read_vectors(v, params, params, ())
    direction = tree.ravel(v)
    product = _slope(fun, params, direction, jnp.asarray(step, direction.dtype))
    return restore(tree.unravel(_damped(product, direction, damping), params))


def finite_difference_hvp_with_error(
    fun: Callable, params: PyTree, v: PyTree, *, damping: Num[ArrayLike, ""] = 0.0
) -> HessianProductEstimate:
    r"""Return $(\nabla^2 f(\theta) + \gamma I) v$ from a sequence of differences, and its error.

    With $D_i$ the central difference at the step $h_i = h_0 / 3^i$, $i < 8$, where
    $h_0 = (1 + \|\theta\|_\infty) / (2 \|v\|_\infty)$, the extrapolations to $h = 0$ are

    $$T_{i0} = D_i, \qquad T_{ij} = T_{i,j-1} + \frac{T_{i,j-1} - T_{i-1,j-1}}{9^j - 1}.$$

    The product is the extrapolation that differs least from the two it is computed from; this
    difference is the estimate of its error. On trained networks it is close to the error: about
    $10^{-5}$ of the product in float32 where the function is smooth, and a few percent where it has
    kinks, as with ReLU, whose Hessian is not the mean curvature that differences see.

    Parameters
    ----------
    fun, params, v, damping
        As for `finite_difference_hvp`.

    Returns
    -------
    estimate
        `product`, in the form of `v`, and `error`, an estimate of the Euclidean norm of its error.
        Cost: 16 gradients, one after the other, and the memory of a few vectors.

    References
    ----------
    Ridders (1982), Accurate computation of F'(x) and F'(x) F''(x).
    Press et al. (2007), Numerical recipes, section 5.7.
    """
    v, restore = read_vectors(v, params, params, ())
    direction = tree.ravel(v)
    length = jnp.abs(direction).max()
    length = jnp.where(length > 0, length, 1)
    size = 1 + jnp.abs(tree.ravel(params)).max().astype(length.dtype)

    def try_step(state, step):
        previous, best, smallest = state
        row = [_slope(fun, params, direction / length, step)]
        for order in range(1, _NUM_ORDERS):
            change = (row[-1] - previous[order - 1]) / (_RATIO ** (2 * order) - 1)
            row.append(row[-1] + change)
            error = jnp.maximum(_norm(change), _norm(row[-1] - previous[order - 1]))
            better = error < smallest  # never for NaN: the first rows, or steps that are too large
            best, smallest = jnp.where(better, row[-1], best), jnp.where(better, error, smallest)
        return (row, best, smallest), None

    unknown = jnp.full_like(direction, jnp.nan)
    first = [unknown] * _NUM_ORDERS, unknown, jnp.asarray(jnp.inf, direction.dtype)
    steps = _LARGEST * size / _RATIO ** jnp.arange(_NUM_STEPS, dtype=size.dtype)
    (_, product, error), _ = jax.lax.scan(try_step, first, steps)
    product = _damped(length * product, direction, damping)
    return HessianProductEstimate(restore(tree.unravel(product, params)), length * error)


def _slope(
    fun: Callable, params: PyTree, direction: Float[Array, " P"], step: Float[Array, ""]
) -> Float[Array, " P"]:
    """Return the central difference of gradients along a direction."""
    theta = tree.ravel(params)

    def at(step: Float[Array, ""]) -> tuple[Array, Array]:
        moved = tree.unravel(theta + step * direction, params)
        return tree.ravel(moved), tree.ravel(jax.grad(fun)(moved))

    places, gradients = jax.lax.map(at, jnp.stack([step, -step]))
    # Not 2 h: sums are rounded. A step that rounds to zero gives NaN, not a difference of zero.
    squared = jnp.sum(direction**2)
    distance = jnp.sum((places[0] - places[1]) * direction) / squared
    return (gradients[0] - gradients[1]) / jnp.where(squared > 0, distance, 1)


def _damped(product: Array, direction: Array, damping: Num[ArrayLike, ""]) -> Array:
    if tree.is_concrete(damping) and not math.isfinite(damping):
        raise ValueError(f"Found damping={damping}, expected a finite number.")
    return product + jnp.asarray(damping, direction.dtype) * direction


def _norm(vector: Float[Array, " P"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.sum(vector**2))


@pytree_dataclass(static=STATIC)
class FiniteDifferenceHessianOperator(CurvatureOperator):
    r"""The Hessian of the summed loss of a model without second derivatives; see `HessianOperator`.

    Each chunk of data has its own sequence of steps, so that a product is linear in the vector up
    to the error of the differences. It costs 16 gradients; the diagonal and the dense form cost P
    products.

    Parameters
    ----------
    model_fn, params, data, likelihood, batch_size, scale, memory_limit
        As for `GGNOperator`; model and likelihood are differentiated once.

    Raises
    ------
    TypeError, ValueError
        If data, outputs, targets and likelihood are inconsistent.
    """

    def linear_map(self, chunk):
        objective = self.objective

        def loss(params: PyTree) -> Float[Array, ""]:
            return chunk_loss(objective, params, chunk)

        return lambda v: finite_difference_hvp(loss, objective.params, v)

    def diagonal(self):
        """Return the diagonal, `(P,)`, from products with unit vectors in blocks."""
        return by_unit_vectors(self, lambda units, products: jnp.sum(products * units, axis=1))

    def to_dense(self):
        """Return the matrix, `(P, P)`, symmetrised, from products with unit vectors in blocks."""
        matrix = by_unit_vectors(self, lambda units, products: products)
        return 0.5 * (matrix + matrix.T)


@linearized.register
def _not_linearized(operator: FiniteDifferenceHessianOperator) -> FiniteDifferenceHessianOperator:
    # Steps depend on the vector, so a product is not a linear map whose residuals could be kept.
    return operator
