"""Regression scores of Gaussian predictions, point predictions and predictive draws."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from laplace_kit.eval.metrics import checks, weighting
from laplace_kit.eval.metrics.inputs import metric


@metric
def gaussian_nll(
    mean: ArrayLike, var: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return the mean of $-\log \mathcal{N}(y_n \mid \mu_n, \sigma_n^2)$ over examples, in nats.

    $\frac{1}{N} \sum_n \sum_c \frac{1}{2} [\log(2 \pi \sigma_{nc}^2) + (y_{nc} - \mu_{nc})^2 /
    \sigma_{nc}^2]$, summed over outputs, which are independent given the input.

    Parameters
    ----------
    mean, var, y
        Predictive means, positive variances (noise included) and targets, `(N, *outputs)`; `var`
        may be a scalar.
    weights
        Weights of the examples, `(N,)`; one each by default.

    Raises
    ------
    ValueError
        If the shapes differ, a variance is not positive or the weights are not valid.
    """
    mean, var, y = checks.regression(mean, var, y, "var")
    weights = weighting.checked(weights, len(mean), mean.dtype)
    return _gaussian_nll(mean, var, y, weights)


@jax.jit
def _gaussian_nll(mean, var, y, weights):
    nll = 0.5 * (math.log(2 * math.pi) + jnp.log(var) + (y - mean) ** 2 / var)
    return jnp.sum(weighting.mean(nll, weights))


@metric
def rmse(mean: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None) -> Float[Array, ""]:
    r"""Return $\sqrt{\mathrm{mean}\,(y - \mu)^2}$ over examples and outputs, in the units of `y`.

    Parameters
    ----------
    mean, y, weights
        As for `gaussian_nll`, with the same errors.
    """
    mean, _, y = checks.regression(mean, 1.0, y, "std")
    weights = weighting.checked(weights, len(mean), mean.dtype)
    return _rmse(mean, y, weights)


@jax.jit
def _rmse(mean, y, weights):
    return jnp.sqrt(weighting.mean_of_all((y - mean) ** 2, weights))


@metric
def mae(mean: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None) -> Float[Array, ""]:
    r"""Return the mean of $|y - \mu|$ over examples and outputs, in the units of `y`.

    It is minimised by the conditional median.

    Parameters
    ----------
    mean, y, weights
        As for `gaussian_nll`, with the same errors.
    """
    mean, _, y = checks.regression(mean, 1.0, y, "std")
    weights = weighting.checked(weights, len(mean), mean.dtype)
    return _mae(mean, y, weights)


@jax.jit
def _mae(mean, y, weights):
    return weighting.mean_of_all(jnp.abs(y - mean), weights)


