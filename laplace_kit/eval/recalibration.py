r"""Recalibration of predictions on held-out data: from predictions to predictions of their kind.

For classes a temperature, and for numbers a factor of their standard deviations, keep the point
prediction: the most probable class, and the mean. Maps of more numbers fit more and need more data.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num, PyTree
from scipy import special

from laplace_kit import tree
from laplace_kit.errors import check_option, warn
from laplace_kit.eval import class_maps, given, number_maps
from laplace_kit.eval.class_maps import (
    AffineScaling,
    BetaCalibration,
    IsotonicCalibration,
    VennAbers,
)
from laplace_kit.eval.evaluation import as_classes, observed_entries, weights_of_rows
from laplace_kit.eval.given import Predictions
from laplace_kit.eval.number_maps import PartScaling, QuantileRecalibration
from laplace_kit.eval.observed import check_known, checked_targets, observed_targets
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.statistics.weighting import checked
from laplace_kit.host import fetch
from laplace_kit.targets.base import NoTargets, NumberTargets, no_distribution
from laplace_kit.tree import pytree_dataclass

_BOUNDS = (1e-2, 1e2)  # of the temperature


@pytree_dataclass()
class TemperatureScaling:
    r"""The probabilities $\mathrm{softmax}(\log p / T)$, the outputs' moments as they are.

    Computed from the predictive's logits if it has them: exact where probabilities round to zero.
    """

    temperature: Float[Array, ""]

    def __call__(self, predictive: Predictions) -> Predictions:
        """Return the predictive with other `probs` and `logits`, or other probabilities.

        The `uncertainty` of a predictive, which follows from the outputs, does not change.

        Parameters
        ----------
        predictive
            Predictions of the same kind as those that were calibrated.
        """
        if isinstance(predictive, Predictive):
            return _tempered(predictive, self.temperature)
        inverse = 1 / float(self.temperature)
        return class_maps.mapped(
            predictive, lambda log_probs: special.softmax(inverse * log_probs, axis=1)
        )


@pytree_dataclass()
class StdScaling:
    r"""The distribution of $m + s (y - m)$: both parts of the variance are multiplied by $s^2$.

    `scale` s is one number, or one for each output, of the shape of one example's targets.
    """

    scale: Float[Array, "*target"]

    def __call__(self, predictive: Predictions) -> Predictions:
        """Return the predictive with other variances and covariances; of a pair, another `std`.

        Parameters
        ----------
        predictive
            Predictions of the same kind as those that were calibrated.
        """
        if not isinstance(predictive, Predictive):
            mean, std = given.as_moments(predictive)
            return mean, std * fetch(self.scale)
        return tree.replace(predictive, targets=predictive.targets.scaled(self.scale))


# Every name of a method, and the function that fits it to rows of classes or of numbers.
_OF_CLASSES: dict[str, Callable] = {
    "vector": class_maps.fit_vector,
    "matrix": class_maps.fit_matrix,
    "beta": class_maps.fit_beta,
    "isotonic": class_maps.fit_isotonic,
    "venn_abers": class_maps.fit_venn_abers,
}
_OF_NUMBERS: dict[str, Callable] = {
    "parts": number_maps.fit_parts,
    "quantiles": number_maps.fit_quantiles,
}

Recalibration = (
    TemperatureScaling
    | StdScaling
    | AffineScaling
    | BetaCalibration
    | IsotonicCalibration
    | VennAbers
    | PartScaling
    | QuantileRecalibration
)


def recalibrate(
    predictive: Predictions | tuple,
    y: PyTree,
    *,
    method: str | None = None,
    per_output: bool = False,
    weights: ArrayLike | None = None,
) -> Recalibration:
    r"""Return the recalibration of largest likelihood on held-out data.

    A temperature is $\arg\min_T -\sum_n \log \mathrm{softmax}(\log p_n / T)_{y_n}$, convex in
    $1 / T$; a factor $s^2 = \frac1M \sum_i (y_i - m_i)^2 / \sigma_i^2$, in closed form: the optimum
    for normal targets, and for others the factor that makes the variances right on average. With
    correlated noise the whole covariance of an example is used.

    Parameters
    ----------
    predictive
        At inputs that neither training nor tuning has seen: a `Predictive`, or plain arrays:
        probabilities `(N, C)`, or of class 1 `(N,)`; or a pair of means and standard deviations.
    y
        Their targets; for a predictive also with a mask, `(y, mask)`. Labels may be probabilities.
    method
        For classes `"temperature"` by default; `"vector"` and `"matrix"`, a factor and an offset
        for each log probability, or all linear maps of them (on log probabilities this is Dirichlet
        calibration); `"beta"`, three numbers for each class; `"isotonic"` and `"venn_abers"`, any
        nondecreasing function for each class, which need about a thousand labels. For numbers
        `"std"` by default; `"parts"`, a factor for each of the epistemic and the aleatoric
        variance, whose plain arrays are `(mean, epistemic_std, aleatoric_std)`; `"quantiles"`, any
        nondecreasing function of the distribution function.
    per_output
        For `"std"`: one factor for each output instead of one for all.
    weights
        Weights of the examples, `(N,)`; one each by default.

    Returns
    -------
    recalibration
        A function from predictions to predictions of the same kind, to be applied to those at other
        inputs; for `"quantiles"` to an object with `cdf`, `quantile` and `interval`.

    Raises
    ------
    TypeError
        If the likelihood is unknown, or its targets are neither classes nor numbers that can be
        scaled.
    ValueError
        If the method is unknown, `per_output` is set for other targets than numbers with
        independent noise, all residuals are zero, a target is out of range or missing without a
        mask, or the predictive has a NaN.

    Warns
    -----
    UserWarning
        If the temperature lies at a bound, 0.01 or 100.

    References
    ----------
    Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, also for
    vectors and matrices. Kull, Silva Filho and Flach (2017), Beta calibration. Zadrozny and Elkan
    (2002), Transforming classifier scores into accurate multiclass probability estimates. Vovk,
    Petej and Fedorova (2015), Large-scale probabilistic predictors with and without guarantees of
    validity. Laves et al. (2020), Well-calibrated regression uncertainty in medical imaging with
    deep learning. Kuleshov, Fenner and Ermon (2018), Accurate uncertainties for deep learning using
    calibrated regression.
    """
    targets = predictive.targets if isinstance(predictive, Predictive) else None
    if isinstance(targets, NoTargets):
        raise no_distribution(targets.name, "recalibration")
    of_numbers = isinstance(targets, NumberTargets) or isinstance(predictive, tuple)
    first, others = ("std", _OF_NUMBERS) if of_numbers else ("temperature", _OF_CLASSES)
    method = check_option("method", first if method is None else method, (first, *others))
    if per_output and method != "std":
        raise ValueError(
            f"Found per_output=True for {_kind(predictive)} and method={method!r}, expected a "
            "regression with method='std'; classes share one temperature."
        )
    if method in others:
        return others[method](predictive, y, weights)
    if of_numbers:
        return _best_scale(predictive, y, per_output, weights)
    return _best_temperature_of(predictive, y, weights)


def _kind(predictive: Any) -> str:
    of = predictive.targets if isinstance(predictive, Predictive) else predictive
    return type(of).__name__


# --- classes --------------------------------------------------------------------------------------


def _best_temperature_of(
    predictive: Predictions, y: PyTree, weights: ArrayLike | None
) -> TemperatureScaling:
    if isinstance(predictive, Predictive):
        masked, y = checked_targets(predictive, y)
        logits = fetch(predictive.targets.class_logits)
        logits = logits[fetch(observed_entries(masked, predictive, y, logits.shape[:-1]))]
        check_known("logits", logits)
        _, labels = as_classes(masked, predictive, y)
        rows = checked(weights_of_rows(masked, predictive, y, weights), len(logits))
    else:
        probs, labels, rows = given.class_rows(predictive, y, weights)
        logits = class_maps.finite_logs(probs).astype(jnp.result_type(float))
        labels = jax.device_put(labels)
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels.astype(int), logits.shape[1], dtype=logits.dtype)
    rows = (rows / rows.mean()).astype(logits.dtype)
    temperature = _best_temperature(logits, labels, rows)
    low, high = _BOUNDS
    if not low * 1.01 < float(temperature) < high / 1.01:
        warn(
            f"Found the best temperature at a bound, {float(temperature):.3g}: the most probable "
            "class is always right, or no better than chance; use more held-out data."
        )
    return TemperatureScaling(temperature)


@jax.jit
def _best_temperature(
    logits: Float[ArrayLike, "M C"],
    labels: Float[Array, "M C"],
    weights: Float[ArrayLike, " M"],
) -> Float[Array, ""]:
    """Return the best temperature, by bisection: the slope increases in the inverse temperature."""
    # Finite also after products with labels and inverse temperatures, so that none becomes NaN.
    logits = jnp.maximum(logits, jnp.finfo(logits.dtype).min / 1e4)
    margins = logits - jnp.sum(labels * logits, axis=1, keepdims=True)

    def slope(log_inverse):
        p = jax.nn.softmax(jnp.exp(log_inverse) * margins)
        return jnp.mean(weights * jnp.sum(p * margins, axis=1))

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        # Where all labels are right, the slope is negative and underflows to zero.
        is_below = slope(middle) <= 0
        return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

    ends = jnp.log(1 / jnp.asarray(_BOUNDS[::-1], logits.dtype))
    num_steps = jnp.finfo(logits.dtype).nmant + 3
    low, high = jax.lax.fori_loop(0, num_steps, halve, (ends[0], ends[1]))
    is_flat = jnp.ptp(logits, axis=1).max() == 0  # every temperature is equally good
    return jnp.where(is_flat, 1.0, jnp.exp(-(low + high) / 2))


@jax.jit
def _tempered(predictive: Predictive, temperature: Float[Array, ""]) -> Predictive:
    return tree.replace(predictive, targets=predictive.targets.tempered(temperature))


# --- numbers --------------------------------------------------------------------------------------


def _best_scale(
    predictive: Predictions, y: PyTree, per_output: bool, weights: ArrayLike | None
) -> StdScaling:
    if isinstance(predictive, Predictive):
        squares, seen, dtype = _squares_of(predictive, y, per_output)
    else:
        values, (mean, std) = np.asarray(fetch(y), float), given.as_moments(predictive)
        given.number_rows(predictive, values)  # refuses what is not valid
        squares, dtype = np.square((values - mean) / std), None
        seen = np.ones(squares.shape, bool)
    rows = checked(weights, len(squares)).reshape(-1, *(1,) * (squares.ndim - 1)) * seen
    axis = 0 if per_output else None
    mean = np.where(seen, rows * squares, 0).sum(axis=axis)
    mean = mean / np.maximum(rows.sum(axis=axis), np.finfo(float).tiny)
    if not np.all((mean > 0) & np.isfinite(mean)):
        raise ValueError(
            f"Found mean squared residuals of {mean} predictive variances, expected positive, "
            "finite numbers; check the held-out targets, and that each output has at least one."
        )
    return StdScaling(jnp.asarray(np.sqrt(mean), dtype))


def _squares_of(predictive: Predictive, y: PyTree, per_output: bool) -> tuple:
    """Return squared residuals in predictive variances, which of them count, and their dtype."""
    targets = predictive.targets
    if per_output and targets.is_joint:
        raise ValueError(
            f"Found per_output=True for {type(targets).__name__}, expected False: its outputs are "
            "scaled together, to keep their correlation."
        )
    jax.eval_shape(targets.scaled, jnp.ones((), targets.mean.dtype))  # refuses what cannot be
    values, seen = observed_targets(predictive, y)
    return fetch(_whitened(targets, values)) ** 2, seen, targets.mean.dtype


@jax.jit
def _whitened(targets: NumberTargets, y: Num[Array, "N *target"]) -> Float[Array, "N *target"]:
    return targets.whitened(y)
