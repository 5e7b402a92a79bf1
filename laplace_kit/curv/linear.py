"""Self-adjoint matrices known by their products, and what follows from products alone."""

import abc
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class SelfAdjointOperator(abc.ABC):
    """A self-adjoint `(P, P)` matrix over the free parameters, known by its products; a pytree.

    A vector is a pytree like the parameters or a flat `(P,)` array; the answer has its form.
    """

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

    def __matmul__(self, v: PyTree) -> PyTree:
        """Return the product with one vector, `op.mv(v)`."""
        return self.mv(v)

    def trace(self) -> Float[Array, ""]:
        """Return the exact trace, at the cost of the diagonal."""
        return self.diagonal().sum()

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
