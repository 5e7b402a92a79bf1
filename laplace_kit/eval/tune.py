r"""The prior precision, by the evidence or by held-out data.

In $\log d$ the evidence is smooth but need not be concave, so a grid over the bounds finds the
right hill and L-BFGS (optax) climbs it. For one precision shared by all parameters everything
comes from the eigenvalues of the curvature, once computed. A held-out loss is searched without
derivatives.
"""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from laplace_kit import tree
from laplace_kit.approx.evidence import log_evidence, log_evidence_isotropic
from laplace_kit.approx.posterior import Structure
from laplace_kit.tree import pytree_dataclass

_GRID_POINTS = 49
_STEPS = 60


@pytree_dataclass()
class Tuning:
    """The precision found, one number or one for each leaf, and the objective along the way.

    `objective` `(T,)` holds every value met on the way up: the log evidence less the
    log-likelihood, a constant, or minus the held-out loss. `at_bound` tells for each precision
    whether it stopped at a bound.
    """

    prior_precision: PyTree
    objective: Float[Array, " T"]
    at_bound: Array


def tune_evidence(
    structure: Structure,
    deviation: Float[Array, " P"],
    params: PyTree,
    *,
    per_leaf: bool = False,
    bounds: tuple[float, float] = (1e-4, 1e6),
) -> Tuning:
    r"""Maximise the evidence over the prior precision, in $\log d$ within bounds.

    Parameters
    ----------
    structure
        The curvature.
    deviation
        The mode less the prior mean, `(P,)`.
    params
        The free parameters, whose leaves share a value each if `per_leaf`.
    per_leaf
        One precision for every leaf instead of one for all.
    bounds
        The smallest and the largest precision to consider.

    Returns
    -------
    tuning
        A `Tuning`. Cost: one `structure.spectrum()`, then $O(P)$ a step; with `per_leaf` besides
        that two evaluations and gradients of the evidence a step.

    Raises
    ------
    ValueError
        If the bounds are not positive and in order, reach down to where the posterior precision is
        indefinite, or the evidence is finite nowhere in them.

    References
    ----------
    MacKay (1992), A practical Bayesian framework for backpropagation networks. Immer et al. (2021),
    Scalable marginal likelihood estimation for model selection in deep learning.
    """
    low, high = _checked_bounds(bounds)
    spectrum = structure.spectrum()
    lowest = float(spectrum.smallest)
    if lowest < -float(spectrum.rounding) and low <= -lowest:
        raise ValueError(
            f"Found an indefinite curvature whose most negative eigenvalue is {lowest:.4g}: its "
            f"evidence grows without bound as the prior precision falls to {-lowest:.4g}. Expected "
            f"bounds above that: pass bounds=({-10 * lowest:.4g}, {high:.4g}), train to a minimum, "
            "or use curvature='ggn', which is never indefinite."
        )
    box = jnp.log(jnp.asarray(bounds, deviation.dtype))
    squared = jnp.sum(deviation**2)
    log_delta, values = _tune_isotropic(spectrum, squared, box)
    if per_leaf:
        start = jnp.full(len(jax.tree.leaves(params)), log_delta)
        log_delta, more = _tune_leaves(structure, deviation, params, start, box)
        values = jnp.concatenate([values, more])
    if not bool(jnp.isfinite(values).any()):
        raise ValueError(
            f"Found no finite evidence for prior precisions within {bounds}, expected a positive "
            "definite posterior precision somewhere; raise the bounds, or use curvature='ggn'."
        )
    at_bound = jnp.logical_or(log_delta <= box[0] + 1e-3, log_delta >= box[1] - 1e-3)
    _warn_at_bound(at_bound, bounds, "evidence is largest")
    found = jnp.exp(log_delta)
    if per_leaf:
        found = jax.tree.unflatten(jax.tree.structure(params), list(found))
    return Tuning(found, values, at_bound)


