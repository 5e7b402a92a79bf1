r"""Predictions of folds without refitting, for CV+ intervals of a posterior.

In the linearised model the parameters fitted without fold k are one Newton step away,
$\theta_{-k} = \theta^* - (H_{-k} + d)^{-1} \nabla (\mathcal L_{-k} + \mathcal R_d)$ at $\theta^*$:
for a linear model with a Gaussian likelihood this is the fit without the fold; for others the mode
and features have seen the fold, and the coverage has no bound.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray, PyTree

from laplace_kit import tree
from laplace_kit.approx.choice import fit_chosen, with_key
from laplace_kit.approx.posterior import factorise
from laplace_kit.approx.update import newton_step
from laplace_kit.curv.mode import examine_mode, labelled
from laplace_kit.data import InMemory
from laplace_kit.derivatives import linearize
from laplace_kit.eval.attribution import check_num_data
from laplace_kit.eval.predictive import Predictive, predict
from laplace_kit.host import fetch
from laplace_kit.targets.base import NumberTargets, no_distribution


class FoldPredictions(NamedTuple):
    """The arguments of `cross_conformal_intervals`, in its order.

    Attributes
    ----------
    held_out
        Mean and standard deviation of each training example by the step without its fold.
    y
        The targets.
    fold
        The fold of each example.
    new
        Mean and standard deviation at the new inputs by each step, `(K, M, *target)`.
    """

    held_out: tuple[Float[np.ndarray, "N *target"], Float[np.ndarray, "N *target"]]
    y: Float[np.ndarray, "N *target"]
    fold: Int[np.ndarray, " N"]
    new: tuple[Float[np.ndarray, "K M *target"], Float[np.ndarray, "K M *target"]]


def fold_predictions(
    la: Any, data: Any, x: PyTree, *, num_folds: int = 10, key: PRNGKeyArray | None = None
) -> FoldPredictions:
    """Return predictions of every fold, and of new inputs, by the Newton step that leaves it out.

    Parameters
    ----------
    la
        A posterior over numbers, as `laplace_kit.fit` returns.
    data
        Its training data, `(x, y)` in memory. Example n is in fold n modulo K.
    x
        The new inputs.
    num_folds
        K, from two to the number of examples, with which the intervals are the jackknife+.
    key
        For the curvature `"mc_fisher"`, and for predictives that draw samples.

    Returns
    -------
    predictions
        To be passed on: `cross_conformal_intervals(*fold_predictions(la, data, x))`. Cost: for each
        fold the gradient, the curvature and the factorisation of all others, and predictions.

    Raises
    ------
    TypeError
        If the targets are not numbers with a mean and a variance.
    ValueError
        If there are not at least two folds with an example each, or the data do not suit the model
        or are not those of its fit.

    References
    ----------
    Barber, Candès, Ramdas and Tibshirani (2021), as for `cross_conformal_intervals`.
    """
    old_x, y, weights = labelled(la.objective, data)
    num = len(jax.tree.leaves(old_x)[0])
    check_num_data(float(num if weights is None else fetch(weights).sum()), la.num_data)
    if not 2 <= num_folds <= num:
        raise ValueError(
            f"Found num_folds={num_folds} for {num} examples, expected from 2 to {num}."
        )
    fold, found = np.arange(num) % num_folds, []
    for number in range(num_folds):
        rows = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        (rest_x, rest_y, rest_weights), (fold_x, _, _) = (
            jax.tree.map(lambda leaf, at=at: leaf[at], (old_x, y, weights)) for at in rows
        )
        rest = InMemory(rest_x, rest_y, weights=rest_weights)
        found.append(_predicted(la, rest, (fold_x, x), key))
    held_out = tuple(np.empty((num, *part.shape[1:])) for part in found[0][0])
    for number, (inside, _) in enumerate(found):
        for whole, part in zip(held_out, inside, strict=True):
            whole[fold == number] = part
    new = tuple(np.stack(part) for part in zip(*(of for _, of in found), strict=True))
    return FoldPredictions(held_out, fetch(y), fold, new)


def _predicted(la: Any, rest: InMemory, inputs: tuple, key: PRNGKeyArray | None) -> list[tuple]:
    """Return moments at several inputs by the fit to the rest."""
    objective, prior = la.objective, la.prior
    structure = fit_chosen(with_key(la.record.choice, key), objective, rest, key)
    precision, params = prior.vector(la.model), objective.params
    gradient = examine_mode(objective, rest).gradient.astype(precision.dtype)
    pull = gradient + precision * prior.deviation(la.model)
    posterior, _ = factorise(structure, precision)
    change = newton_step(posterior, pull).astype(tree.ravel(params).dtype)
    shifted = jax.tree_util.Partial(
        _shifted, objective.model_fn, params, tree.unravel(change, params)
    )
    tempered, _ = factorise(structure, precision, prior.temperature)
    chosen = la.prediction
    return [
        _moments(
            predict(
                objective.with_model(shifted),
                tempered,
                x,
                method=chosen.method,
                link=chosen.named_link,
                covariance=chosen.covariance,
                num_samples=chosen.num_samples,
                key=key,
            )
        )
        for x in inputs
    ]


def _moments(predictive: Predictive) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(predictive.targets, NumberTargets):
        raise no_distribution(type(predictive.likelihood).__name__, "interval of numbers")
    return fetch(predictive.mean).astype(float), np.sqrt(fetch(predictive.var).astype(float))


def _shifted(model_fn, mode, change, params, x):
    r"""Return $f(\theta, x) + J^* \Delta$, whose Jacobian at the mode is that of the model."""
    moved = linearize(lambda p: model_fn(p, x), mode).push_forward(change)
    return model_fn(params, x) + moved
