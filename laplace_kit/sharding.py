"""Examples spread over the devices of a mesh, filled up where their number is no multiple."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from laplace_kit.arrays import common_length, read_arrays
from laplace_kit.weights import as_weights


def shard(
    x: PyTree, y: PyTree, mesh: Mesh, axis: str | tuple[str, ...] = "data", *, weights: Any = None
) -> tuple[PyTree, PyTree, Float[Array, " M"]]:
    """Spread examples over the devices of a mesh, filled up with examples of weight zero.

    Parameters
    ----------
    x, y
        Inputs and targets, arrays or pytrees with one leading axis of N examples.
    mesh
        A mesh of devices, as `jax.make_mesh` makes it, with automatic or explicit axes.
    axis
        The axis of the mesh, or several, over which examples are spread.
    weights
        The weights of the examples, `(N,)`; ones by default.

    Returns
    -------
    x, y, weights
        Data for `laplace_kit.fit`, with M examples: N, rounded up to a multiple of the number of
        devices along `axis`. Those added are copies of the last one, and have the weight zero.

    Raises
    ------
    TypeError, ValueError
        If the mesh has no such axis, or data or weights are refused by `laplace_kit.data.as_data`.
    """
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not set(axes) <= set(mesh.axis_names):
        raise ValueError(
            f"Found axis={axis!r}, expected one of the mesh's axes, {mesh.axis_names}, or a tuple "
            "of some; name the axis over which examples are to be spread."
        )
    x, y = read_arrays(x, "inputs"), read_arrays(y, "targets")
    num = common_length(x, y)
    weights = as_weights(np.ones(num, np.float32) if weights is None else weights, num)
    by_rows = NamedSharding(mesh, PartitionSpec(axes))
    num_parts = math.prod(mesh.shape[name] for name in axes)
    rows = np.arange(-(-num // num_parts) * num_parts)
    if len(rows) > num:
        x, y, weights = jax.tree.map(lambda leaf: leaf[np.minimum(rows, num - 1)], (x, y, weights))
        weights = np.where(rows < num, weights, 0)
    return jax.device_put((x, y, weights), by_rows)
