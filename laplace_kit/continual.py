"""Update a posterior with new data, without the old data."""

import os
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from laplace_kit import tree
from laplace_kit.approx.choice import fit_chosen, with_key
from laplace_kit.approx.merge import choice_of
from laplace_kit.approx.update import Expansion, updated
from laplace_kit.checkpoint import Checkpoint, claim
from laplace_kit.curv.mode import examine_mode
from laplace_kit.curv.objective import Objective
from laplace_kit.curv.operator import check_outputs
from laplace_kit.data import (
    NUM_EXAMPLES,
    as_data,
    batch_spec,
    forget,
    is_shared,
    with_checkpoint,
)
from laplace_kit.examples import first_examples, joined
from laplace_kit.host import check_same
from laplace_kit.job import job_of
from laplace_kit.record import Record


def updated_by(
    data: Any,
    objective: Objective,
    expansion: Expansion,
    precision: Float[Array, " P"],
    record: Record,
    *,
    key: PRNGKeyArray | None = None,
    checkpoint: Checkpoint | str | os.PathLike | None = None,
) -> tuple[PyTree, Expansion, Record]:
    r"""Return mode, expansion and record for old and new data; see `laplace_kit.approx.update`.

    The old posterior is the prior of the new data: the mode moves by
    $-(H_1 + H_2 + d)^{-1} \nabla \mathcal L_2$, one Newton step, and the log-likelihood of the old
    data follows by its expansion to second order.

    Parameters
    ----------
    data
        The new data, as for `fit`, weights included.
    objective
        The model at the old mode.
    expansion, precision, record
        The old data's expansion about that mode, the prior precision `(P,)`, and the old record.
    key
        For the structure, and for the labels of `"mc_fisher"`, where it replaces the key that `fit`
        was given: with the old key, new examples equal to old ones get the same labels.
    checkpoint
        As in `fit`, for a stream.

    Returns
    -------
    mode, expansion, record
        The new mode, like the old one; the expansion of all data about it, in the structure of the
        old one; and the new record. Cost: a gradient and a curvature of the new data.

    Raises
    ------
    TypeError, ValueError
        If the data do not suit the model, or a key is missing.

    References
    ----------
    Ritter, Botev and Barber (2018), Online structured Laplace approximations for overcoming
    catastrophic forgetting.
    """
    data, choice = as_data(data), with_key(record.choice, key)
    if checkpoint is not None:
        data = with_checkpoint(data, checkpoint)
    shared = is_shared(data)
    check_same("parameters or data", (objective.params, data), shared=shared)
    limits = objective.limits.shared_by(objective.params, data, shared=shared)
    objective = tree.replace(objective, limits=limits)
    x, y = batch_spec(data)
    objective = objective.planned(x)
    check_outputs(objective, x, y)
    new_examples = first_examples(data, NUM_EXAMPLES)
    if checkpoint is not None:
        job = job_of(
            objective,
            data,
            params=(objective.model_fn, objective.params),
            indices=None,
            structure=choice.spec,
            curvature=choice.curvature_spec,
            key=key,
            examples=new_examples,
        )
        claim(data.checkpoint, job)
    mode = examine_mode(objective, data)
    structure = fit_chosen(choice, objective, data, key)
    gradient = mode.gradient.astype(expansion.gradient.dtype)
    counts = mode.num_data, mode.num_entries
    new = Expansion(mode.log_likelihood, gradient, structure, *counts)
    found = updated(expansion, new, precision)
    forget(data)  # a checkpoint has served
    choice = choice_of(choice, found.expansion.structure)
    theta = tree.ravel(objective.params)
    moved = tree.unravel((theta + found.step).astype(theta.dtype), objective.params)
    old = record.examples
    examples = old and joined([old, new_examples])
    kept = tree.replace(record, choice=choice, tuning=None, examples=examples)
    return moved, found.expansion, kept
