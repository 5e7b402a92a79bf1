"""Operators that are nothing but a matrix, in memory or on the host alone."""

import jax.numpy as jnp
import numpy as np

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass(static=("in_memory",))
class Matrix(SelfAdjointOperator):
    """A matrix as an operator; out of memory its products cannot be traced."""

    dense: jnp.ndarray
    in_memory: bool = True

    @property
    def params(self):
        return jnp.zeros(len(self.dense), self.dense.dtype)

    @property
    def shape(self):
        return self.dense.shape

    @property
    def dtype(self):
        return self.dense.dtype

    def mv(self, v):
        return self.matmat(v[None])[0]

    def matmat(self, vs):
        if self.in_memory:
            return vs @ self.dense
        return jnp.asarray(np.asarray(vs) @ np.asarray(self.dense))

    def diagonal(self):
        return jnp.diag(self.dense)

    def to_dense(self):
        return self.dense


def rotated(spectrum, dtype: str = "float64", *, in_memory: bool = True) -> Matrix:
    """Return a matrix with these eigenvalues and no other structure."""
    size = len(spectrum)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    return Matrix(
        jnp.asarray(rotation.T @ (np.asarray(spectrum)[:, None] * rotation), dtype), in_memory
    )
