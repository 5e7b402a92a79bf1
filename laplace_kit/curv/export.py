"""Conversion of operators to those of SciPy and lineax, on flat vectors."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from laplace_kit.host import fetch_array

if TYPE_CHECKING:
    import lineax
    from scipy.sparse.linalg import LinearOperator


@runtime_checkable
class Linear(Protocol):
    """A linear map with products with one flat vector, and with several along a leading axis."""

    shape: tuple[int, int]
    dtype: jnp.dtype
    mv: Callable[[PyTree], PyTree]
    matmat: Callable[[PyTree], PyTree]


def to_scipy(operator: Linear, transposed: Linear) -> "LinearOperator":
    """Return a SciPy `LinearOperator` on flat NumPy vectors.

    Parameters
    ----------
    operator, transposed
        A linear map and its transpose, in the dtype that vectors are converted to.
    """
    from scipy.sparse.linalg import LinearOperator

    def on_vectors(linear):
        return lambda v: fetch_array(linear.mv(jnp.asarray(v.reshape(-1), operator.dtype)))

    def on_columns(linear):
        return lambda vs: fetch_array(linear.matmat(jnp.asarray(vs.T, operator.dtype))).T

    return LinearOperator(
        operator.shape,
        matvec=on_vectors(operator),
        rmatvec=on_vectors(transposed),
        matmat=on_columns(operator),
        rmatmat=on_columns(transposed),
        dtype=np.dtype(operator.dtype),
    )


def to_lineax(
    operator: Linear, *, in_memory: bool, is_positive_semidefinite: bool
) -> "lineax.FunctionLinearOperator":
    """Return a lineax operator of a self-adjoint one; see `SelfAdjointOperator.to_lineax`."""
    try:
        import lineax
    except ImportError as error:
        raise ImportError(
            "Found no lineax, expected it for `to_lineax`; install it by `pip install "
            "'laplace-kit[lineax]'`."
        ) from error
    if not in_memory:
        raise TypeError(
            "Found an operator over a stream of batches, expected data in memory, as lineax "
            "compiles its solvers; pass the data as a tuple (x, y), or use `to_scipy`, whose "
            "solvers run on the host."
        )
    tags = [lineax.symmetric_tag]
    if is_positive_semidefinite:
        tags.append(lineax.positive_semidefinite_tag)
    spec = jax.ShapeDtypeStruct(operator.shape[:1], operator.dtype)
    # All arrays are leaves of `product` already: closure conversion would make a new function in
    # every call, which every solve would compile again.
    product = Partial(_mv, jax.tree.map(jnp.asarray, operator))
    return lineax.FunctionLinearOperator(product, spec, tags, closure_convert=False)


def _mv(operator: Linear, v: Float[Array, " P"]) -> Float[Array, " P"]:
    return operator.mv(v)
