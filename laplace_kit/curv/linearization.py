r"""Curvature linearised once, so that every product with the same data reuses the forward pass.

A product $H v$ is linear in $v$: everything in it that does not depend on $v$ (activations, the
softmax, drawn labels) is computed here once and kept. Each product then computes only tangents and
cotangents.
"""

import dataclasses
from functools import singledispatch

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.curv.linear import (
    DampedOperator,
    ScaledOperator,
    SelfAdjointOperator,
    SumOperator,
    WrappedOperator,
)
from laplace_kit.curv.operator import CurvatureOperator
from laplace_kit.curv.vector import read_vectors
from laplace_kit.placement import explicit_mesh, num_held
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class LinearizedOperator(WrappedOperator):
    """The same matrix as `operator`, with the residuals of its linearisation kept.

    Made by `linearized`. `product`, called with the operator, is the linear map on flat vectors;
    its leaves are the residuals: the arrays it reads that `operator` does not already hold.
    """

    operator: CurvatureOperator
    product: Partial

    @property
    def in_memory(self) -> bool:
        """Always: the residuals are arrays."""
        return True

    def mv(self, v: PyTree) -> PyTree:
        """Return the product with one vector, in its form; see `CurvatureOperator.mv`.

        Cost: one tangent and one cotangent pass, and no forward pass.
        """
        return _mv(self, v)

    def matmat(self, vs: PyTree) -> PyTree:
        """Return the products with K vectors; see `CurvatureOperator.matmat`.

        The forward pass is repeated: it is a small part of several products, and small chunks,
        which all vectors pass together, save more than it costs.
        """
        return self.operator.matmat(vs)

    def diagonal(self) -> Float[Array, " P"]:
        """Return the operator's exact diagonal, `(P,)`."""
        return self.operator.diagonal()

    def to_dense(self) -> Float[Array, "P P"]:
        """Return the operator's dense form, `(P, P)`."""
        return self.operator.to_dense()


@singledispatch
def linearized(operator: SelfAdjointOperator) -> SelfAdjointOperator:
    r"""Return the same matrix, with the forward pass made once and kept for all products.

    Partial evaluation splits $H v = \sum_n J_n^\top L_n J_n v$ into the residuals of $J_n$ and
    $L_n$ (for a Hessian, of the linearised gradient), which do not depend on $v$, and a linear map.
    Residuals of all examples are kept, so they make one chunk unless a `batch_size` was given or
    the memory limit is lower.

    Parameters
    ----------
    operator
        A curvature operator, or a sum, multiple or damped form of some: their parts are linearised.

    Returns
    -------
    operator
        A `LinearizedOperator`, to be passed through `jit` like any other; a second one for new
        values of the same shapes compiles nothing. The operator is returned unchanged if the data
        are a stream, if arrays lie on a mesh of explicit axes, whose types a kept linearisation
        would hold, if the residuals exceed its memory limit, and if it is of any other kind.
        Residuals are counted exactly, from shapes: about the activations of all examples, for a
        Hessian about three times that. Cost: one forward pass, and for a Hessian one backward pass.

    References
    ----------
    Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent.
    """
    return operator


@linearized.register
def _linearized_curvature(operator: CurvatureOperator) -> CurvatureOperator | LinearizedOperator:
    if not operator.in_memory or explicit_mesh(operator) is not None:
        return operator
    num_bytes = num_held(tree.num_bytes(_linearize.eval_shape(operator)), operator.data.placement)
    if num_bytes > operator.limits.budget:
        return operator
    return LinearizedOperator(operator, _linearize(operator))


@linearized.register
def _linearized_parts(
    operator: SumOperator | ScaledOperator | DampedOperator,
) -> SelfAdjointOperator:
    def is_part(node):
        return isinstance(node, SelfAdjointOperator) and node is not operator

    return jax.tree.map(
        lambda node: linearized(node) if is_part(node) else node, operator, is_leaf=is_part
    )


@jax.jit
def _linearize(operator):
    zeros = jnp.zeros(operator.shape[0], operator.dtype)
    # With several chunks, every product would copy each one's residuals out of those of all.
    largest = dataclasses.replace(operator.limits, batch_size=operator.largest_chunk_size())
    operator = tree.replace(operator, limits=largest)
    # The product reads parameters and inputs too: they are not copied.
    return tree.without_shared_leaves(jax.linearize(operator.mv, zeros)[1], operator)


@jax.jit
def _mv(linear, v):
    operator = linear.operator
    free, restore = read_vectors(v, operator.params, operator.objective.params, ())
    return restore(tree.unravel(linear.product(operator)(tree.ravel(free)), free))
