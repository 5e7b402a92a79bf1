"""Minimisation over one positive number: a grid of decades, then Brent's method."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from laplace_kit.arrays import as_array
from laplace_kit.tune.result import Tuning, checked_bounds, warn_at_bound

# A held-out loss is flat if it varies by less than this over the whole range.
_FLAT = 1e-4


def minimise_over_precision(
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
        The name of the method in the result.

    Returns
    -------
    tuning
        A `Tuning`, `objective` being minus the loss. Cost: about 25 evaluations.

    Raises
    ------
    ValueError
        If the bounds are not positive and in order, or the loss is not finite anywhere within them.

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
    warn_at_bound(at_bound, bounds, "held-out loss is smallest")
    finite = values[np.isfinite(values)]
    flat = jnp.asarray(finite.max() - finite.min() < _FLAT)
    one = jnp.ones(())
    visited, objective = as_array(visited[:, None]), as_array(-values)
    return Tuning(jnp.asarray(best), one, one, visited, objective, at_bound, flat, method)


def minimise(
    loss: Callable[[float], float], low: float, high: float
) -> tuple[float, Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Minimise a function of one positive number; return the best, all visited, and their losses.

    Computed on the host: the number of evaluations varies, and on the device each number would need
    its own programs.

    Raises
    ------
    ValueError
        If the loss is not finite anywhere.
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
            "bounds or check the held-out data."
        )
    best, step = grid[int(np.argmin(values))], grid[1] - grid[0]
    bracket = (max(best - step, low), min(best + step, high))
    worst = max(value for value in values if np.isfinite(value))  # Brent's method needs finite ones
    minimize_scalar(
        lambda point: min(at(point), worst),
        bounds=bracket,
        method="bounded",
        options={"xatol": 0.02, "maxiter": 12},
    )
    values, visited = np.array(met).T
    return float(10.0 ** min(met)[1]), 10.0**visited, values
