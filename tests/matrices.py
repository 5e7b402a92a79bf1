"""Operators that are nothing but a matrix, in memory or on the host alone."""

import functools

import jax.numpy as jnp
import numpy as np
import twins

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
        return twins.array(np.asarray(vs) @ np.asarray(self.dense))

    def diagonal(self):
        return jnp.diag(self.to_dense())

    def to_dense(self):
        return self.dense.astype(jnp.promote_types(self.dtype, jnp.float32))


@pytree_dataclass()
class Diagonal(SelfAdjointOperator):
    """A diagonal matrix, whose size nothing limits."""

    values: jnp.ndarray

    @property
    def params(self):
        return jnp.zeros_like(self.values)

    @property
    def shape(self):
        return self.values.shape * 2

    @property
    def dtype(self):
        return self.values.dtype

    @property
    def in_memory(self):
        return True

    def mv(self, v):
        return self.values * v

    def matmat(self, vs):
        return self.values * vs

    def diagonal(self):
        return self.values

    def to_dense(self):
        return jnp.diag(self.values)


@functools.cache
def rotation(size: int) -> np.ndarray:
    """Return an orthogonal matrix without structure."""
    return np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]


def rotated(spectrum, dtype: str = "float64", *, in_memory: bool = True) -> Matrix:
    """Return a matrix with these eigenvalues, the rows of `rotation` for eigenvectors."""
    basis = rotation(len(spectrum))
    dense = basis.T @ (np.asarray(spectrum)[:, None] * basis)
    return Matrix(twins.array(dense, dtype), in_memory)
