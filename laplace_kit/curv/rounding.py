"""The rounding of products with an operator: that of the coarsest dtype in its model."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.operator import CurvatureOperator
from laplace_kit.program import reached_from


def rounding(operator: SelfAdjointOperator) -> float:
    r"""Return $\epsilon$ such that products with unit vectors err by less than $\epsilon \|H\|$.

    Parameters
    ----------
    operator
        Any operator, also one composed of others.

    Returns
    -------
    epsilon
        The machine epsilon of the coarsest floating-point dtype among the vectors and the values in
        the model that depend on free parameters: that of bfloat16 if a float32 model computes in
        bfloat16 in between. Cost: the model is traced for one example, if it has not been yet.
    """
    parts = jax.tree.leaves(operator, is_leaf=_is_curvature)
    models = [part for part in parts if _is_curvature(part)]
    dtypes = {operator.dtype}.union(*map(_dtypes, models))
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes)


def _is_curvature(node: PyTree) -> bool:
    return isinstance(node, CurvatureOperator)


def _dtypes(operator: CurvatureOperator) -> set[jnp.dtype]:
    program = operator.plan.layers.program
    dtypes = {program.avals[number].dtype for number in reached_from(program, program.leaves)}
    return {dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)}
