"""Conversion of metric arguments: any array-likes, with computation in their own precision.

JAX computes in float32 by default, but probabilities and targets often come from other libraries,
as NumPy arrays in float64. If all floating-point arrays are on the host and one is float64, so is
the computation; only the result is rounded to JAX's precision. Device arrays, and arrays inside
`jax.jit`, keep the precision they have.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from laplace_kit.arrays import read_array
from laplace_kit.host import fetch_array
from laplace_kit.tree import is_concrete

_P, _T = ParamSpec("_P"), TypeVar("_T")
_OnHost = np.ndarray | np.generic


@runtime_checkable
class SupportsArray(Protocol):
    """A data frame, a series, a tensor, or anything else that NumPy can read."""

    def __array__(self, *args: Any) -> np.ndarray: ...


Numbers = ArrayLike | Sequence[Any] | SupportsArray


def metric(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a function of arrays accept any array-likes and compute in their own precision."""
    signature, computed = inspect.signature(function), in_own_precision(function)

    @functools.wraps(function)
    def converted(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        given.arguments = {name: as_numbers(name, v) for name, v in given.arguments.items()}
        return computed(*given.args, **given.kwargs)

    return converted


def in_own_precision(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a function compute in float64 where its arguments hold float64 arrays of the host.

    This is so if all floating-point leaves are host arrays and one is float64. Arrays in the result
    are rounded to JAX's precision.
    """

    @functools.wraps(function)
    def computed(*args, **kwargs):
        if jax.config.jax_enable_x64 or not _are_double((args, kwargs)):
            return function(*args, **kwargs)
        with jax.enable_x64(True):
            found = function(*args, **kwargs)
        is_array = [isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found)]
        return jax.tree.map(_rounded, found) if any(is_array) else found

    return computed


def _are_double(arguments: PyTree) -> bool:
    arrays = [a for a in jax.tree.leaves(arguments) if isinstance(a, jax.Array | _OnHost)]
    floating = [a for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    all_on_host = all(isinstance(a, _OnHost) for a in floating)
    return is_concrete(arrays) and all_on_host and any(a.dtype == np.float64 for a in floating)


def _rounded(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    if is_concrete(leaf):
        return jax.device_put(fetch_array(leaf))  # needs no program, unlike `astype`
    return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))


def as_numbers(name: str, values: Any) -> ArrayLike | None:
    """Return Python numbers and None unchanged, and other array-likes as JAX or NumPy arrays.

    `name` is for messages. Errors are those of `laplace_kit.arrays.read_array`, and a `TypeError`
    for complex numbers.
    """
    if values is None or isinstance(values, bool | int | float):
        return values
    values = read_array(values, name)
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise TypeError(
            f"Found {name} of dtype {values.dtype}, expected real numbers; pass their real parts, "
            "or their absolute values."
        )
    return values
