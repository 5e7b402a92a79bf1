r"""Gradients of single examples, $g_n = -\nabla_\theta \log p(y_n \mid f_n)$, and their norms."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.curv.capture.capture import capture
from laplace_kit.curv.capture.cost import choose_held, multiplied_out, rows_cost
from laplace_kit.curv.capture.rows import Rows
from laplace_kit.curv.objective import Objective, per_example, restrict
from laplace_kit.curv.operator import check_outputs
from laplace_kit.data import Chunk, as_data, batch_spec, is_shared, read_batches, whole
from laplace_kit.host import check_same
from laplace_kit.likelihood import LikelihoodLike, as_likelihood
from laplace_kit.memory import Limits
from laplace_kit.sums import map_over


def per_example_gradients(
    model_fn: Callable,
    params: PyTree,
    data: Any,
    likelihood: LikelihoodLike,
    *,
    batch_size: int | None = None,
    memory_limit: int | None = None,
) -> PyTree:
    r"""Return the gradient of every example's loss, like the parameters with a leading axis N.

    In data with weights these are $w_n g_n$, what each example adds to the gradient of the sum.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`, pure.
    params
        A pytree; leaves that are not floating point are frozen, and `None` in the result.
    data
        `(x, y)` or `(x, y, weights)` in memory, or an iterable of such: one pass is made.
    likelihood
        A likelihood object, its name, or a loss `(f, y)` of one example.
    batch_size
        The number of examples held at a time; `None` chooses from the memory limit.
    memory_limit
        In bytes; `None` for a share of the device's memory.

    Returns
    -------
    gradients
        Its size is N times that of the parameters. Cost: one forward and one backward pass.

    Raises
    ------
    TypeError, ValueError
        If data, outputs, targets and likelihood are inconsistent.
    """
    limits = Limits(batch_size, memory_limit)
    objective, pieces = _map(_gradients, model_fn, params, data, likelihood, limits)
    return tree.unravel(jnp.concatenate(pieces), objective.params)


def per_example_gradient_norms(
    model_fn: Callable,
    params: PyTree,
    data: Any,
    likelihood: LikelihoodLike,
    *,
    batch_size: int | None = None,
    memory_limit: int | None = None,
) -> Float[Array, " N"]:
    r"""Return $\|g_n\|$ for every example, or $w_n \|g_n\|$, without its gradient.

    Where a weight enters at T positions, $\|g_n\|^2 = \sum_{tu} (a_t^\top a_u)(g_t^\top g_u)$.

    Parameters
    ----------
    model_fn, params, data, likelihood, batch_size, memory_limit
        As for `per_example_gradients`.

    Returns
    -------
    norms
        In float32 or better. Cost: one forward and one backward pass, and for each layer
        $T^2 (I + O)$ operations, or $T I O$ where that takes less memory.

    Raises
    ------
    TypeError, ValueError
        As `per_example_gradients`.

    References
    ----------
    Goodfellow (2015), Efficient per-example gradient computations.
    """
    limits = Limits(batch_size, memory_limit)
    _, pieces = _map(_norms, model_fn, params, data, likelihood, limits)
    return jnp.concatenate(pieces)


def _map(
    fn: Callable,
    model_fn: Callable,
    params: PyTree,
    data: Any,
    likelihood: LikelihoodLike,
    limits: Limits,
) -> tuple[Objective, list[Array]]:
    data = as_data(data, once=True)
    shared = is_shared(data)
    check_same("parameters or data", (params, data), shared=shared)
    limits = limits.shared_by(params, data, shared=shared)
    x, y = batch_spec(data)
    objective = restrict(model_fn, params, as_likelihood(likelihood))[0].planned(x)
    check_outputs(objective, x, y)
    size = choose_held(rows_cost(objective, multiplied_out), 1, limits).batch_size
    batches = read_batches(data, "gradients of examples")
    return objective, [map_over(fn, objective, whole(batch), size) for batch in batches]


def _gradients(objective: Objective, batch: Chunk) -> Float[Array, "B P"]:
    return gradient_rows(objective, batch).to_dense()[:, 0]


def _norms(objective: Objective, batch: Chunk) -> Float[Array, " B"]:
    dtype = jnp.promote_types(tree.dtype(objective.params), jnp.float32)
    with jax.default_matmul_precision("highest"):
        return jnp.sqrt(gradient_rows(objective, batch).astype(dtype).squared_norms()[:, 0])


def gradient_rows(objective: Objective, batch: Chunk) -> Rows:
    """Return the weighted gradients of a batch's losses in factors, one row for each example."""
    captured = capture(objective, batch.x)
    gradients = jax.vmap(objective.likelihood.output_gradient)(captured.outputs, batch.y)
    return captured.pull(per_example(gradients, batch.weight)[:, None])
