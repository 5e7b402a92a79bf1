r"""The prior precision, and a temperature, by cross-validation in the linearised model.

In the linearised model the parameters fitted without fold k are one Newton step away,
$\theta_{-k} = \theta^* - (H_{-k} + d)^{-1} \nabla (\mathcal L_{-k} + \mathcal R_d)$ at $\theta^*$,
with $\mathcal R_d$ the prior's part. For a linear model with a Gaussian likelihood this is exact
cross-validation, the same as refitting without each fold.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from laplace_kit import tree
from laplace_kit.approx.choice import fit_chosen, with_key
from laplace_kit.approx.posterior import Posterior, Structure, factorise
from laplace_kit.approx.prior import expand_precision
from laplace_kit.approx.update import newton_step
from laplace_kit.curv.mode import examine_mode, labelled
from laplace_kit.curv.objective import Objective
from laplace_kit.data import InMemory
from laplace_kit.derivatives import linearize
from laplace_kit.eval.predictive import Prediction, Predictive, predict
from laplace_kit.examples import Examples
from laplace_kit.host import fetch
from laplace_kit.placement import placement_of, spread
from laplace_kit.tree import pytree_dataclass
from laplace_kit.tune.criteria import Loss, as_loss
from laplace_kit.tune.line_search import minimise_over_precision
from laplace_kit.tune.posterior import PosteriorT, as_tempered, as_tuned, untempered
from laplace_kit.tune.tempering import best_temperature


def cross_validated(
    la: PosteriorT,
    data: Any,
    *,
    loss: str | Loss = "nll",
    num_folds: int = 5,
    temperature: bool = False,
    bounds: tuple[float, float] = (1e-4, 1e6),
    key: PRNGKeyArray | None = None,
) -> PosteriorT:
    """Return the posterior with the prior precision of smallest cross-validated loss.

    In-sample, where the posterior was fitted, the loss would favour almost no uncertainty; so both
    precision and temperature are chosen by folds that are each predicted from the others.

    Parameters
    ----------
    la
        The posterior; its own prior precision is ignored. Its temperature becomes one.
    data
        The training data, as in `held_out`. Example n is in fold n modulo K.
    loss
        As in `held_out`.
    num_folds
        K, at least two.
    temperature
        Whether to choose a temperature afterwards, by the same folds.
    bounds
        The smallest and the largest precision to consider.
    key
        For the curvature `"mc_fisher"`, and for predictives that draw samples.

    Returns
    -------
    la
        The new posterior, with the visited precisions in `la.tuning`. Cost: a gradient and a
        curvature of each fold's complement; then K factorisations and predictions for each of about
        25 precisions.

    Raises
    ------
    TypeError, ValueError
        If the data do not suit the model or are fewer than the folds, the loss is unknown or not
        defined for the likelihood, or it is not finite anywhere within the bounds.

    Warns
    -----
    UserWarning
        If the best precision or temperature lies at a bound.
    """
    examples = labelled(la.objective, data)
    score, start = as_loss(loss, la.likelihood), untempered(la)
    mean_loss = _mean_loss(start, examples, score, num_folds, key)
    found = minimise_over_precision(mean_loss, bounds=bounds, method="cross_validation")
    tuned = as_tuned(start, found)
    if not temperature:
        return tuned
    at_best_precision = partial(mean_loss, float(found.prior_precision))
    return as_tempered(tuned, best_temperature(at_best_precision))


def _mean_loss(
    la: PosteriorT,
    examples: Examples,
    score: Loss,
    num_folds: int,
    key: PRNGKeyArray | None,
) -> Callable[..., float]:
    """Fit each fold's complement; return the loss, a function of precision and temperature."""
    objective = la.objective.planned(examples.x)
    choice, folds = with_key(la.record.choice, key), []
    dtype = la.expansion.gradient.dtype
    for others, fold in _folds(examples, num_folds):
        gradient = examine_mode(objective, others).gradient
        structure = fit_chosen(choice, objective, others, key)
        folds.append(Fold(*fold, structure, gradient.astype(dtype)))
    model = la.model

    def expand(prior_precision: float) -> Float[Array, " P"]:
        return expand_precision(prior_precision, model.mode, model.selection, la.prior.mean.dtype)

    predict_fold = partial(_predict_as, la.prediction, key)
    return loss_of_folds(folds, objective, la.prior.deviation(model), expand, predict_fold, score)


def _predict_as(
    default: Prediction,
    key: PRNGKeyArray | None,
    moved: Objective,
    posterior: Posterior,
    x: PyTree,
) -> Predictive:
    return predict(
        moved,
        posterior,
        x,
        method=default.method,
        link=default.named_link,
        covariance=default.covariance,
        num_samples=default.num_samples,
        key=key,
    )


