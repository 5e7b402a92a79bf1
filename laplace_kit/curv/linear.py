r"""Self-adjoint linear operators and their lazy algebra.

Nothing is computed until a product is; a product with a sum costs one with each term. Sums,
multiples and damped matrices are pytrees whose coefficients are leaves: they can be passed to
compiled functions, mapped over by `jax.vmap`, and differentiated in coefficients and parameters.
"""

import abc
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.curv.export import to_lineax, to_scipy
from laplace_kit.curv.vector import read_vectors
from laplace_kit.host import extremes
from laplace_kit.selection import select
from laplace_kit.tree import pytree_dataclass

if TYPE_CHECKING:
    import lineax
    from scipy.sparse.linalg import LinearOperator


class SelfAdjointOperator(abc.ABC):
    r"""A self-adjoint `(P, P)` matrix over the free parameters, given by products; a pytree.

    A vector is a pytree like the parameters or a flat `(P,)` array; the answer has its form.

    Sums and multiples of operators are lazy: `a + b`, `a - b`, `2.0 * a`, `a / 2.0`, `-a`. Anything
    else that is added is a damping, $H + \mathrm{diag}(\delta)$ in any form of a prior precision:
    `a + 0.1` damps only the diagonal, unlike the sum of an array and a number.

    Attributes
    ----------
    params
        The parameters whose structure vectors have, frozen leaves included.
    """

    params: PyTree
    # NumPy arrays then leave `W @ op` and `2.0 * op` to the operator, and do not loop over entries.
    __array_ufunc__ = None

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """The matrix's shape, `(P, P)`."""

    @property
    @abc.abstractmethod
    def dtype(self) -> jnp.dtype:
        """The dtype of flat vectors: the parameters' common one."""

    @property
    @abc.abstractmethod
    def in_memory(self) -> bool:
        """Whether products can be part of a compiled program; over a stream the host loops."""

    @property
    def is_positive_semidefinite(self) -> bool:
        """Whether all eigenvalues are known to be at least zero; not for traced coefficients."""
        return False

    @abc.abstractmethod
    def mv(self, v: PyTree) -> PyTree:
        """Return the product with one vector, in its form."""

    @abc.abstractmethod
    def matmat(self, vs: PyTree) -> PyTree:
        """Return the products with K vectors, along a leading axis, in one pass over the data."""

    @abc.abstractmethod
    def diagonal(self) -> Float[Array, " P"]:
        """Return the exact diagonal in flat order, `(P,)`, in float32 or better."""

    @abc.abstractmethod
    def to_dense(self) -> Float[Array, "P P"]:
        """Return the matrix in flat order, `(P, P)`, in float32 or better."""

    def trace(self) -> Float[Array, ""]:
        """Return the exact trace, at the cost of the diagonal."""
        return self.diagonal().sum()

    # --- products with `@` ------------------------------------------------------------------------

    def __matmul__(self, v: PyTree) -> PyTree:
        """Return the product with a vector in either form, or with the columns of `(P, K)`.

        Columns are NumPy's convention for `@`; `matmat` has its vectors along a leading axis.
        """
        if isinstance(v, SelfAdjointOperator):
            raise TypeError(
                "Found a product of two operators, expected a vector or an array (P, K), as such a "
                "product need not be self-adjoint; apply one after the other, a @ (b @ v)."
            )
        if _is_block(v) and v.shape[0] == self.shape[0]:
            return self.matmat(v.T).T
        return self.mv(v)

    def __rmatmul__(self, w: PyTree) -> PyTree:
        """Return the product of a vector, or of the rows of `(K, P)`, with the matrix."""
        if _is_block(w) and w.shape[1] == self.shape[0]:
            return self.matmat(w)
        return self.mv(w)

    # --- algebra ----------------------------------------------------------------------------------

    def __add__(self, other: PyTree) -> "SelfAdjointOperator":
        """Return the sum with an operator, or with a damping of the diagonal."""
        if isinstance(other, SelfAdjointOperator):
            return SumOperator((self, other))
        return DampedOperator(self, other)

    def __sub__(self, other: PyTree) -> "SelfAdjointOperator":
        """Return the difference from an operator, or from a shift of the diagonal."""
        if isinstance(other, SelfAdjointOperator):
            return self + -other
        return self + jax.tree.map(lambda shift: -shift, other)

    def __mul__(self, factor) -> "SelfAdjointOperator":
        """Return the multiple by a real scalar."""
        return ScaledOperator(self, factor)

    def __truediv__(self, divisor) -> "SelfAdjointOperator":
        """Return the multiple by the inverse of a real scalar."""
        return self * (1 / divisor)

    def __neg__(self) -> "SelfAdjointOperator":
        """Return the negative."""
        return self * -1.0

    def __rsub__(self, other: PyTree) -> "SelfAdjointOperator":
        """Return the negative plus a shift of the diagonal."""
        return -self + other

    __radd__, __rmul__ = __add__, __mul__

    # --- exports ----------------------------------------------------------------------------------

    def to_scipy(self) -> "LinearOperator":
        """Return a SciPy `LinearOperator` on flat NumPy vectors, for `eigsh` and others."""
        return to_scipy(self, self)

    def to_lineax(self) -> "lineax.FunctionLinearOperator":
        """Return a lineax operator on flat vectors, with the tags that its solvers need.

        It is tagged symmetric, and positive semi-definite if `is_positive_semidefinite`. As this
        depends on values, export outside `jax.jit` and pass the result in, or add the tag by
        `lineax.TaggedLinearOperator`.

        Returns
        -------
        operator
            A pytree whose leaves are the arrays of this operator.

        Raises
        ------
        ImportError
            If lineax is not installed.
        TypeError
            If the data are a stream, which lineax's compiled solvers cannot loop over.
        """
        return to_lineax(
            self,
            in_memory=self.in_memory,
            is_positive_semidefinite=self.is_positive_semidefinite,
        )


class WrappedOperator(SelfAdjointOperator):
    """A matrix derived from that of an `operator`, over the same parameters."""

    operator: SelfAdjointOperator

    @property
    def params(self) -> PyTree:
        """The parameters whose structure vectors have."""
        return self.operator.params

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix's shape, `(P, P)`."""
        return self.operator.shape

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of flat vectors: the parameters' common one."""
        return self.operator.dtype

    @property
    def in_memory(self) -> bool:
        """Whether products can be part of a compiled program; over a stream the host loops."""
        return self.operator.in_memory

    @property
    def is_positive_semidefinite(self) -> bool:
        """Whether all eigenvalues are known to be at least zero."""
        return self.operator.is_positive_semidefinite


# --- sums, multiples, damping ---------------------------------------------------------------------


@pytree_dataclass()
class SumOperator(SelfAdjointOperator):
    r"""The sum $\sum_i H_i$ of operators over the same parameters; `a + b`.

    Parameters
    ----------
    terms
        One operator or more. A product costs one with each term, and so a pass over its data.

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
        """The parameters whose structure vectors have: those of the first term."""
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
class ScaledOperator(WrappedOperator):
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
class DampedOperator(WrappedOperator):
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


# Each is one program when called outside a compiled one, as for data that are streamed.
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


def known_nonnegative(values: PyTree) -> bool:
    """Return whether all values are known (not traced) and nonnegative."""
    if not tree.is_concrete(values):
        return False
    return all(extremes(leaf)[0] >= 0 for leaf in jax.tree.leaves(values) if jnp.size(leaf))


def _is_block(v: PyTree) -> bool:
    return isinstance(v, jax.Array | np.ndarray) and v.ndim == 2
