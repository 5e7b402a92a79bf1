"""How finely products with an operator are rounded: as the coarsest numbers in its model are."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.operator import CurvatureOperator
from laplace_kit.program import reached_from


def rounding(operator: SelfAdjointOperator) -> float:
    r"""Return $\epsilon$: products with unit vectors are rounded by less than $\epsilon \|H\|$.

    Parameters
    ----------
    operator
        Any operator, also one composed of others.

    Returns
    -------
    epsilon
        That of the coarsest floating-point dtype among the vectors and the values in the model that
        depend on free parameters: bfloat16's where a model in float32 computes in bfloat16 on the
        way. Cost: the model is traced for one example, if that has not been done.
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
