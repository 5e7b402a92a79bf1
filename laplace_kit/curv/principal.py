"""Principal submatrices: the curvature of a subset of parameters, at the cost of the subset."""

import functools

from laplace_kit import tree
from laplace_kit.curv.linear import DampedOperator, ScaledOperator, SelfAdjointOperator, SumOperator
from laplace_kit.curv.linearization import LinearizedOperator, linearized
from laplace_kit.curv.objective import restrict
from laplace_kit.curv.operator import CurvatureOperator
from laplace_kit.curv.split import with_features
from laplace_kit.data import batch_spec
from laplace_kit.selection import Subset, select


@functools.singledispatch
def submatrix(operator: SelfAdjointOperator, subset: Subset) -> SelfAdjointOperator:
    r"""Return the principal submatrix of some parameters, $H_{SS} = E_S^\top H E_S$.

    It is an operator of the same kind for the model with all other parameters frozen, and not a
    product with zeros filled in: vectors, backward passes and derivatives have the size of the
    subset, and values that depend only on frozen parameters are computed once, here. A Monte-Carlo
    Fisher matrix keeps its labels.

    Parameters
    ----------
    operator
        An operator over P free parameters.
    subset
        A subset of the operator's parameters, as for `laplace_kit.fit`: a predicate on
        the leaf's path, a pytree prefix of booleans, per leaf or per element, or one flat array,
        booleans `(P,)` or the indices of k parameters in any order.

    Returns
    -------
    operator
        `(k, k)`, with the parameters in the order that they have in `operator`: its dense
        form is that of `operator` in these rows and columns. Its vectors are flat `(k,)`, or
        pytrees with `None` for a frozen leaf and `(j,)` for the j free entries of a leaf. Cost: one
        forward pass over inputs in memory, none over a stream.

    Raises
    ------
    TypeError
        If no submatrix is registered for operators of this type.
    ValueError
        If `subset` selects nothing, or parameters that do not exist.
    """
    raise TypeError(
        f"Found an operator of type {type(operator).__name__}, expected a curvature operator or "
        "one composed of them; register others by `submatrix.register`."
    )


@submatrix.register
def _curvature_submatrix(operator: CurvatureOperator, subset: Subset) -> CurvatureOperator:
    bound = operator.model_fn, operator.params, operator.likelihood
    objective, _ = restrict(*bound, subset, operator.limits)
    objective = objective.planned(batch_spec(operator.data)[0])
    objective, data = with_features(objective, operator.data)
    return tree.replace(
        operator,
        model_fn=objective.model_fn,
        params=objective.params,
        data=data,
        plan=objective.plan,
    )


@submatrix.register
def _sum_submatrix(operator: SumOperator, subset: Subset) -> SumOperator:
    return SumOperator(tuple(submatrix(term, subset) for term in operator.terms))


@submatrix.register
def _scaled_submatrix(operator: ScaledOperator, subset: Subset) -> ScaledOperator:
    return ScaledOperator(submatrix(operator.operator, subset), operator.factor)


@submatrix.register
def _damped_submatrix(operator: DampedOperator, subset: Subset) -> DampedOperator:
    _, selection = select(operator.params, subset)
    damping = tree.unravel(operator.damping_vector(), select(operator.params)[0])
    part = submatrix(operator.operator, subset)
    return DampedOperator(part, tree.ravel(selection.take(damping)))


@submatrix.register
def _linearized_submatrix(operator: LinearizedOperator, subset: Subset) -> SelfAdjointOperator:
    return linearized(submatrix(operator.operator, subset))
