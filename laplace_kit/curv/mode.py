"""One pass over the data at the mode: log-likelihood, gradient, count, and checks of all values."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from laplace_kit import tree
from laplace_kit.bars import titled
from laplace_kit.chunks import chunk_of_sum
from laplace_kit.curv.objective import Objective, loss_of_outputs
from laplace_kit.data import Data, InMemory, forget, read_batches
from laplace_kit.examples import Examples, gather
from laplace_kit.host import check_same, fetch
from laplace_kit.likelihood import Factorized, FromLoss, Likelihood
from laplace_kit.likelihood.base import check_targets
from laplace_kit.likelihood.masked import has_mask, targets_seen
from laplace_kit.sums import sum_over
from laplace_kit.tree import pytree_dataclass
from laplace_kit.weights import ALL_ZERO


@pytree_dataclass(static=("num_data", "num_examples"))
class Mode:
    r"""Sums at the mode: $\log p(D \mid \theta^*)$, $\nabla \mathcal L$ flat `(P,)`, and counts.

    `num_data` is the sum of the weights, an integer N where there are none; `num_examples` is the
    number of examples that count; `num_entries` is the weight of the observed entries of the
    targets, in their shape, `None` without a mask.
    """

    log_likelihood: Float[Array, ""]
    gradient: Float[Array, " P"]
    num_data: int | float
    num_examples: int
    num_entries: Float[Array, "*entries"] | None = None


def examine_mode(objective: Objective, data: Data) -> Mode:
    """Evaluate the objective at its parameters; refuse values that are not finite or not valid.

    Parameters
    ----------
    objective
        The model, planned, its free parameters and the likelihood.
    data
        In memory or a stream. Features may be infinite, but not NaN.

    Returns
    -------
    mode
        The sums and the counts. Cost: one gradient.

    Raises
    ------
    ValueError
        If parameters, data, targets or outputs are not finite or not valid, also of an example of
        weight zero; the message names the first offending batch (over a stream) or example (in
        memory). If all weights are zero.
    """
    has_features = isinstance(data, InMemory) and data.has_features
    args = objective, has_features
    batch_size = chunk_of_sum(_chunk_statistics, args, data, objective.limits)
    found = sum_over(_chunk_statistics, args, data, batch_size)
    num = int(found.num_examples)
    if int(found.num_bad_params) or int(found.num_bad) or num == 0:
        forget(data)
    if int(found.num_bad_params):
        _refuse_params(objective.params)
    if int(found.num_bad):
        raise ValueError(_describe_first_bad(objective, has_features, data, batch_size))
    if num == 0:  # over a stream, whose weights are all seen only now
        raise ValueError(ALL_ZERO)
    log_likelihood, gradient = _accumulated(found.loss, found.gradient)
    num_data = float(found.total_weight) if data.is_weighted else num
    return Mode(log_likelihood, gradient, num_data, num, found.num_entries)


class _Statistics(NamedTuple):
    """Sums over a chunk: loss, gradient, weights, examples that count, bad ones, bad parameters.

    `num_entries` are the weights of observed entries of masked targets, else `None`.
    """

    loss: Float[Array, ""]
    gradient: PyTree
    total_weight: Float[Array, ""]
    num_examples: Int[Array, ""]
    num_bad: Int[Array, ""]
    num_bad_params: Int[Array, ""]
    num_entries: Float[Array, "*entries"] | None


@jax.jit
def _accumulated(loss: Float[Array, ""], gradient: PyTree) -> tuple[Array, Float[Array, " P"]]:
    """Return the log-likelihood, and the gradient flat and in float32 or better."""
    leaves = [
        leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        for leaf in jax.tree.leaves(gradient)
    ]
    return -loss, tree.ravel(leaves)


def labelled(objective: Objective, data: Any) -> Examples:
    """Return examples as whole arrays, after checking that they suit the model.

    Parameters
    ----------
    objective
        The model and the likelihood.
    data
        `(x, y)` or `(x, y, weights)` in memory, or an iterable of such: one pass is made.

    Raises
    ------
    TypeError, ValueError
        If shapes or values do not suit the model.
    """
    examples = gather(data)
    check_same("labelled data", (objective.params, examples))
    x, y, _ = examples
    outputs = objective.planned(x).plan.outputs(x)
    check_targets(objective.likelihood, outputs, y)
    check_values(objective.likelihood, outputs, x, y)
    return examples


def check_values(
    likelihood: Likelihood, outputs: jax.ShapeDtypeStruct, x: PyTree, y: PyTree
) -> None:
    """Refuse inputs and targets that are not finite or not valid, without running the model.

    Parameters
    ----------
    likelihood
        The likelihood of the targets. Those of a `FromLoss` are not checked, as which ones are
        valid depends on the outputs.
    outputs
        Shape and dtype of the model's outputs, `(N, *event)`.
    x, y
        Inputs and targets; traced values are not checked.

    Raises
    ------
    ValueError
        If a value is bad; the message names the first such example.
    """
    if not tree.is_concrete((x, y)):
        return
    anywhere = likelihood if not isinstance(likelihood, FromLoss) else None
    bad = _value_faults(anywhere, np.zeros(outputs.shape[1:], outputs.dtype), x, y)
    if not tree.is_concrete(bad):  # under a transformation of something else
        return
    descriptions = (_INPUTS, *_descriptions(likelihood))
    for what, (first, count) in zip(descriptions, fetch(bad), strict=True):
        if count:
            y = jax.device_put(fetch(y))  # all of it on this device
            target, remedy = _describe(likelihood, outputs.shape[1:], what, y, y, int(first))
            remedy = remedy or f"{_DROP} the preprocessing"
            raise ValueError(
                f"Found {what}: first at example {first}{target} ({count} in all); {remedy}."
            )


def check_inputs(x: PyTree) -> None:
    """Refuse inputs in memory that are not finite, naming the first example."""
    if any(int(count) for count in _count_not_finite(x)):
        bad = np.flatnonzero(~fetch(_finite_rows(x)))
        raise ValueError(
            f"Found {_INPUTS}: first at example {bad[0]} ({len(bad)} in all); {_DROP} the "
            "preprocessing."
        )


@jax.jit
def _value_faults(likelihood, f, x, y):
    valid, seen = jnp.ones(len(jax.tree.leaves(x)[0]), bool), y
    if likelihood is not None:
        valid = jax.vmap(lambda y_n: likelihood.is_valid(f, y_n))(y)
        seen = jax.vmap(lambda y_n: targets_seen(likelihood, f, y_n))(y)
    bad = ~_finite_rows(x), ~_finite_rows(seen), ~valid
    return [(jnp.argmax(rows), jnp.sum(rows)) for rows in bad]  # on several devices, two numbers


_INPUTS = "inputs that are not finite; expected finite numbers"
_FEATURES = "features that are NaN, computed by the frozen part of the model; expected numbers"
_OUTPUTS = "model outputs that are not finite; expected finite numbers"
_DROP = "clean or drop these examples, and check"


def _descriptions(likelihood: Likelihood) -> tuple[str, str]:
    """Return descriptions of targets that are not finite, and of targets that are not valid."""
    expected = "finite numbers"
    if has_mask(likelihood):
        expected += " wherever the mask is one"
    elif isinstance(likelihood, Factorized):
        expected += ", or (y, mask) for lk.Masked(likelihood) where some are missing"
    return (
        f"targets that are not finite; expected {expected}",
        f"targets out of range; expected {likelihood.support}",
    )


def _describe(
    likelihood: Likelihood, event: tuple[int, ...], what: str, y: PyTree, all_y: PyTree, row: int
) -> tuple[str, str]:
    """Describe a target out of range, if it is one number, and its remedy, if there is one."""
    _, out_of_range = _descriptions(likelihood)
    if what != out_of_range:
        return "", ""
    values = [leaf[row] for leaf in jax.tree.leaves(y)]
    is_number = len(values) == 1 and values[0].size == 1
    target = f" with the target {values[0]}" if is_number else ""
    return target, likelihood.renumbering(event, all_y)


@titled("log-likelihood and gradient")
def _chunk_statistics(args, chunk):
    objective, has_features = args

    def loss_and_outputs(params):
        f = objective.model_fn(params, chunk.x)
        return loss_of_outputs(objective.likelihood, f, chunk), f

    (loss, f), gradient = jax.value_and_grad(loss_and_outputs, has_aux=True)(objective.params)
    faults = _faults(objective.likelihood, f, has_features, chunk.x, chunk.y)
    # All rows are checked: filling rows are copies of others, and zero times NaN is NaN.
    bad = jnp.stack(list(faults.values())).any(axis=0)
    bad_params = sum(jnp.sum(~jnp.isfinite(leaf)) for leaf in jax.tree.leaves(objective.params))
    counts = jnp.sum(chunk.weight > 0)
    entries = None
    if has_mask(objective.likelihood):
        observed = jax.vmap(objective.likelihood.observed)(f, chunk.y)
        entries = jnp.einsum("n,n...->...", chunk.weight, observed.astype(chunk.weight.dtype))
    total = jnp.sum(chunk.weight)
    return _Statistics(loss, gradient, total, counts, jnp.sum(bad), bad_params, entries)


def _faults(likelihood, f, has_features, x, y) -> dict[str, Array]:
    """Return, for each kind of fault, which examples of a chunk have it."""
    seen = jax.vmap(partial(targets_seen, likelihood))(f, y)
    valid = jax.vmap(likelihood.is_valid)(f, y)
    not_finite, out_of_range = _descriptions(likelihood)
    return {
        _INPUTS: ~(_finite_rows(x) | has_features),
        _FEATURES: ~(_finite_rows(x, or_infinite=True) | ~jnp.asarray(has_features)),
        not_finite: ~_finite_rows(seen),
        _OUTPUTS: ~_finite_rows(f),
        out_of_range: ~valid,
    }


def _finite_rows(values: PyTree, *, or_infinite: bool = False) -> Array:
    rows = [
        (~jnp.isnan(leaf) if or_infinite else jnp.isfinite(leaf))
        .reshape(leaf.shape[0], -1)
        .all(axis=1)
        for leaf in jax.tree.leaves(values)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    num = jax.tree.leaves(values)[0].shape[0]
    return jnp.stack(rows).all(axis=0) if rows else jnp.ones(num, bool)


def _describe_first_bad(objective, has_features, data, batch_size) -> str:
    """Describe the first bad example, found on the host; run only to write a message."""
    for number, batch in enumerate(read_batches(data, "first example to refuse")):
        num, pair = batch.num_examples, (batch.x, batch.y)
        if batch.placement is not None:  # rows that are spread over devices cannot be cut there
            pair = fetch(pair)
        for start in range(0, num, batch_size or num):
            part = slice(start, start + (batch_size or num))
            x, y = fetch(jax.tree.map(lambda a: a[part], pair))  # noqa: B023
            f = objective.outputs(x)
            for what, rows in _faults(objective.likelihood, f, has_features, x, y).items():
                bad = fetch(rows)
                if bad.any():
                    row, count = int(np.argmax(bad)), int(bad.sum())
                    where = f"example {start + row}"
                    if not isinstance(data, InMemory):
                        where += f" of batch {number}"
                    event = objective.plan.output.shape
                    all_y = jax.device_put(fetch(batch.y))
                    target, remedy = _describe(objective.likelihood, event, what, y, all_y, row)
                    remedy = remedy or f"{_DROP} the preprocessing and the parameters"
                    return (
                        f"Found {what}: first at {where}{target} ({count} in the same chunk); "
                        f"{remedy}."
                    )
    return "Found data, targets or outputs that are not finite; they differ from pass to pass."


def _refuse_params(params: PyTree) -> None:
    counts = fetch(_count_not_finite(params))
    for path, count in zip(tree.paths(params), counts, strict=True):
        if count:
            raise ValueError(
                f"Found {count} values that are not finite in the parameters at {path!r}, "
                "expected finite numbers; did training diverge?"
            )


@jax.jit
def _count_not_finite(params: PyTree) -> list[Array]:
    return [jnp.sum(~jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
