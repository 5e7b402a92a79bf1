"""Self-adjoint matrices known by their products, and what follows from products alone."""

import abc
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree

if TYPE_CHECKING:
    import lineax
    from scipy.sparse.linalg import LinearOperator


class SelfAdjointOperator(abc.ABC):
    r"""A self-adjoint `(P, P)` matrix over the free parameters, known by its products; a pytree.

    A vector is a pytree like the parameters or a flat `(P,)` array; the answer has its form.

    Operators add up and scale lazily, to operators whose products are sums of their terms':
    `a + b`, `a - b`, `2.0 * a`, `a / 2.0`, `-a`. What is added and is no operator is a damping,
    $H + \mathrm{diag}(\delta)$ in any form of a prior precision: `a + 0.1` damps the diagonal only,
    unlike the sum of an array and a number.

    Attributes
    ----------
    params
        The parameters that vectors are like, with whatever leaves are frozen.
    """

    params: PyTree
    # NumPy arrays leave `W @ op` and `2.0 * op` to the operator, rather than loop over entries.
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
        """Whether no eigenvalue is known to be negative; not known inside JAX transformations."""
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

    # --- algebra: `laplace_kit.curv.algebra` is built on this module ------------------------------

    def __add__(self, other: PyTree) -> "SelfAdjointOperator":
        """Return the sum with an operator, or with a damping of the diagonal."""
        from laplace_kit.curv.algebra import DampedOperator, SumOperator

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
        from laplace_kit.curv.algebra import ScaledOperator

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
        """Return a SciPy `LinearOperator` on flat NumPy vectors, for `eigsh` and its like."""
        from scipy.sparse.linalg import LinearOperator

        def matvec(v):
            return np.asarray(self.mv(jnp.asarray(v.reshape(-1), self.dtype)))

        def matmat(vs):
            return np.asarray(self.matmat(jnp.asarray(vs.T, self.dtype))).T

        return LinearOperator(
            self.shape, matvec=matvec, rmatvec=matvec, matmat=matmat, dtype=np.dtype(self.dtype)
        )

    def to_lineax(self) -> "lineax.FunctionLinearOperator":
        """Return a lineax operator on flat vectors, with the tags that its solvers ask for.

        It is symmetric, and positive semi-definite where `is_positive_semidefinite` says so. That
        looks at values, hence export before `jax.jit` and pass the result in; or add the tag by
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
        try:
            import lineax
        except ImportError as error:
            raise ImportError(
                "Found no lineax, expected it for `to_lineax`; install it by `pip install "
                "'laplace-kit[lineax]'`."
            ) from error
        if not self.in_memory:
            raise TypeError(
                "Found an operator over a stream of batches, expected data in memory, as lineax "
                "compiles its solvers; pass the data as a tuple (x, y), or use `to_scipy`, whose "
                "solvers run on the host."
            )
        tags = [lineax.symmetric_tag]
        if self.is_positive_semidefinite:
            tags.append(lineax.positive_semidefinite_tag)
        spec = jax.ShapeDtypeStruct(self.shape[:1], self.dtype)
        # All arrays are leaves of `product` already: a conversion of closures would make a function
        # that is new to every call, to be compiled anew by every solve.
        product = jax.tree_util.Partial(_mv, jax.tree.map(jnp.asarray, self))
        return lineax.FunctionLinearOperator(product, spec, tags, closure_convert=False)


def _mv(operator: SelfAdjointOperator, v: Float[Array, " P"]) -> Float[Array, " P"]:
    return operator.mv(v)


def known_nonnegative(values: PyTree) -> bool:
    """Tell whether every number is nonnegative and can be looked at, outside of transformations."""
    if not tree.is_concrete(values):
        return False
    return all(np.all(np.asarray(leaf) >= 0) for leaf in jax.tree.leaves(values))


def _is_block(v: PyTree) -> bool:
    return isinstance(v, jax.Array | np.ndarray) and v.ndim == 2
