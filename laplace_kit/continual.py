"""Update a posterior with new data, without the old data."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from laplace_kit import tree
from laplace_kit.approx.full import Full, FullStructure
from laplace_kit.approx.update import Expansion, updated
from laplace_kit.curv.mode import examine_mode
from laplace_kit.curv.operator import check_outputs
from laplace_kit.data import NUM_EXAMPLES, as_data, batch_spec, first_examples

if TYPE_CHECKING:
    from laplace_kit.laplace import Laplace


def update(la: "Laplace", data: Any, *, key: PRNGKeyArray | None = None) -> "Laplace":
    r"""Return the posterior of old and new data; see `laplace_kit.approx.update`.

    The old posterior is the prior of the new data: the mode moves by
    $-(H_1 + H_2 + d)^{-1} \nabla \mathcal L_2$, one Newton step, and the log-likelihood of the old
    data follows by its expansion to second order.

    Parameters
    ----------
    la
        The posterior of the old data.
    data
        The new data, as for `fit`.
    key
        For the structure, and for the labels of `"mc_fisher"` in place of the key that `fit` was
        given: with that one, new examples equal to old ones get the same labels.

    Returns
    -------
    la
        With the structure, the prior and the temperature of the old one. Cost: a gradient and a
        curvature of the new data.

    Raises
    ------
    TypeError, ValueError
        If the data do not suit the model, or a key is missing.

    References
    ----------
    Ritter, Botev and Barber (2018), Online structured Laplace approximations for overcoming
    catastrophic forgetting.
    """
    data, choice = as_data(data), la.choice.with_key(key)
    x, y = batch_spec(data)
    objective = la.objective.planned(x)
    check_outputs(objective, x, y)
    mode = examine_mode(objective, data)
    structure = choice.fit(objective, data, key)
    old = Expansion(la.log_likelihood, la.gradient, la.structure)
    new = Expansion(mode.log_likelihood, mode.gradient.astype(la.gradient.dtype), structure)
    found = updated(old, new, la.expand(la.prior_precision))
    if choice.form == "dual" and isinstance(found.expansion.structure, FullStructure):
        because = "all data together have more rows than there are parameters"
        choice = dataclasses.replace(choice, spec=Full("primal"), because=because)
    theta = tree.ravel(la.mode)
    moved = tree.replace(
        la,
        mode=tree.unravel((theta + found.step).astype(theta.dtype), la.mode),
        structure=found.expansion.structure,
        log_likelihood=found.expansion.log_likelihood,
        gradient=found.expansion.gradient,
        choice=choice,
        tuning=None,
        examples=_joined(la.examples, first_examples(data, NUM_EXAMPLES)),
        num_data=la.num_data + mode.num_data,
    )
    return moved.refactorised()


def _joined(old: Any, new: Any) -> Any:
    """Return the examples of both, as long as any of the old ones are known."""
    return old and jax.tree.map(lambda *leaves: jnp.concatenate(leaves), old, new)
