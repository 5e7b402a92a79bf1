"""Inputs to predict at: read, checked, and filled up to one of a few numbers of rows.

What is compiled for a number of rows serves all that are filled up to it: without that, each number
would have programs of its own.
"""

from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from laplace_kit import tree
from laplace_kit.arrays import read_arrays
from laplace_kit.data import as_data

# Numbers of rows have so many leading bits at most: one row in eight is added at the worst.
_BITS = 4
# With more rows, computing takes longer than compiling.
_MOST_FILLED = 4096


def checked_inputs(x: PyTree) -> PyTree:
    """Return inputs as arrays.

    Raises
    ------
    TypeError, ValueError
        If they are no arrays with one leading axis of at least one row, or not finite.
    """
    x = read_arrays(x, "inputs")
    arrays = as_data((x, ())).x
    _check_finite(x)
    return arrays


def filled_inputs(x: PyTree) -> tuple[PyTree, int]:
    """Return inputs as arrays, filled up with copies of the last one, and how many they were.

    Parameters
    ----------
    x
        With a leading axis N. Traced arrays and what is spread over several devices keep their
        number of rows, and so do more than 4096 rows.

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


def first_rows(found: PyTree, num: int) -> PyTree:
    """Return what was computed for inputs without that for those that were filled in."""
    return found if len(jax.tree.leaves(found)[0]) == num else _first(found, num)


@partial(jax.jit, static_argnames="num")
def _first(found, num):
    return jax.tree.map(lambda rows: rows[:num], found)


def round_up(num: int) -> int:
    """Return the next number of rows that has few leading bits."""
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
    """Refuse what is not finite, where values can be looked at."""
    if not tree.is_concrete(x):
        return
    for path, leaf in zip(tree.paths(x), jax.tree.leaves(x), strict=True):
        on_host = isinstance(leaf, np.ndarray)
        rows = _rows_are_finite(np, leaf) if on_host else _on_device(leaf)
        if not tree.is_concrete(rows):  # under a transformation of something else
            return
        rows = np.asarray(rows)
        if not rows.all():
            where = f" at {path!r}" if path else ""
            row = int(np.argmin(rows))
            raise ValueError(
                f"Found inputs that are not finite{where}, first in row {row}, expected finite "
                "numbers; clean or drop these rows."
            )


def _rows_are_finite(numpy: ModuleType, leaf: np.ndarray | Array) -> np.ndarray | Array:
    return numpy.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)


_on_device = jax.jit(partial(_rows_are_finite, jnp))