# --- folds ----------------------------------------------------------------------------------------


@pytree_dataclass()
class Fold:
    """The data of a fold, and the curvature and gradient of all other folds."""

    x: PyTree
    y: PyTree
    weights: Float[Array, " N"] | None
    structure: Structure
    gradient: Float[Array, " P"]


def split_folds(x: PyTree, y: PyTree, num_folds: int) -> list[tuple[Any, Any]]:
    """Return pairs of (rest, fold), each data `(x, y)`; example n is in fold n modulo the number.

    Raises
    ------
    ValueError
        If there are not at least two folds, and an example for each.
    """
    number, pairs = _fold_numbers(len(jax.tree.leaves(x)[0]), num_folds), []
    for fold in range(num_folds):
        inside, outside = np.flatnonzero(number == fold), np.flatnonzero(number != fold)
        pairs.append(tuple(jax.tree.map(lambda a, i=i: a[i], (x, y)) for i in (outside, inside)))
    return pairs


def _fold_numbers(num: int, num_folds: int) -> Int[np.ndarray, " N"]:
    if not 2 <= num_folds <= num:
        raise ValueError(
            f"Found num_folds={num_folds} for {num} examples, expected from 2 to {num}."
        )
    return np.arange(num) % num_folds


def _folds(examples: Examples, num_folds: int) -> list[tuple[InMemory, Examples]]:
    """Return pairs of (rest, fold); sharded examples stay where they are, with weights for each."""
    x, y, weights = examples
    placement = placement_of(x)
    if placement is None:
        pairs = split_folds(x, (y, weights), num_folds)
        return [
            (InMemory(rest_x, rest[0], weights=rest[1]), Examples(fold_x, *fold))
            for (rest_x, rest), (fold_x, fold) in pairs
        ]
    numbers = _fold_numbers(len(jax.tree.leaves(x)[0]), num_folds)
    weights = np.ones(len(numbers), np.float32) if weights is None else fetch(weights)
    pairs = []
    for fold in range(num_folds):
        parts = (np.where(part, weights, 0) for part in (numbers != fold, numbers == fold))
        _, outside, inside = spread((x, *(of.astype(weights.dtype) for of in parts)), placement)
        rest = InMemory(x, y, weights=outside, placement=placement)
        pairs.append((rest, Examples(x, y, inside)))
    return pairs


def loss_of_folds(
    folds: Sequence[Fold],
    objective: Objective,
    deviation: Float[Array, " P"],
    expand: Callable[[float], Float[Array, " P"]],
    predict: Callable[[Objective, Any, PyTree], Predictive],
    score: Loss,
) -> Callable[..., float]:
    r"""Return the mean loss over folds, each predicted from the others, of a prior precision.

    Folds are weighted by their numbers of examples, or by the sums of their weights.

    Parameters
    ----------
    folds
        The folds, each with the structure of all others.
    objective
        The model at the mode of all data.
    deviation
        $\theta^* - \theta_0$, `(P,)`.
    expand
        From one prior precision to one for each parameter.
    predict
        `(objective, posterior, x)` to a predictive.
    score
        From a predictive, targets and weights to a number.

    Returns
    -------
    mean_loss
        A function of a prior precision and of a temperature of the posterior, one by default, which
        leaves the Newton step unchanged. Cost of a call: K factorisations and predictions of all
        data.
    """
    theta = tree.ravel(objective.params)

    def mean_loss(prior_precision: float, temperature: float = 1.0) -> float:
        precision, total, num = expand(prior_precision), 0.0, 0
        for fold in folds:
            posterior, _ = factorise(fold.structure, precision)
            pull = fold.gradient + precision * deviation
            step = tree.unravel(newton_step(posterior, pull).astype(theta.dtype), objective.params)
            shifted = jax.tree_util.Partial(_shifted, objective.model_fn, objective.params, step)
            moved = objective.with_model(shifted)
            if temperature != 1:
                posterior, _ = factorise(fold.structure, precision, temperature)
            size = len(jax.tree.leaves(fold.x)[0]) if fold.weights is None else fold.weights.sum()
            if size == 0:  # all weights are zero
                continue
            total += float(size) * score(predict(moved, posterior, fold.x), fold.y, fold.weights)
            num += float(size)
        return total / num

    return mean_loss


def _shifted(model_fn, mode, step, params, x):
    r"""Return $f(\theta, x) + J^* \Delta$, whose Jacobian at the mode is that of the model."""
    change = linearize(lambda p: model_fn(p, x), mode).push_forward(step)
    return model_fn(params, x) + change
