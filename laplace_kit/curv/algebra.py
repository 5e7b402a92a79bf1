r"""The lazy algebra of operators: sums, multiples, and a damping of the diagonal.

Nothing is computed before a product is asked for; that of a sum costs those of its terms. All three
are pytrees whose coefficients are leaves: to be passed to compiled functions, mapped over by
`jax.vmap`, and differentiated in coefficients and parameters alike.
"""

from functools import partial
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.curv.linear import SelfAdjointOperator, known_nonnegative
from laplace_kit.curv.vector import read_vectors
from laplace_kit.selection import select
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class SumOperator(SelfAdjointOperator):
    r"""The sum $\sum_i H_i$ of operators over the same parameters; `a + b`.

    Parameters
    ----------
    terms
        One operator or more. A product costs one with each: a pass over the data of each.

    Raises
    ------
    ValueError
        If there is no term, or the terms' parameters differ in structure or shapes.
    """

    terms: tuple[SelfAdjointOperator, ...]

    def __post_init__(self):
        if not self.terms:
            raise ValueError("Found no terms, expected one operator or more to add up.")
        first, *others = (_layout(term.params) for term in self.terms)
        for other in others:
            if other != first:
                raise ValueError(
                    f"Found operators over different parameters, {first} and {other}, expected the "
                    "same structure and shapes for every term; make them from the same params."
                )

    @property
    def params(self) -> PyTree:
        """The parameters that vectors are like: those of the first term."""
        return self.terms[0].params

    @property
    def shape(self):
        return self.terms[0].shape

    @property
    def dtype(self):
        return jnp.result_type(*(term.dtype for term in self.terms))

    @property
    def in_memory(self):
        return all(term.in_memory for term in self.terms)

    @property
    def is_positive_semidefinite(self):
        return all(term.is_positive_semidefinite for term in self.terms)

    def mv(self, v):
        return _add(*(term.mv(v) for term in self.terms))

    def matmat(self, vs):
        return _add(*(term.matmat(vs) for term in self.terms))

    def diagonal(self):
        return _add(*(term.diagonal() for term in self.terms))

    def to_dense(self):
        return _add(*(term.to_dense() for term in self.terms))

    def trace(self):
        return _add(*(term.trace() for term in self.terms))


@pytree_dataclass()
class ScaledOperator(SelfAdjointOperator):
    """The multiple `factor * operator`.

    Parameters
    ----------
    operator
        Any operator.
    factor
        A real scalar: a number, or an array of shape `()`.

    Raises
    ------
    ValueError
        If `factor` is not a real scalar.
    """

    operator: SelfAdjointOperator
    factor: Any

    def __post_init__(self):
        is_number = isinstance(self.factor, jax.Array | np.ndarray | np.generic | Real)
        if not (is_number and np.shape(self.factor) == () and jnp.isrealobj(self.factor)):
            raise ValueError(
                f"Found as factor of an operator one of type {type(self.factor).__name__} and of "
                f"shape {np.shape(self.factor)}, expected a real scalar; products with vectors are "
                "op @ v."
            )

    @property
    def params(self) -> PyTree:
        """The parameters that vectors are like."""
        return self.operator.params

    @property
    def shape(self):
        return self.operator.shape

    @property
    def dtype(self):
        return self.operator.dtype

    @property
    def in_memory(self):
        return self.operator.in_memory

    @property
    def is_positive_semidefinite(self):
        return self.operator.is_positive_semidefinite and known_nonnegative(self.factor)

    def mv(self, v):
        return _scale(self.factor, self.operator.mv(v))

    def matmat(self, vs):
        return _scale(self.factor, self.operator.matmat(vs))

    def diagonal(self):
        return _scale(self.factor, self.operator.diagonal())

    def to_dense(self):
        return _scale(self.factor, self.operator.to_dense())

    def trace(self):
        return _scale(self.factor, self.operator.trace())


@pytree_dataclass()
class DampedOperator(SelfAdjointOperator):
    r"""The matrix with a damped diagonal, $H + \mathrm{diag}(\delta)$; `operator + damping`.

    With the prior precision for $\delta$ it is the posterior precision of a Laplace approximation.
    A product costs one with $H$ and $O(P)$.

    Parameters
    ----------
    operator
        Any operator, for $H$.
    damping
        $\delta$: a scalar, one value per leaf or group (a pytree prefix of the parameters), one per
        parameter (a pytree like the parameters), or flat `(P,)`. Negative values shift the
        spectrum down.

    Raises
    ------
    ValueError
        If `damping` has none of these forms.
    """

    operator: SelfAdjointOperator
    damping: PyTree

    def __post_init__(self):
        jax.eval_shape(_expand, self.damping, self.params)

    @property
    def params(self) -> PyTree:
        """The parameters that vectors are like."""
        return self.operator.params

    @property
    def shape(self):
        return self.operator.shape

    @property
    def dtype(self):
        return self.operator.dtype

    @property
    def in_memory(self):
        return self.operator.in_memory

    @property
    def is_positive_semidefinite(self):
        return self.operator.is_positive_semidefinite and known_nonnegative(self.damping)

    def mv(self, v):
        return _add(self.operator.mv(v), _times_damping(self.damping, self.params, v, ()))

    def matmat(self, vs):
        product = self.operator.matmat(vs)
        num = len(jax.tree.leaves(vs)[0])
        return _add(product, _times_damping(self.damping, self.params, vs, (num,)))

    def diagonal(self):
        return _add(self.operator.diagonal(), self.damping_vector())

    def to_dense(self):
        return _add_to_diagonal(self.operator.to_dense(), self.damping_vector())

    def trace(self):
        return _add(self.operator.trace(), self.damping_vector().sum())

    def damping_vector(self) -> Float[Array, " P"]:
        """Return the damping of every parameter in flat order, `(P,)`, in float32 or better."""
        return _compiled_expand(self.damping, self.params)


def _layout(params):
    return jax.tree.structure(params), [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]


def _expand(damping, params):
    free, selection = select(params)
    return selection.broadcast(damping, free, name="damping")


_compiled_expand = jax.jit(_expand, inline=True)


# Each is one program where products have been computed one by one, as on the host.
@partial(jax.jit, inline=True)
def _add(*products: PyTree) -> PyTree:
    return jax.tree.map(lambda first, *others: sum(others, first), *products)


@partial(jax.jit, inline=True)
def _scale(factor: Array, product: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, product)


@partial(jax.jit, inline=True)
def _add_to_diagonal(matrix: Array, values: Array) -> Array:
    every = jnp.arange(len(values))
    return matrix.at[every, every].add(values)


@partial(jax.jit, static_argnames="leading", inline=True)
def _times_damping(damping: PyTree, params: PyTree, v: PyTree, leading: tuple) -> PyTree:
    free = select(params)[0]
    vectors, restore = read_vectors(v, params, free, leading)
    values = tree.unravel(_expand(damping, params), free)
    return restore(jax.tree.map(jnp.multiply, values, vectors))
