r"""The neural tangent kernel, $K(x, x') = J(x)\, D\, J(x')^\top$, without Jacobians."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.curv.capture.blocks import Block
from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.curv.capture.cost import check_fits, multiplied_out, pair_bytes, rows_cost
from laplace_kit.curv.objective import Objective, restrict
from laplace_kit.data import as_data
from laplace_kit.host import check_same
from laplace_kit.memory import Limits
from laplace_kit.sums import map_over


def neural_tangent_kernel(
    model_fn: Callable,
    params: PyTree,
    x: Any,
    other: Any = None,
    *,
    variance: PyTree = 1.0,
    batch_size: int | None = None,
    memory_limit: int | None = None,
) -> Float[Array, "N C M D"]:
    r"""Return $J(x)\, D\, J(x')^\top$ between all outputs at two sets of inputs.

    With the prior variance for $D$ it is the prior covariance of the linearised model's outputs.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`, pure.
    params
        A pytree; leaves that are not floating point are frozen.
    x, other
        Inputs with leading axes N and M; by default `other` is `x`.
    variance
        $D$: a scalar, a pytree prefix of the parameters, or one value per parameter.
    batch_size
        The number of inputs of each set held at a time; `None` chooses from the memory limit.
    memory_limit
        In bytes; `None` for a share of the device's memory.

    Returns
    -------
    kernel
        `(N, C, M, C)` over flattened outputs, in float32 or better. Cost: $C$ backward passes for
        each input of `x`, and for each input of `other` in every chunk of `x`; then for each pair
        of inputs and each layer $I + C^2 O$ operations if `variance` is a scalar, otherwise
        $I O + C^2 O$.

    Raises
    ------
    ValueError
        If one input with all of its outputs exceeds the memory limit.

    References
    ----------
    Jacot, Gabriel and Hongler (2018), Neural tangent kernel: convergence and generalization in
    neural networks.
    """
    x = as_data((x, ())).x
    check_same("parameters or inputs", (params, x, other))
    limits = Limits(batch_size, memory_limit).shared_by(params, x, other)
    objective, _ = restrict(model_fn, params, limits=limits)
    objective = objective.planned(x)
    other = x if other is None else as_data((other, ())).x
    dtype = jnp.promote_types(tree.dtype(objective.params), jnp.float32)
    if tree.is_scalar(variance):
        scale = jnp.asarray(variance, dtype)
    else:
        scale = tree.broadcast(variance, objective.params, name="variance").astype(dtype)
    size = batch_size or _batch_size(objective)
    return map_over(_KernelRows(size), (objective, scale, other), x, size)


def _batch_size(objective: Objective) -> int:
    """Return the largest B for which the rows of 2 B inputs and the kernel of their pairs fit."""
    limits, num_outputs = objective.limits, objective.plan.num_outputs
    cost = rows_cost(objective, multiplied_out)
    pairs = pair_bytes(objective, _kernel_bytes)
    check_fits(cost, num_outputs, limits.budget)
    available, one = limits.working_set(), cost.once + num_outputs * cost.direction
    return max(min(available // (2 * one), math.isqrt(available // pairs)), 1)


def _kernel_bytes(block: Block) -> tuple[int, int]:
    return 0, block.gradients.shape[-1] * block.gradients.dtype.itemsize


class _KernelRows(NamedTuple):
    """The kernel between a chunk of inputs and all others, chunk by chunk; hashable."""

    batch_size: int

    def __call__(self, args, x):
        objective, scale, other = args
        rows = jacobian(objective, x)[1].astype(scale.dtype)
        columns = map_over(_columns, (objective, rows, scale), other, self.batch_size)
        return jnp.moveaxis(columns, 0, 2)


def _columns(args, other):
    objective, rows, scale = args
    others = jacobian(objective, other)[1].astype(scale.dtype)
    with jax.default_matmul_precision("highest"):
        kernel = rows.cross(others, scale)
    return jnp.moveaxis(kernel, 2, 0)
