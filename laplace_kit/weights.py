"""Weights of examples: conversion and checks.

An example of weight k counts k times in every sum over the data; a weight of zero leaves it out.
"""

from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from laplace_kit import tree
from laplace_kit.arrays import is_list_of_numbers, read_array
from laplace_kit.host import fetch


def as_weights(values: Any, num: int) -> Float[Array, " N"]:
    """Return weights of examples as an array of float32 or better.

    Parameters
    ----------
    values
        Array-like, `(N,)`: finite numbers of at least zero, or booleans.
    num
        N, the number of examples.

    Raises
    ------
    TypeError
        If `values` is not one array of real numbers.
    ValueError
        If it has another shape, or a value is negative, infinite or NaN. Inside JAX
        transformations values are not checked.
    """
    is_one = not isinstance(values, tuple | Mapping)
    if not is_one or (isinstance(values, list) and values and not is_list_of_numbers(values)):
        raise TypeError(
            f"Found a {type(values).__name__} as the weights of examples, the third part of data, "
            f"expected one array of shape ({num},); put several inputs or targets into one pytree, "
            "for example ((x1, x2), y)."
        )
    weights = read_array(values, "weights")
    if not (jnp.issubdtype(weights.dtype, jnp.complexfloating) or weights.shape == (num,)):
        is_column = weights.shape == (num, 1)
        remedy = "flatten them, weights.reshape(-1)" if is_column else "give one number to each"
        raise ValueError(
            f"Found weights of shape {weights.shape} for {num} examples, expected ({num},); "
            f"{remedy}. Data are (x, y, weights), several inputs one pytree, ((x1, x2), y), and "
            "single entries of targets are left out by a mask, lk.Masked(likelihood)."
        )
    if jnp.issubdtype(weights.dtype, jnp.complexfloating):
        raise TypeError(f"Found weights of dtype {weights.dtype}, expected real numbers.")
    if tree.is_concrete(weights):
        found = _look(weights)
        if found.num_bad:
            raise ValueError(
                f"Found weights that are negative or not finite: first {found.value} at example "
                f"{found.first} ({found.num_bad} in all), expected finite numbers of at least "
                "zero; to leave an example out, give it the weight zero."
            )
    is_floating = jnp.issubdtype(weights.dtype, jnp.floating)
    dtype = jnp.promote_types(weights.dtype, jnp.float32) if is_floating else jnp.result_type(float)
    if isinstance(weights, jax.Array):
        return weights if weights.dtype == dtype else weights.astype(dtype)
    return jax.device_put(weights.astype(dtype))


def check_some_count(weights: Float[Array, " N"] | None) -> None:
    """Raise a `ValueError` if the weights of all data are zero; traced values are not checked."""
    if weights is None or not tree.is_concrete(weights) or _look(weights).any_counts:
        return
    raise ValueError(ALL_ZERO)


ALL_ZERO = (
    "Found weights that are all zero, expected a positive weight for at least one example; check "
    "how they were made, or leave them out to count each example once."
)


class _Look(NamedTuple):
    """Number, index and value of invalid weights (the first), and whether any is positive."""

    num_bad: ArrayLike
    first: ArrayLike
    value: ArrayLike
    any_counts: ArrayLike


def _look(weights: Array | np.ndarray) -> _Look:
    """Inspect weights where they are: on the host with NumPy, or by a program on the device."""
    if isinstance(weights, jax.Array):
        return _Look(*fetch(tuple(_look_on_device(weights))))
    return _look_with(np, weights)


def _look_with(xp: ModuleType, weights: Array | np.ndarray) -> _Look:
    bad = ~(xp.isfinite(weights) & (weights >= 0))
    first = xp.argmax(bad)
    # Not weights[first]: a single entry of an explicitly sharded array cannot be read.
    value = xp.sum(xp.where(xp.arange(len(weights)) == first, weights, 0))
    return _Look(xp.sum(bad), first, value, xp.any(weights > 0))


_look_on_device = jax.jit(partial(_look_with, jnp))
