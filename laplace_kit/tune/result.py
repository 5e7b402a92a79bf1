"""The result of tuning."""

import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from laplace_kit.errors import warn
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass(static=("method",))
class Tuning:
    r"""The result of tuning, and the path of the search.

    `prior_precision` is one number or one per leaf; `noise_scale` the factor of the noise's
    standard deviation, and `temperature` the factor of the covariance, one where they were not
    tuned. `visited` `(T, K)` holds every prior precision that was evaluated and `objective` `(T,)`
    its value, the larger the better: the log evidence minus the log-likelihood at the start, or
    minus the held-out loss. `at_bound` is true for each precision that stopped at a bound, `flat`
    if the objective hardly depends on the precision.
    """

    prior_precision: PyTree
    noise_scale: Float[Array, ""]
    temperature: Float[Array, ""]
    visited: Float[Array, "T K"]
    objective: Float[Array, " T"]
    at_bound: Bool[Array, "..."]
    flat: Bool[Array, ""]
    method: str


def checked_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """Return the bounds if they are positive, finite and in order; else raise a `ValueError`."""
    low, high = bounds
    if not 0 < low < high < float("inf"):
        raise ValueError(
            f"Found bounds={bounds}, expected 0 < low < high, both finite: the smallest and the "
            "largest prior precision to consider."
        )
    return bounds


def warn_at_bound(at_bound: ArrayLike, bounds: tuple[float, float], what: str) -> None:
    """Warn if any precision lies at a bound."""
    if bool(np.any(at_bound)):
        warn(
            f"The {what} at a bound of the prior precision ({bounds}): the data hardly determine "
            "it, or the parameters are not near a mode. Widen `bounds`, train further, or set the "
            "prior precision yourself."
        )
