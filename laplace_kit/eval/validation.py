r"""The prior precision, or a temperature, by what the predictive is worth on labelled data.

The data are held out, or each fold of the training data is predicted without itself: in the
linearised model the parameters that the other folds alone would have led to are one Newton step
away, $\theta_{-k} = \theta^* - (H_{-k} + d)^{-1} \nabla (\mathcal L_{-k} + \mathcal R_d)$ at
$\theta^*$, with $\mathcal R_d$ the prior's part. For a linear model with a Gaussian likelihood this
is cross-validation as if every fold had been fitted anew, exactly.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.approx.posterior import Structure, factorise
from laplace_kit.approx.update import newton_step
from laplace_kit.arrays import as_array
from laplace_kit.curv.objective import Objective
from laplace_kit.derivatives import linearize
from laplace_kit.errors import check_option
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.tune import Tuning, checked_bounds, warn_at_bound
from laplace_kit.likelihood import Likelihood, unmasked
from laplace_kit.tree import pytree_dataclass

OBJECTIVES = ("nll", "ece", "brier", "crps")
# A held-out loss that spreads less than this over the whole range says nothing about it.
_FLAT = 1e-4

Loss = Callable[[Predictive, PyTree], float]


def held_out_loss(objective: str | Loss, likelihood: Likelihood) -> Loss:
    """Return the function `(predictive, y) -> loss`, smaller being better.

    Parameters
    ----------
    objective
        `"nll"`; `"ece"` or `"brier"` of classes; `"crps"` of regression; or such a function.
    likelihood
        Whose targets they are.

    Raises
    ------
    ValueError
        If the objective is unknown, or none of this likelihood.
    """
    if callable(objective):
        return lambda predictive, y: float(objective(predictive, y))
    # What measures predictions is loaded where it is wanted.
    from laplace_kit.eval import metrics
    from laplace_kit.eval.evaluate import as_classes, evaluate, negative_log_likelihood

    check_option("objective", objective, OBJECTIVES)
    kind, _ = unmasked(likelihood, (None,))
    is_classes = kind.has_classes
    if (objective in ("ece", "brier") and not is_classes) or (objective == "crps" and is_classes):
        suits = "'nll', 'ece' or 'brier'" if is_classes else "'nll' or 'crps'"
        raise ValueError(
            f"Found objective={objective!r} for a {type(kind).__name__} likelihood, expected "
            f"{suits}, or a function of the predictive and the targets."
        )
    if objective == "nll":
        return lambda predictive, y: float(negative_log_likelihood(likelihood, predictive, y))
    if objective == "crps":
        return lambda predictive, y: evaluate(likelihood, predictive, y)["crps"]
    of_classes = {
        "ece": metrics.expected_calibration_error,
        "brier": metrics.brier_score,
    }[objective]
    return lambda predictive, y: float(of_classes(*as_classes(likelihood, predictive, y)))


def tune_validation(
    loss: Callable[[float], float],
    *,
    bounds: tuple[float, float] = (1e-4, 1e6),
    method: str = "validation",
) -> Tuning:
    """Minimise a held-out loss over one prior precision: a grid of decades, then Brent's method.

    Parameters
    ----------
    loss
        From a prior precision to the loss of held-out data; NaN counts as infinite.
    bounds
        The smallest and the largest precision to consider.
    method
        The name that the result carries.

    Returns
    -------
    tuning
        A `Tuning`, `objective` being minus the loss. Cost: about 25 evaluations.

    Raises
    ------
    ValueError
        If the bounds are not positive and in order, or the loss is finite nowhere in them.

    Warns
    -----
    UserWarning
        If the best precision lies at a bound.

    References
    ----------
    Brent (1973), Algorithms for minimization without derivatives.
    """
    low, high = checked_bounds(bounds)
    best, visited, values = minimise(loss, low, high)
    at_bound = jnp.asarray(best <= low * 1.05 or best >= high / 1.05)
    warn_at_bound(at_bound, bounds, "held-out loss is smallest", stacklevel=4)
    finite = values[np.isfinite(values)]
    flat = jnp.asarray(finite.max() - finite.min() < _FLAT)
    one = jnp.ones(())
    visited, objective = as_array(visited[:, None]), as_array(-values)
    return Tuning(jnp.asarray(best), one, one, visited, objective, at_bound, flat, method)


def minimise(
    loss: Callable[[float], float], low: float, high: float
) -> tuple[float, Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Minimise a function of one positive number; return the best, all that was met, its values.

    All of it on the host: how many are met differs, and on the device each number of them would
    need programs of its own.

    Raises
    ------
    ValueError
        If the loss is finite nowhere.
    """
    from scipy.optimize import minimize_scalar

    low, high = np.log10(low), np.log10(high)
    met: list[tuple[float, float]] = []

    def at(log10_number: float) -> float:
        value = loss(float(10.0**log10_number))
        met.append((value if np.isfinite(value) else np.inf, float(log10_number)))
        return met[-1][0]

    grid = np.linspace(low, high, max(round(high - low), 2) + 1)
    values = [at(point) for point in grid]
    if not np.isfinite(values).any():
        raise ValueError(
            f"Found no finite held-out loss within ({10**low:.4g}, {10**high:.4g}); raise the "
            "bounds or look at the held-out data."
        )
    best, step = grid[int(np.argmin(values))], grid[1] - grid[0]
    bracket = (max(best - step, low), min(best + step, high))
    worst = max(value for value in values if np.isfinite(value))  # Brent's parabolas want numbers
    minimize_scalar(
        lambda point: min(at(point), worst),
        bounds=bracket,
        method="bounded",
        options={"xatol": 0.02, "maxiter": 12},
    )
    values, visited = np.asarray(met).T
    return float(10.0 ** min(met)[1]), 10.0**visited, values