def tune_validation(
    loss: Callable[[float], float], *, bounds: tuple[float, float] = (1e-4, 1e6)
) -> Tuning:
    """Minimise a held-out loss over one prior precision: a grid of decades, then Brent's method.

    Parameters
    ----------
    loss
        From a prior precision to the loss of held-out data; NaN counts as infinite.
    bounds
        The smallest and the largest precision to consider.

    Returns
    -------
    tuning
        A `Tuning`, `objective` being minus the loss. Cost: about 25 evaluations.

    Raises
    ------
    ValueError
        If the bounds are not positive and in order, or the loss is finite nowhere in them.

    References
    ----------
    Brent (1973), Algorithms for minimization without derivatives.
    """
    from scipy.optimize import minimize_scalar

    low, high = np.log10(_checked_bounds(bounds))
    met: list[tuple[float, float]] = []

    def at(log10_precision: float) -> float:
        value = loss(float(10.0**log10_precision))
        met.append((value if np.isfinite(value) else np.inf, float(log10_precision)))
        return met[-1][0]

    grid = np.linspace(low, high, max(round(high - low), 2) + 1)
    values = [at(point) for point in grid]
    if not np.isfinite(values).any():
        raise ValueError(
            f"Found no finite held-out loss for prior precisions within {bounds}; raise the bounds "
            "or look at the held-out data."
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
    best = min(met)[1]
    at_bound = np.asarray(best <= low + 0.02 or best >= high - 0.02)
    _warn_at_bound(at_bound, bounds, "held-out loss is smallest")
    return Tuning(
        jnp.asarray(10.0**best), -jnp.asarray([value for value, _ in met]), jnp.asarray(at_bound)
    )


def _checked_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not 0 < low < high < float("inf"):
        raise ValueError(
            f"Found bounds={bounds}, expected 0 < low < high, both finite: the smallest and the "
            "largest prior precision to consider."
        )
    return bounds


def _warn_at_bound(at_bound: ArrayLike, bounds: tuple[float, float], what: str) -> None:
    if bool(np.any(at_bound)):
        warnings.warn(
            f"The {what} at a bound of the prior precision ({bounds}): the data say little about "
            "it, or the parameters are not near a mode. Widen `bounds`, train further, or set the "
            "prior precision yourself.",
            stacklevel=4,
        )


@jax.jit
def _tune_isotropic(spectrum, squared_deviation, box):
    def objective(log_delta):
        delta = jnp.exp(jnp.squeeze(log_delta))
        zero = jnp.zeros((), delta.dtype)
        return log_evidence_isotropic(zero, spectrum, delta, squared_deviation)

    grid = jnp.linspace(box[0], box[1], _GRID_POINTS)
    on_grid = jax.lax.map(objective, grid)
    start = grid[jnp.argmax(jnp.where(jnp.isfinite(on_grid), on_grid, -jnp.inf))]
    best, values = _climb(objective, start[None], box, spectrum.size)
    return best[0], jnp.concatenate([on_grid, values])


@jax.jit
def _tune_leaves(structure, deviation, params, start, box):
    treedef = jax.tree.structure(params)

    def objective(log_precision):
        per_leaf = jax.tree.unflatten(treedef, list(jnp.exp(log_precision)))
        precision = tree.broadcast(per_leaf, params, name="prior_precision")
        zero = jnp.zeros((), precision.dtype)
        return log_evidence(zero, structure, precision.astype(deviation.dtype), deviation)

    return _climb(objective, start, box, len(deviation))


def _climb(objective, start, box, scale):
    """Maximise within a box by L-BFGS; return the best point met and every value."""
    import optax

    def loss(z):
        return -objective(jnp.clip(z, *box)) / scale

    solver = optax.lbfgs()

    def step(carry, _):
        z, state, best, lowest = carry
        value, gradient = jax.value_and_grad(loss)(z)
        better = value < lowest  # false for NaN
        best, lowest = jnp.where(better, z, best), jnp.where(better, value, lowest)
        gradient = jnp.nan_to_num(gradient)
        updates, state = solver.update(
            gradient, state, z, value=value, grad=gradient, value_fn=loss
        )
        z = jnp.clip(jnp.nan_to_num(optax.apply_updates(z, updates)), *box)
        return (z, state, best, lowest), value

    carry = (start, solver.init(start), start, jnp.asarray(jnp.inf, start.dtype))
    (_, _, best, _), values = jax.lax.scan(step, carry, None, length=_STEPS)
    return best, -scale * values
