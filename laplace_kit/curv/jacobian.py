r"""Exact per-example Jacobians, $J_n = \partial f(x_n) / \partial \theta$, a chunk at a time.

The road for any model and any parameter use. Everything here is of size
examples x directions x parameters for the chunk it is given: callers bound the chunk.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.curv.objective import Objective


def pull_back(
    objective: Objective, x: PyTree, directions: Float[Array, "B R *event"]
) -> Float[Array, "B R P"]:
    r"""Return $J_n^\top s_{nr}$ for output directions $s_{nr}$ of every example, flat.

    Parameters
    ----------
    objective
        The model and its free parameters.
    x
        Inputs with a leading axis B.
    directions
        R directions in the outputs of each example.

    Returns
    -------
    rows
        `(B, R, P)`. Cost: one forward pass and R backward passes.
    """

    def one(x_n, directions_n):
        single = jax.tree.map(lambda leaf: leaf[None], x_n)
        _, vjp = jax.vjp(lambda params: objective.model_fn(params, single)[0], objective.params)
        return jax.vmap(lambda s: tree.ravel(vjp(s)[0]))(directions_n)

    return jax.vmap(one)(x, directions)


def jacobian(objective: Objective, x: PyTree) -> tuple[Array, Float[Array, "B C P"]]:
    r"""Return the outputs `(B, *event)` and $J_n$ `(B, C, P)` with C flattened outputs."""
    f = objective.outputs(x)
    directions = jnp.broadcast_to(unit_directions(f), (len(f), *unit_directions(f).shape))
    return f, pull_back(objective, x, directions)


def unit_directions(f: Float[Array, "B *event"]) -> Float[Array, "C *event"]:
    """Return the unit vectors of one example's outputs, in flat order."""
    num = math.prod(f.shape[1:])
    return jnp.eye(num, dtype=f.dtype).reshape(num, *f.shape[1:])
