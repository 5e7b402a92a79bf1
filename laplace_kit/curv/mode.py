"""One pass over the data at the mode: log-likelihood, gradient, count, and what is not finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from laplace_kit import data as data_module
from laplace_kit import memory, tree
from laplace_kit.curv.objective import Objective, chunk_loss
from laplace_kit.data import Data, InMemory, batch_spec, even_chunk, gather, sum_over
from laplace_kit.likelihood import FromLoss, Likelihood, check_targets
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass(static=("num_data",))
class Mode:
    r"""Sums at the mode: $\log p(D \mid \theta^*)$, $\nabla \mathcal L$ flat `(P,)`, and N."""

    log_likelihood: Float[Array, ""]
    gradient: Float[Array, " P"]
    num_data: int


def examine_mode(
    objective: Objective, data: Data, *, batch_size: int | None, memory_limit: int | None
) -> Mode:
    """Evaluate the objective at its parameters and refuse what is not finite or not valid.

    Parameters
    ----------
    objective
        The model, its free parameters and the likelihood.
    data
        In memory or a stream.
    batch_size, memory_limit
        What bounds the memory.

    Returns
    -------
    mode
        The sums and the number of examples. Cost: one gradient.

    Raises
    ------
    ValueError
        If parameters, data, targets or outputs are not finite or not valid; the message names the
        first offending batch (over a stream) or example (in memory).
    """
    _check_params(objective.params)
    if batch_size is None:
        x, _ = batch_spec(data)
        unit = memory.activation_bytes(objective.model_fn, objective.params, x)
        sums = tree.num_bytes(objective.params)
        fitting = memory.summed_chunk(data.num_first, 3 * unit, memory_limit, sums)
        batch_size = even_chunk(data, fitting)
    loss, gradient, num_data, num_bad = sum_over(_chunk_statistics, objective, data, batch_size)
    if int(num_bad):
        raise ValueError(_describe_first_bad(objective, data, batch_size))
    accumulated = [
        leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        for leaf in jax.tree.leaves(gradient)
    ]
    return Mode(-loss, tree.ravel(accumulated), int(num_data))


def labelled(objective: Objective, data: Any) -> tuple[PyTree, PyTree]:
    """Return inputs and targets as whole arrays, after checking that they suit the model.

    Parameters
    ----------
    objective
        The model and the likelihood.
    data
        `(x, y)` in memory, or a re-iterable of such pairs.

    Raises
    ------
    TypeError, ValueError
        If shapes or values do not.
    """
    x, y = gather(data)
    outputs = objective.output_spec(x)
    check_targets(objective.likelihood, outputs, y)
    check_values(objective.likelihood, outputs, x, y)
    return x, y


def check_values(
    likelihood: Likelihood, outputs: jax.ShapeDtypeStruct, x: PyTree, y: PyTree
) -> None:
    """Refuse inputs and targets that are not finite or not valid, without running the model.

    Parameters
    ----------
    likelihood
        Whose targets they are. What a `FromLoss` takes depends on the outputs: not looked at.
    outputs
        Shape and dtype of the model's outputs, `(N, *event)`.
    x, y
        Inputs and targets; inside of JAX transformations their values cannot be looked at.

    Raises
    ------
    ValueError
        Naming the first offending example.
    """
    if not tree.is_concrete((x, y)):
        return
    anywhere = likelihood if not isinstance(likelihood, FromLoss) else None
    bad = _value_faults(anywhere, jnp.zeros(outputs.shape[1:], outputs.dtype), x, y)
    if not tree.is_concrete(bad):  # under a transformation of something else
        return
    for what, rows in zip(_descriptions(likelihood), jax.device_get(bad), strict=True):
        if rows.any():
            first = int(np.argmax(rows))
            raise ValueError(
                f"Found {what}: first at example {first} ({int(rows.sum())} in all); clean or drop "
                "these examples, and check the preprocessing."
            )


@jax.jit
def _value_faults(likelihood, f, x, y):
    valid = jnp.ones(len(jax.tree.leaves(x)[0]), bool)
    if likelihood is not None:
        valid = jax.vmap(lambda y_n: likelihood.is_valid(f, y_n))(y)
    return ~_finite_rows(x), ~_finite_rows(y), ~valid


def _descriptions(likelihood: Likelihood) -> tuple[str, str, str]:
    return (
        "inputs that are not finite; expected finite numbers",
        "targets that are not finite; expected finite numbers",
        f"targets out of range; expected {likelihood.support}",
    )


def _chunk_statistics(objective, chunk):
    loss, gradient = jax.value_and_grad(lambda params: chunk_loss(objective, params, chunk))(
        objective.params
    )
    counted = chunk.weight > 0
    bad = jnp.stack(list(_faults(objective, chunk).values())).any(axis=0)
    return loss, gradient, jnp.sum(counted), jnp.sum(bad & counted)


def _faults(objective, chunk) -> dict[str, Array]:
    """Return, for each thing that can be wrong, which examples of a chunk it is wrong for."""
    f = objective.outputs(chunk.x)
    valid = jax.vmap(objective.likelihood.is_valid)(f, chunk.y)
    inputs, targets, out_of_range = _descriptions(objective.likelihood)
    return {
        inputs: ~_finite_rows(chunk.x),
        targets: ~_finite_rows(chunk.y),
        "model outputs that are not finite; expected finite numbers": ~_finite_rows(f),
        out_of_range: ~valid,
    }


def _finite_rows(values: PyTree) -> Array:
    rows = [
        jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(axis=1)
        for leaf in jax.tree.leaves(values)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    num = jax.tree.leaves(values)[0].shape[0]
    return jnp.stack(rows).all(axis=0) if rows else jnp.ones(num, bool)


def _describe_first_bad(objective, data, batch_size) -> str:
    """Find the first offending example on the host; only ever run to write a message."""
    batches = [(data.x, data.y)] if isinstance(data, InMemory) else data.batches
    for number, item in enumerate(batches):
        batch = data_module.as_data(tuple(item))
        num = batch.num_examples
        for start in range(0, num, batch_size or num):
            rows = slice(start, start + (batch_size or num))
            x, y = jax.tree.map(lambda a: a[rows], (batch.x, batch.y))  # noqa: B023
            ones = jnp.ones(len(jax.tree.leaves(x)[0]))
            chunk = data_module.Chunk(x, y, jnp.arange(len(ones)), ones)
            for what, bad in _faults(objective, chunk).items():
                if bool(bad.any()):
                    example = start + int(np.argmax(np.asarray(bad)))
                    where = f"example {example}"
                    if not isinstance(data, InMemory):
                        where += f" of batch {number}"
                    count = int(bad.sum())
                    return (
                        f"Found {what}: first at {where} ({count} in the same chunk); clean or "
                        "drop these examples, and check the preprocessing and the parameters."
                    )
    return "Found data, targets or outputs that are not finite; they differ from pass to pass."


def _check_params(params: PyTree) -> None:
    counts = jax.device_get(_count_not_finite(params))
    for path, count in zip(tree.paths(params), counts, strict=True):
        if count:
            raise ValueError(
                f"Found {count} values that are not finite in the parameters at {path!r}, "
                "expected finite numbers; did training diverge?"
            )


@jax.jit
def _count_not_finite(params: PyTree) -> list[Array]:
    return [jnp.sum(~jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