# --- cross-validation of the linearised model -----------------------------------------------------


@pytree_dataclass()
class Fold:
    """What a fold is predicted with: its data, and curvature and gradient of all the others."""

    x: PyTree
    y: PyTree
    structure: Structure
    gradient: Float[Array, " P"]


def split_folds(x: PyTree, y: PyTree, num_folds: int) -> list[tuple[Any, Any]]:
    """Return pairs of (rest, fold), each data `(x, y)`; example n is in fold n modulo the number.

    Raises
    ------
    ValueError
        If there are not at least two folds, and an example for each.
    """
    num = len(jax.tree.leaves(x)[0])
    if not 2 <= num_folds <= num:
        raise ValueError(
            f"Found num_folds={num_folds} for {num} examples, expected from 2 to {num}."
        )
    number = np.arange(num) % num_folds
    pairs = []
    for fold in range(num_folds):
        inside, outside = np.flatnonzero(number == fold), np.flatnonzero(number != fold)
        pairs.append(tuple(jax.tree.map(lambda a, i=i: a[i], (x, y)) for i in (outside, inside)))
    return pairs


def cross_validated(
    folds: Sequence[Fold],
    objective: Objective,
    deviation: Float[Array, " P"],
    expand: Callable[[float], Float[Array, " P"]],
    predict: Callable[[Objective, Any, PyTree], Predictive],
    loss: Loss,
) -> Callable[..., float]:
    r"""Return the mean loss over folds, each predicted without itself, of a prior precision.

    Parameters
    ----------
    folds
        With a structure for each.
    objective
        The model at the mode of all data.
    deviation
        $\theta^* - \theta_0$, `(P,)`.
    expand
        From one prior precision to one for each parameter.
    predict
        `(objective, posterior, x)` to a predictive.
    loss
        Of a predictive and targets.

    Returns
    -------
    mean_loss
        A function of a prior precision and of a temperature of the posterior, one by default, which
        leaves the Newton step as it is. Cost of a call: K factorisations and predictions of all
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
            size = len(jax.tree.leaves(fold.x)[0])
            total += size * loss(predict(moved, posterior, fold.x), fold.y)
            num += size
        return total / num

    return mean_loss


def _shifted(model_fn, mode, step, params, x):
    r"""Return $f(\theta, x) + J^* \Delta$, whose Jacobian at the mode is that of the model."""
    change = linearize(lambda p: model_fn(p, x), mode).push_forward(step)
    return model_fn(params, x) + change
