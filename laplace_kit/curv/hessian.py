r"""Hessian products for any scalar function and for the summed negative log-likelihood."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Num, PyTree

from laplace_kit.curv.objective import chunk_loss
from laplace_kit.curv.operator import STATIC, CurvatureOperator, by_unit_vectors, unchecked
from laplace_kit.curv.spec import CurvatureSpec
from laplace_kit.curv.vector import read_vectors
from laplace_kit.data import as_data
from laplace_kit.derivatives import linearize_gradient
from laplace_kit.storage import storable
from laplace_kit.tree import pytree_dataclass


def hvp(fun: Callable, params: PyTree, v: PyTree) -> PyTree:
    r"""Return $\nabla^2 \mathrm{fun}(\theta) \, v$ exactly, forward over reverse.

    Reverse over reverse where `fun` has a rule only for reverse mode (`jax.custom_vjp`).

    Parameters
    ----------
    fun
        A twice-differentiable scalar function of `params`.
    params
        A pytree of floating-point arrays.
    v
        A pytree like `params`, or a flat `(P,)` array.

    Returns
    -------
    product
        In the form of `v`. Cost: about two gradients.

    References
    ----------
    Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """
    v, restore = read_vectors(v, params, params, ())
    return restore(linearize_gradient(jax.grad(fun), params)(v))


@pytree_dataclass(static=STATIC)
class HessianOperator(CurvatureOperator):
    r"""The Hessian $\nabla_\theta^2 \sum_n -\log p(y_n \mid f(x_n; \theta))$; it may be indefinite.

    A product costs about two gradients. The exact diagonal and the dense form cost P products.

    Parameters
    ----------
    model_fn, params, data, likelihood, batch_size, scale, memory_limit
        As for `GGNOperator`.

    Raises
    ------
    TypeError, ValueError
        If data, outputs, targets and likelihood are inconsistent.

    References
    ----------
    Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """

    def linear_map(self, chunk):
        objective = self.objective
        gradient = jax.grad(lambda params: chunk_loss(objective, params, chunk))
        return linearize_gradient(gradient, objective.params)

    def diagonal(self):
        """Return the exact diagonal, `(P,)`, from products with unit vectors in blocks."""
        return by_unit_vectors(self, lambda units, products: jnp.sum(products * units, axis=1))

    def to_dense(self):
        """Return the matrix, `(P, P)`, symmetrised, from products with unit vectors in blocks."""
        matrix = by_unit_vectors(self, lambda units, products: products)
        return 0.5 * (matrix + matrix.T)


@storable("Hessian")
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Hessian(CurvatureSpec):
    """The Hessian as `curvature=`; `"hessian"` for short."""

    @property
    def name(self):
        return "hessian"

    def operator(self, objective, data):
        return unchecked(HessianOperator, objective, data, {})


def hessian_mv(
    model_fn,
    params: PyTree,
    batch: tuple,
    v: PyTree,
    likelihood,
    *,
    scale: Num[ArrayLike, ""] | None = 1.0,
) -> PyTree:
    """Return the product of one batch's Hessian with `v`; see `ggn_mv`."""
    data = as_data(tuple(batch))
    return HessianOperator(
        model_fn, params, data, likelihood, scale=scale, batch_size=data.num_examples
    ).mv(v)
