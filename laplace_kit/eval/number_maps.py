"""Maps of distributions of numbers that recalibrate them: of the parts of the variance, of levels.

They are fitted in NumPy and SciPy on the host.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num, PyTree
from scipy import optimize, special

from laplace_kit import tree
from laplace_kit.arrays import on_host
from laplace_kit.eval import given
from laplace_kit.eval.given import Predictions
from laplace_kit.eval.observed import checked_targets, observed_targets
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.quantiles import pit
from laplace_kit.eval.statistics.weighting import checked, effective_size
from laplace_kit.host import fetch
from laplace_kit.likelihood.masked import targets_without_mask
from laplace_kit.targets.base import NumberTargets, no_distribution
from laplace_kit.targets.inversion import check_levels
from laplace_kit.targets.normal import NormalTargets
from laplace_kit.tree import pytree_dataclass

# Means, epistemic and aleatoric standard deviations, three arrays.
Parts = tuple


@pytree_dataclass()
class PartScaling:
    r"""Variances $a^2 v + b^2 s^2$ of the epistemic part v and the aleatoric part $s^2$.

    `epistemic` is a and `aleatoric` is b.
    """

    epistemic: Float[Array, ""]
    aleatoric: Float[Array, ""]

    def __call__(self, predictions: Predictive | Parts) -> Predictive | Parts:
        """Return the predictions with other variances.

        Parameters
        ----------
        predictions
            A `Predictive` with known noise, or means, epistemic and aleatoric standard deviations.
        """
        if not isinstance(predictions, Predictive):
            mean, epistemic, aleatoric = _as_parts(predictions)
            return mean, epistemic * fetch(self.epistemic), aleatoric * fetch(self.aleatoric)
        targets = _normal(predictions)
        outputs = targets.outputs.scaled(self.epistemic)
        noise = targets.aleatoric_var * self.aleatoric**2
        return tree.replace(
            predictions, targets=tree.replace(targets, outputs=outputs, aleatoric_var=noise)
        )


@pytree_dataclass()
class QuantileRecalibration:
    """Distribution functions $R(F(y))$, with a nondecreasing function R of the level.

    R is linear between the levels `predicted`, where it has the values `observed`: the shares of
    the held-out targets below. A predictive in float32 has no levels within 1e-7 of one, so that
    targets many standard deviations away are told apart only below the mean; means and standard
    deviations as float64 arrays have them.
    """

    predicted: Float[np.ndarray, " K"]
    observed: Float[np.ndarray, " K"]

    def __call__(self, predictions: Predictions) -> "RecalibratedQuantiles":
        """Return the recalibrated distributions.

        Parameters
        ----------
        predictions
            A `Predictive` of numbers, or a pair of means and standard deviations of normal ones.
        """
        if not isinstance(predictions, Predictive):
            predictions = tuple(map(jnp.asarray, given.as_moments(predictions)))
        return RecalibratedQuantiles(predictions, self)


@pytree_dataclass()
class RecalibratedQuantiles:
    """Distributions of numbers whose levels were recalibrated; made by `QuantileRecalibration`."""

    predictions: Predictive | tuple[Array, Array]
    recalibration: QuantileRecalibration

    def cdf(self, y: ArrayLike) -> Float[np.ndarray, "..."]:
        """Return the probability of at most `y`, of the shape of the means."""
        to = self.recalibration
        return np.interp(_cdf(self.predictions, y), fetch(to.predicted), fetch(to.observed))

    def quantile(self, q: ArrayLike | Sequence[float]) -> Num[np.ndarray, "..."]:
        """Return quantiles, with the axes of the levels `q` first."""
        check_levels("q", q)
        to = self.recalibration
        levels = np.interp(np.asarray(fetch(q), float), fetch(to.observed), fetch(to.predicted))
        if isinstance(self.predictions, Predictive):
            levels = np.clip(levels, 1e-7, 1 - 1e-7)  # a level between 0 and 1 in float32
            return fetch(self.predictions.quantile(levels))
        mean, std = fetch(self.predictions)
        return mean + std * special.ndtri(levels).reshape(*levels.shape, *(1,) * mean.ndim)

    def interval(
        self, level: float = 0.9
    ) -> tuple[Num[np.ndarray, "N *target"], Num[np.ndarray, "N *target"]]:
        """Return the ends of the central interval of a level."""
        check_levels("level", level)
        low, high = self.quantile(np.array([(1 - level) / 2, (1 + level) / 2]))
        return low, high


# --- fits -----------------------------------------------------------------------------------------


def fit_parts(predictions: Predictive | Parts, y: PyTree, weights: ArrayLike | None) -> PartScaling:
    """Fit both factors by the likelihood of normal targets."""
    if isinstance(predictions, Predictive):
        _normal(predictions)
        values, seen = observed_targets(predictions, y)
        parts = (predictions.mean, predictions.epistemic_var, predictions.noise_var)
        mean, epistemic, aleatoric = fetch(parts)
    else:
        mean, *parts = _as_parts(predictions)
        epistemic, aleatoric = (np.square(of) for of in parts)
        values = on_host(y, "targets").astype(float)
        if values.shape != mean.shape:
            raise ValueError(
                f"Found targets of shape {values.shape} for means of shape {mean.shape}, expected "
                "the same shape; reshape one of them."
            )
        seen = np.ones(mean.shape, bool)
    rows = checked(weights, len(mean)).reshape(-1, *(1,) * (mean.ndim - 1)) * seen
    used = rows > 0
    squares = np.square(values[used].astype(float) - mean[used])
    parts = np.stack([np.broadcast_to(of, mean.shape)[used] for of in (epistemic, aleatoric)])
    if not (parts.sum(axis=1) > 0).all():
        raise ValueError(
            "Found a part of the variance that is zero everywhere, expected both; one factor for "
            "all of it is method='std'."
        )
    shares, parts = rows[used] / rows.sum(), parts.astype(float)

    def loss(theta):
        scaled = np.exp(theta)[:, None] * parts
        variance = scaled.sum(axis=0)
        value = 0.5 * shares @ (np.log(variance) + squares / variance)
        slope = 0.5 * shares * (1 - squares / variance) / variance
        return value, scaled @ slope

    ratio = shares @ (squares / parts.sum(axis=0))
    if not (np.isfinite(ratio) and ratio > 0):
        raise ValueError(
            "Found residuals that are all zero or not finite, expected positive, finite squares; "
            "check the held-out targets."
        )
    start, bounds = np.full(2, np.log(ratio)), [(-20, 20)] * 2
    options = {"ftol": 1e-15, "gtol": 1e-10}
    # The likelihood of one part alone may be a local optimum.
    starts = [start, start + np.array([-6, 1]), start + np.array([1, -6])]
    found = [
        optimize.minimize(loss, of, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        for of in starts
    ]
    best = np.exp(min(found, key=lambda of: of.fun).x / 2)
    return PartScaling(*(jnp.asarray(of, jnp.result_type(float)) for of in best))


def fit_quantiles(
    predictions: Predictions, y: PyTree, weights: ArrayLike | None
) -> QuantileRecalibration:
    """Fit the shares of held-out targets below every predicted level."""
    if isinstance(predictions, Predictive):
        if not isinstance(predictions.targets, NumberTargets):
            raise no_distribution(type(predictions.likelihood).__name__, "quantiles")
        likelihood, values = checked_targets(predictions, y)
        _, seen = observed_targets(predictions, y)
        levels = fetch(pit(predictions, targets_without_mask(likelihood, values)))
    else:
        mean, std, values, _ = given.number_rows(predictions, y)
        levels = special.ndtr((values - mean) / std)
        seen = np.ones(levels.shape, bool)
    rows = checked(weights, len(levels)).reshape(-1, *(1,) * (levels.ndim - 1)) * seen
    used = rows > 0
    levels, rows = levels[used].astype(float), rows[used]
    predicted, group = np.unique(levels, return_inverse=True)
    rows = rows * (effective_size(rows) / rows.sum())
    # The shares of n targets have n + 1 gaps between them; both ends stay where they are.
    observed = np.cumsum(np.bincount(group, rows)) / (rows.sum() + 1)
    inside = (predicted > 0) & (predicted < 1)
    return QuantileRecalibration(
        np.concatenate([[0.0], predicted[inside], [1.0]]),
        np.concatenate([[0.0], observed[inside], [1.0]]),
    )


def _cdf(predictions: Predictive | tuple[Array, Array], y: ArrayLike) -> np.ndarray:
    if isinstance(predictions, Predictive):
        return fetch(predictions.cdf(y))
    mean, std = fetch(predictions)
    return special.ndtr((np.asarray(fetch(y), float) - mean) / std)


def _normal(predictive: Predictive) -> NormalTargets:
    if not isinstance(predictive.targets, NormalTargets):
        raise TypeError(
            f"Found {type(predictive.targets).__name__} for method='parts', expected normal "
            "targets with known noise, as of lk.Gaussian; use method='std'."
        )
    return predictive.targets


def _as_parts(predictions: Parts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not isinstance(predictions, tuple) or len(predictions) != 3:
        raise TypeError(
            "Found predictions without their parts, expected a predictive or three arrays, (mean, "
            "epistemic_std, aleatoric_std); one factor for a pair is method='std'."
        )
    mean, epistemic, aleatoric = (of.astype(float) for of in on_host(predictions, "moments"))
    return mean, epistemic, aleatoric
