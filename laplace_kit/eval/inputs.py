"""Inputs of predictions: read, checked, and padded to one of a few numbers of rows.

A program compiled for a number of rows serves all inputs that are padded to it; without padding,
each number of rows would need its own programs.
"""

from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, PyTree

from laplace_kit import tree
from laplace_kit.arrays import read_arrays
from laplace_kit.data import as_data
from laplace_kit.host import fetch

# Padded numbers of rows have at most this many leading bits, which adds at most one row in eight.
_BITS = 4
# With more rows than this, computing takes longer than compiling.
_MOST_FILLED = 4096


def checked_inputs(x: PyTree) -> PyTree:
    """Return inputs as arrays.

    Raises
    ------
    TypeError, ValueError
        If they are not arrays with one leading axis of at least one row, or not finite.
    """
    x = read_arrays(x, "inputs")
    arrays = as_data((x, ())).x
    _check_finite(x)
    return arrays


def filled_inputs(x: PyTree) -> tuple[PyTree, int]:
    """Return inputs as arrays, padded with copies of the last one, and their original number.

    Parameters
    ----------
    x
        With a leading axis N. Traced arrays, arrays on several devices and inputs with more than
        4096 rows are not padded.

    Raises
    ------
    TypeError, ValueError
        As `checked_inputs`.
    """
    x = read_arrays(x, "inputs")
    leaves = jax.tree.leaves(x)
    nums = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    num = nums.pop() if len(nums) == 1 else 0
    wanted = round_up(num)
    if num < wanted <= _MOST_FILLED and all(map(_can_be_filled, leaves)):
        rows = np.minimum(np.arange(wanted), num - 1)
        x = jax.tree.map(lambda leaf: _take(leaf, rows), x)
    return checked_inputs(x), num


def round_up(num: int) -> int:
    """Return the smallest padded number of rows that is at least `num`."""
    unit = 1 << max(num.bit_length() - _BITS, 0)
    return -(-num // unit) * unit


def _can_be_filled(leaf: np.ndarray | Array) -> bool:
    if isinstance(leaf, np.ndarray):
        return True
    return tree.is_concrete(leaf) and len(leaf.sharding.device_set) == 1


def _take(leaf: np.ndarray | Array, rows: Int[np.ndarray, " M"]) -> np.ndarray | Array:
    return leaf[rows] if isinstance(leaf, np.ndarray) else _rows(leaf, rows)


@jax.jit
def _rows(leaf, rows):
    return leaf[rows]


def _check_finite(x: PyTree) -> None:
    """Raise a `ValueError` if inputs are not finite; traced values are not checked."""
    if not tree.is_concrete(x):
        return
    for path, leaf in zip(tree.paths(x), jax.tree.leaves(x), strict=True):
        on_host = isinstance(leaf, np.ndarray)
        found = _first_not_finite(np, leaf) if on_host else _on_device(leaf)
        if not tree.is_concrete(found):  # under a transformation of something else
            return
        row, are_finite = fetch(found)
        if not are_finite:
            where = f" at {path!r}" if path else ""
            raise ValueError(
                f"Found inputs that are not finite{where}, first in row {row}, expected finite "
                "numbers; clean or drop these rows."
            )


def _first_not_finite(numpy: ModuleType, leaf: np.ndarray | Array) -> tuple[ArrayLike, ArrayLike]:
    """Return the first row that is not finite, and whether there is none."""
    rows = numpy.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
    return numpy.argmin(rows), rows.all()


_on_device = jax.jit(partial(_first_not_finite, jnp))
