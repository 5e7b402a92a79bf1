r"""Recalibration of a predictive on held-out data by one number.

For classes it is a temperature, for numbers a factor of their standard deviations. Neither changes
the point prediction: a temperature keeps the most probable class, a factor the mean.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num, PyTree

from laplace_kit import tree
from laplace_kit.arrays import on_host
from laplace_kit.errors import warn
from laplace_kit.eval.evaluation import as_classes, observed_entries
from laplace_kit.eval.outputs import Predictive
from laplace_kit.host import fetch
from laplace_kit.likelihood import Likelihood, Masked
from laplace_kit.likelihood.base import check_targets
from laplace_kit.likelihood.masked import targets_without_mask
from laplace_kit.targets.base import LabelTargets, NoTargets, NumberTargets, no_distribution
from laplace_kit.tree import pytree_dataclass

_BOUNDS = (1e-2, 1e2)  # of the temperature


@pytree_dataclass()
class TemperatureScaling:
    r"""The probabilities $\mathrm{softmax}(\log p / T)$, the outputs' moments as they are.

    Computed from the predictive's logits if it has them: exact where probabilities round to zero.
    """

    temperature: Float[Array, ""]

    def __call__(self, predictive: Predictive) -> Predictive:
        """Return the predictive with other `probs` and `logits`.

        Its `uncertainty`, which follows from the outputs, does not change.

        Parameters
        ----------
        predictive
            One of the same kind as the one that was calibrated.
        """
        return _tempered(predictive, self.temperature)


@pytree_dataclass()
class StdScaling:
    r"""The distribution of $m + s (y - m)$: both parts of the variance are multiplied by $s^2$.

    `scale` s is one number, or one for each output, of the shape of one example's targets.
    """

    scale: Float[Array, "*target"]

    def __call__(self, predictive: Predictive) -> Predictive:
        """Return the predictive with other variances and covariances.

        Parameters
        ----------
        predictive
            One of the same kind as the one that was calibrated.
        """
        return tree.replace(predictive, targets=predictive.targets.scaled(self.scale))


def recalibrate(
    predictive: Predictive, y: PyTree, *, per_output: bool = False
) -> TemperatureScaling | StdScaling:
    r"""Return the recalibration of largest likelihood on held-out data.

    For classes $\arg\min_T -\sum_n \log \mathrm{softmax}(\log p_n / T)_{y_n}$, convex in $1 / T$;
    for numbers $s^2 = \frac1M \sum_i (y_i - m_i)^2 / \sigma_i^2$, in closed form: the optimum for
    normal targets, and for others the factor that makes the variances right on average. With
    correlated noise the whole covariance of an example is used.

    Parameters
    ----------
    predictive
        At inputs that neither training nor tuning has seen.
    y
        Their targets; with a mask, `(y, mask)`. Labels may be probabilities.
    per_output
        One factor for each output of a regression instead of one for all.

    Returns
    -------
    recalibration
        A function from predictives to predictives, to be applied to those at other inputs.

    Raises
    ------
    TypeError
        If the likelihood is unknown, or its targets are neither classes nor numbers that can be
        scaled.
    ValueError
        If `per_output` is set for other targets than numbers with independent noise, all residuals
        are zero, a target is out of range or missing without a mask, or the predictive has a NaN.

    Warns
    -----
    UserWarning
        If the temperature lies at a bound, 0.01 or 100.

    References
    ----------
    Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks. Laves et al.
    (2020), Well-calibrated regression uncertainty in medical imaging with deep learning.
    """
    targets = predictive.targets
    if isinstance(targets, LabelTargets):
        return _best_temperature_of(predictive, y, per_output)
    if isinstance(targets, NoTargets):
        raise no_distribution(targets.name, "recalibration")
    return _best_scale(predictive, y, per_output)


def checked_targets(predictive: Predictive, y: PyTree) -> tuple[Likelihood, PyTree]:
    """Return targets on the host and their likelihood: a masked one, if they are `(y, mask)`.

    Raises
    ------
    TypeError, ValueError
        If targets do not match the outputs, or are outside the support of the likelihood.
    """
    likelihood = Masked(predictive.likelihood) if isinstance(y, tuple) else predictive.likelihood
    y = on_host(y, "targets")
    check_targets(likelihood, predictive.f_mean, y)
    valid = fetch(_are_valid(likelihood, predictive.f_mean, y))
    if not valid.all():
        raise ValueError(
            f"Found targets out of range, the first at example {int(valid.argmin())} "
            f"({int((~valid).sum())} in all), expected {likelihood.support}; drop or correct them, "
            "and if targets are missing pass a mask too, (y, mask)."
        )
    return likelihood, y


@jax.jit
def _are_valid(likelihood: Likelihood, f: Float[Array, "N ..."], y: PyTree) -> Bool[Array, " N"]:
    return jax.vmap(likelihood.is_valid)(f, y)


def check_known(what: str, values: Float[np.ndarray, "..."]) -> None:
    """Raise a `ValueError` if a predictive holds a NaN."""
    if np.isnan(values).any():
        raise ValueError(
            f"Found NaN among the predictive's {what}, expected numbers; check the inputs and "
            "outputs of the model for values that are not finite."
        )


def observed_targets(
    predictive: Predictive, y: PyTree
) -> tuple[Num[np.ndarray, "N *target"], Bool[np.ndarray, "N *target"]]:
    """Return the targets of a regression and which are observed; raises like `checked_targets`."""
    likelihood, y = checked_targets(predictive, y)
    values = targets_without_mask(likelihood, y)
    return values, fetch(observed_entries(likelihood, predictive, y, np.shape(values)))


# --- classes --------------------------------------------------------------------------------------


def _best_temperature_of(predictive: Predictive, y: PyTree, per_output: bool) -> TemperatureScaling:
    targets = predictive.targets
    if per_output:
        raise ValueError(
            f"Found per_output=True for {type(targets).__name__}, expected a regression; classes "
            "share one temperature."
        )
    masked, y = checked_targets(predictive, y)
    logits = fetch(targets.class_logits)
    logits = logits[fetch(observed_entries(masked, predictive, y, logits.shape[:-1]))]
    check_known("logits", logits)
    _, labels = as_classes(masked, predictive, y)
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels.astype(int), logits.shape[1], dtype=logits.dtype)
    temperature = _best_temperature(logits, labels)
    low, high = _BOUNDS
    if not low * 1.01 < float(temperature) < high / 1.01:
        warn(
            f"Found the best temperature at a bound, {float(temperature):.3g}: the most probable "
            "class is always right, or no better than chance; use more held-out data."
        )
    return TemperatureScaling(temperature)


@jax.jit
def _best_temperature(
    logits: Float[ArrayLike, "M C"], labels: Float[Array, "M C"]
) -> Float[Array, ""]:
    """Return the best temperature, by bisection: the slope increases in the inverse temperature."""
    # Finite also after products with labels and inverse temperatures, so that none becomes NaN.
    logits = jnp.maximum(logits, jnp.finfo(logits.dtype).min / 1e4)
    margins = logits - jnp.sum(labels * logits, axis=1, keepdims=True)

    def slope(log_inverse):
        p = jax.nn.softmax(jnp.exp(log_inverse) * margins)
        return jnp.mean(jnp.sum(p * margins, axis=1))

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


def _best_scale(predictive: Predictive, y: PyTree, per_output: bool) -> StdScaling:
    targets = predictive.targets
    if per_output and targets.is_joint:
        raise ValueError(
            f"Found per_output=True for {type(targets).__name__}, expected False: its outputs are "
            "scaled together, to keep their correlation."
        )
    jax.eval_shape(targets.scaled, jnp.ones((), targets.mean.dtype))  # refuses what cannot be
    values, seen = observed_targets(predictive, y)
    squares = fetch(_whitened(targets, values)) ** 2
    axis = 0 if per_output else None
    mean = np.where(seen, squares, 0).sum(axis=axis) / np.maximum(seen.sum(axis=axis), 1)
    if not np.all((mean > 0) & np.isfinite(mean)):
        raise ValueError(
            f"Found mean squared residuals of {mean} predictive variances, expected positive, "
            "finite numbers; check the held-out targets, and that each output has at least one."
        )
    return StdScaling(jnp.asarray(np.sqrt(mean), targets.mean.dtype))


@jax.jit
def _whitened(targets: NumberTargets, y: Num[Array, "N *target"]) -> Float[Array, "N *target"]:
    return targets.whitened(y)