@metric
def r_squared(
    mean: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return $1 - \mathrm{mean}\,(y - \mu)^2 / \mathrm{Var}\, y$, averaged over outputs.

    One for exact predictions, zero for the mean of the targets, negative for worse ones. For
    an output with equal targets it is one if they are predicted exactly, else zero.

    Parameters
    ----------
    mean, y, weights
        As for `gaussian_nll`, with the same errors.
    """
    mean, _, y = checks.regression(mean, 1.0, y, "std")
    weights = weighting.checked(weights, len(mean), mean.dtype)
    return _r_squared(mean, y, weights)


@jax.jit
def _r_squared(mean, y, weights):
    squares = weighting.mean((y - mean) ** 2, weights)
    spread = weighting.mean((y - weighting.mean(y, weights)) ** 2, weights)
    is_constant = spread == 0
    ratios = jnp.where(is_constant, squares > 0, squares / jnp.where(is_constant, 1, spread))
    return jnp.mean(1 - ratios)


@metric
def chi_squared(
    mean: ArrayLike, var: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return the mean of $(y - \mu)^2 / \sigma^2$ over examples and outputs.

    One if the variances are right on average, above one if they are too small.

    Parameters
    ----------
    mean, var, y, weights
        As for `gaussian_nll`, with the same errors.
    """
    mean, var, y = checks.regression(mean, var, y, "var")
    weights = weighting.checked(weights, len(mean), mean.dtype)
    return _chi_squared(mean, var, y, weights)


@jax.jit
def _chi_squared(mean, var, y, weights):
    return weighting.mean_of_all((y - mean) ** 2 / var, weights)


@metric
def sharpness(std: ArrayLike, *, weights: ArrayLike | None = None) -> Float[Array, ""]:
    r"""Return $\sqrt{\mathrm{mean}\,\sigma^2}$ over examples and outputs, in the units of `y`.

    It does not depend on the targets: among calibrated predictions, sharper ones are better. It
    equals the root mean squared error if the variances are right on average.

    Parameters
    ----------
    std
        Predictive standard deviations `(N, *outputs)`.
    weights
        Weights of the examples, `(N,)`; one each by default.

    Raises
    ------
    ValueError
        If there are no examples, a standard deviation is not positive or the weights are not valid.

    References
    ----------
    Gneiting, Balabdaoui and Raftery (2007), "Probabilistic forecasts, calibration and sharpness".
    """
    (std,) = checks.as_floating(std)
    checks.check_examples("std", std)
    checks.check_spread("std", std)
    weights = weighting.checked(weights, len(std), std.dtype)
    return _rmse(std, 0.0, weights)


# --- continuous ranked probability score -----------------------------------------------------


@metric
def crps_gaussian(
    mean: ArrayLike, std: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return the continuous ranked probability score of Gaussians, in the units of `y`.

    $\sigma \, [z (2 \Phi(z) - 1) + 2 \varphi(z) - 1/\sqrt{\pi}]$ with $z = (y - \mu) / \sigma$,
    averaged over examples and outputs. As $\sigma \to 0$ it becomes the absolute error.

    Parameters
    ----------
    mean, std, y, weights
        As for `gaussian_nll`, with standard deviations; the same errors.

    References
    ----------
    Gneiting and Raftery (2007), "Strictly proper scoring rules, prediction, and estimation".
    """
    mean, std, y = checks.regression(mean, std, y, "std")
    weights = weighting.checked(weights, len(mean), mean.dtype)
    return _crps_gaussian(mean, std, y, weights)


@jax.jit
def _crps_gaussian(mean, std, y, weights):
    z = (y - mean) / std
    cdf, pdf = jax.scipy.stats.norm.cdf(z), jax.scipy.stats.norm.pdf(z)
    standard = z * (2 * cdf - 1) + 2 * pdf - 1 / math.sqrt(math.pi)
    return weighting.mean_of_all(std * standard, weights)


@metric
def crps_samples(
    samples: ArrayLike, y: ArrayLike, *, fair: bool = False, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return the continuous ranked probability score of draws, in the units of `y`.

    $\frac{1}{S} \sum_s |x_s - y| - \frac{1}{2 S^2} \sum_{s,t} |x_s - x_t|$, averaged over examples
    and outputs: the score of the empirical distribution of the draws, computed exactly by sorting
    in $O(S \log S)$ for each target. One draw gives the absolute error.

    Parameters
    ----------
    samples
        Draws from the predictive distribution, noise included, `(S, N, *outputs)`.
    y
        Targets `(N, *outputs)`.
    fair
        Whether to divide by $2 S (S - 1)$ instead of $2 S^2$: an unbiased estimate of the score of
        the underlying distribution. It needs two draws.
    weights
        Weights of the examples, `(N,)`; one each by default.

    Raises
    ------
    ValueError
        If the shapes are inconsistent, there are too few draws or the weights are not valid.

    References
    ----------
    Gneiting and Raftery (2007), as for `crps_gaussian`; Ferro (2014), "Fair scores for ensemble
    forecasts".
    """
    samples, y = checks.samples(samples, y)
    if fair and len(samples) < 2:
        raise ValueError("Found 1 sample for fair=True, expected at least 2; draw more of them.")
    weights = weighting.checked(weights, len(y), y.dtype)
    return weighting.mean_of_all(_crps_of_draws(samples, y, len(samples) - fair), weights)


@partial(jax.jit, static_argnames="num_others")
def _crps_of_draws(
    samples: Float[Array, "S *shape"], y: Float[Array, "*shape"], num_others: int
) -> Float[Array, "*shape"]:
    # Centred at the target, so that numbers far from zero lose no digits.
    errors = jnp.sort(samples - y, axis=0)
    num = errors.shape[0]
    # Sorted, draw s is the larger one in s pairs and the smaller one in S - 1 - s.
    signs = (2 * jnp.arange(num, dtype=errors.dtype) - (num - 1)) / (num * num_others)
    spread = jnp.tensordot(signs, errors, axes=1, precision="highest")
    return jnp.mean(jnp.abs(errors), axis=0) - spread


@metric
def energy_score(
    samples: ArrayLike, y: ArrayLike, *, fair: bool = False, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return the energy score of draws: a proper score of the joint distribution of all outputs.

    $\frac{1}{S} \sum_s \lVert x_s - y \rVert - \frac{1}{2 S^2} \sum_{s,t} \lVert x_s - x_t
    \rVert$ with Euclidean norms over the outputs, averaged over examples. For one output it is
    `crps_samples`; for several it also sees their dependence.

    Parameters
    ----------
    samples
        Draws from the predictive distribution, noise included, `(S, N, *outputs)`, such as
        `predictive.sample(key, 100)`.
    y, fair, weights
        As for `crps_samples`, with the same errors. Cost: $S^2 / 2$ distances of each example, in
        memory for one pair of draws at a time.

    References
    ----------
    Gneiting and Raftery (2007), as for `crps_gaussian`.
    """
    samples, y = checks.samples(samples, y)
    if fair and len(samples) < 2:
        raise ValueError("Found 1 sample for fair=True, expected at least 2; draw more of them.")
    weights = weighting.checked(weights, len(y), y.dtype)
    return weighting.mean(_energy_of_draws(samples, y, len(samples) - fair), weights)


@partial(jax.jit, static_argnames="num_others")
def _energy_of_draws(
    samples: Float[Array, "S N *outputs"], y: Float[Array, "N *outputs"], num_others: int
) -> Float[Array, " N"]:
    errors = (samples - y).reshape(*samples.shape[:2], -1)
    num = errors.shape[0]

    def add(shift, total):
        return total + jnp.sum(_norms(errors - jnp.roll(errors, shift, axis=0)), axis=0)

    # Every ordered pair of different draws is met once.
    pairs = jax.lax.fori_loop(1, num, add, jnp.zeros(errors.shape[1], errors.dtype))
    return jnp.mean(_norms(errors), axis=0) - pairs / (2 * num * num_others)


def _norms(vectors: Float[Array, "*shape C"]) -> Float[Array, "*shape"]:
    return jnp.sqrt(jnp.sum(vectors**2, axis=-1))
