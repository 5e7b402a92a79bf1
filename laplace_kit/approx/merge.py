r"""Merge posteriors of the same model and prior, each of other data, into that of all data.

The product of the posteriors, divided by the priors that are too many, has the precision
$\sum_i H_i + d$. Each log-likelihood is known by its expansion about its own mode; moved to one
point, the expansions add up, and a Newton step leads to the common mode.
"""

import dataclasses
from collections.abc import Sequence
from functools import reduce
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.approx.choice import Choice
from laplace_kit.approx.full import Full, FullStructure
from laplace_kit.approx.posterior import Structure
from laplace_kit.approx.prior import Prior
from laplace_kit.approx.update import Expansion, newton_step
from laplace_kit.curv.trained_model import TrainedModel
from laplace_kit.examples import joined
from laplace_kit.host import fetch
from laplace_kit.likelihood import Likelihood

_Self = TypeVar("_Self")  # beartype knows `typing.Self` only in classes that it decorates


@runtime_checkable
class Mergeable(Protocol):
    """A posterior with the expansion of its data's log-likelihood, such as that of `fit`."""

    model: TrainedModel
    likelihood: Likelihood
    expansion: Expansion
    prior: Prior
    record: Any

    def refactorised(self: _Self) -> _Self:
        """Return the same with its posterior recomputed."""


MergeableT = TypeVar("MergeableT", bound=Mergeable)


def merged(posteriors: Sequence[MergeableT]) -> MergeableT:
    r"""Return the posterior of all data from posteriors of parts of them, without the data.

    With $g_i$ the gradient of the loss of part i at $\theta$, by its expansion, the mode is
    $\theta - (\sum_i H_i + d)^{-1} (\sum_i g_i + d (\theta - \theta_0))$, from $\theta$ the mode of
    the first. For linear models with Gaussian noise the result is that of all data at once.
    Otherwise it is as good as the expansions: networks must be trained from common parameters, so
    that their modes are near each other.

    Parameters
    ----------
    posteriors
        At least two, with the same model, frozen parameters, likelihood, prior and temperature, and
        in structures of one kind that can be added; no example belongs to two of them.

    Returns
    -------
    posterior
        Like the first, about the common mode; untuned. Cost: that of `combine` for each part, and
        of one posterior.

    Raises
    ------
    ValueError
        If there are fewer than two, or they differ in what they must share.
    TypeError
        If their structures cannot be added.

    References
    ----------
    Matena and Raffel (2022), Merging models with Fisher-weighted averaging. Daheim et al. (2024),
    Model merging by uncertainty-based gradient matching.
    """
    if len(posteriors) < 2:
        raise ValueError(f"Found {len(posteriors)} posterior(s), expected at least two to merge.")
    first, *others = posteriors
    for other in others:
        _check_alike(first, other)
    at = _flat(first)
    moved = (la.expansion.moved(_step(_flat(la), at)) for la in others)
    expansion = reduce(Expansion.joined, moved, first.expansion)
    record = tree.replace(
        first.record,
        choice=choice_of(first.record.choice, expansion.structure),
        tuning=None,
        examples=_joined_examples(posteriors),
    )
    together = tree.replace(first, expansion=expansion, record=record)
    prior = tree.replace(first.prior, temperature=jnp.ones_like(first.prior.temperature))
    cold, _ = prior.posterior(expansion.structure, first.model)
    step = newton_step(
        cold, _gradient(expansion, prior.vector(first.model), prior.deviation(first.model))
    )
    mode = tree.unravel((at + step).astype(tree.ravel(first.model.mode).dtype), first.model.mode)
    model = tree.replace(first.model, mode=mode)
    return tree.replace(together, model=model, expansion=expansion.moved(step)).refactorised()


def choice_of(choice: Choice, structure: Structure) -> Choice:
    """Return what was chosen for a sum of curvatures, whose rows may have become a matrix."""
    if choice.form != "dual" or not isinstance(structure, FullStructure):
        return choice
    because = "all data together have more rows than there are parameters"
    return dataclasses.replace(choice, spec=Full("primal"), because=because)


def _joined_examples(posteriors: Sequence[Mergeable]) -> PyTree:
    examples = [la.record.examples for la in posteriors]
    return None if any(part is None for part in examples) else joined(examples)


def _flat(la: Mergeable) -> Float[Array, " P"]:
    return _raveled(la.model.mode).astype(la.prior.mean.dtype)


_raveled = jax.jit(tree.ravel)


@jax.jit
def _step(mode, at):
    return at - mode


@jax.jit
def _gradient(expansion, precision, deviation):
    return expansion.gradient + precision * deviation


def _check_alike(first: Mergeable, other: Mergeable) -> None:
    parts = {
        "parameters": (_shapes(first.model.params), _shapes(other.model.params)),
        "free parameters": (_shapes(first.model.mode), _shapes(other.model.mode)),
    }
    for what, (one, another) in parts.items():
        if one != another:
            raise _unlike(what, "fit the same model and subset")
    values = {
        "frozen parameters": [_frozen(first), _frozen(other)],
        "likelihood": [first.likelihood, other.likelihood],
        "prior precision": [la.prior.vector(la.model) for la in (first, other)],
        "prior mean": [first.prior.mean, other.prior.mean],
        "temperature": [first.prior.temperature, other.prior.temperature],
    }
    remedies = {
        "likelihood": "set one noise by with_noise",
        "prior precision": "set one by with_prior, and tune after merging",
        "temperature": "set one by with_temperature",
    }
    for what, (one, another) in values.items():
        if not _are_equal(one, another):
            raise _unlike(what, remedies.get(what, "fit all with the same"))


def _frozen(la: Mergeable) -> PyTree:
    """Return the parameters with zeros in place of the free ones."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), la.model.mode)
    return la.model.selection.insert(zeros)


def _shapes(params: PyTree) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (path, np.shape(leaf))
        for path, leaf in zip(tree.paths(params), jax.tree.leaves(params), strict=True)
    ]


def _are_equal(one: PyTree, another: PyTree) -> bool:
    if jax.tree.structure(one) != jax.tree.structure(another):
        return False
    pairs = zip(jax.tree.leaves(fetch(one)), jax.tree.leaves(fetch(another)), strict=True)
    return all(np.array_equal(left, right) for left, right in pairs)


def _unlike(what: str, remedy: str) -> ValueError:
    return ValueError(f"Found posteriors that differ in the {what}, expected the same; {remedy}.")
