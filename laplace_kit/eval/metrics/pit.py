r"""The probability integral transform (PIT): predictive distribution functions at the targets.

For calibrated predictions the PIT values are uniform on [0, 1], whatever the distributions.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from laplace_kit.eval.metrics import checks, weighting
from laplace_kit.eval.metrics.inputs import metric
from laplace_kit.eval.metrics.sums import over_examples


@metric
def pit_gaussian(mean: ArrayLike, std: ArrayLike, y: ArrayLike) -> Float[Array, "N *outputs"]:
    r"""Return $\Phi((y - \mu) / \sigma)$ for every target.

    Parameters
    ----------
    mean, std, y
        As for `crps_gaussian`, with the same errors.

    References
    ----------
    Dawid (1984), "Present position and potential developments: some personal views: statistical
    theory: the prequential approach".
    """
    mean, std, y = checks.regression(mean, std, y, "std")
    return _normal_cdf(mean, std, y)


@metric
def pit_samples(samples: ArrayLike, y: ArrayLike) -> Float[Array, "N *outputs"]:
    r"""Return the rank of every target among its draws, as a number between 0 and 1.

    $(|\{s: x_s < y\}| + \frac{1}{2} |\{s: x_s = y\}| + \frac{1}{2}) / (S + 1)$: for calibrated
    predictions, all $S + 1$ values are equally likely.

    Parameters
    ----------
    samples, y
        As for `crps_samples`, with the same errors.

    References
    ----------
    Hamill (2001), "Interpretation of rank histograms for verifying ensemble forecasts".
    """
    samples, y = checks.samples(samples, y)
    return _shares_below(samples, y)


@jax.jit
def _normal_cdf(mean, std, y):
    return jax.scipy.stats.norm.cdf((y - mean) / std)


@jax.jit
def _shares_below(samples: Float[Array, "S *shape"], y: Float[Array, "*shape"]):
    ranks = (jnp.sum(samples < y, axis=0) + jnp.sum(samples <= y, axis=0)) / 2
    unknown = jnp.isnan(jnp.sum(samples, axis=0) + y)
    return jnp.where(unknown, jnp.nan, (ranks + 0.5) / (len(samples) + 1)).astype(y.dtype)


class UniformityTest(NamedTuple):
    """The Kolmogorov-Smirnov distance from the uniform distribution, and its p-value."""

    statistic: Float[Array, ""]
    p_value: Float[Array, ""]


@metric
def pit_uniformity_test(pit: ArrayLike, *, weights: ArrayLike | None = None) -> UniformityTest:
    r"""Return the Kolmogorov-Smirnov test of uniform PIT values, that is, of calibration.

    The statistic is $D = \sup_u |F(u) - u|$ for the fraction $F(u)$ of PIT values up to $u$. The
    p-value is $K(\lambda) = 2 \sum_{j \ge 1} (-1)^{j-1} e^{-2 j^2 \lambda^2}$ at
    $\lambda = z + \frac{1}{6 \sqrt n} + \frac{z - 1}{4 n}$ with $z = \sqrt n D$, accurate to 0.003
    from ten examples on and to 0.0003 from fifty.

    Parameters
    ----------
    pit
        PIT values `(N, *outputs)`, assumed to be independent. The outputs of one example rarely
        are, and then the p-value is too small. The values of `pit_samples` are discrete: use many
        draws.
    weights
        Weights of the examples, `(N,)`; one each by default.

    Raises
    ------
    ValueError
        If there are no values, a value is not between 0 and 1 or the weights are not valid.

    References
    ----------
    Diebold, Gunther and Tay (1998), "Evaluating density forecasts"; Vrbik (2018), "Small-sample
    corrections to Kolmogorov-Smirnov test statistic".
    """
    pit, weights = _checked(pit, weights)
    return _uniformity_test(pit, weights)


@metric
def quantile_calibration_error(
    pit: ArrayLike,
    levels: ArrayLike | Sequence[float] = tuple(j / 20 for j in range(1, 20)),
    *,
    weights: ArrayLike | None = None,
) -> Float[Array, ""]:
    r"""Return $\sqrt{\frac{1}{m} \sum_{j=1}^m (\hat p_j - p_j)^2}$ over levels $p_j$.

    $\hat p_j$ is the fraction of targets below the predictive quantile of level $p_j$, that is, of
    PIT values up to $p_j$, over examples and outputs. Its square is Kuleshov's calibration error
    with the weights $1 / m$.

    Parameters
    ----------
    pit, weights
        As for `pit_uniformity_test`, with the same errors.
    levels
        Levels between 0 and 1, `(m,)`, by default 0.05 to 0.95; a `ValueError` for other values.

    References
    ----------
    Kuleshov, Fenner and Ermon (2018), "Accurate uncertainties for deep learning using calibrated
    regression".
    """
    pit, weights = _checked(pit, weights)
    levels = checks.fractions("levels", levels, pit.dtype)
    return _quantile_calibration_error(pit, weights, levels.reshape(-1))


def _checked(pit, weights) -> tuple[Float[Array, " K"], Num[Array, " K"]]:
    """Return the flattened PIT values and the weight of each."""
    (pit,) = checks.as_floating(pit)
    checks.check_examples("pit", pit)
    pit = checks.fractions("pit", pit, pit.dtype)
    weights = weighting.as_counts(weighting.checked(weights, len(pit), pit.dtype))
    return pit.reshape(-1), jnp.repeat(weights, math.prod(pit.shape[1:]))


@jax.jit
def _uniformity_test(pit: Float[Array, " K"], weights: Num[Array, " K"]) -> UniformityTest:
    order, n = jnp.argsort(pit), over_examples(weights).astype(pit.dtype)
    u, steps = pit[order], weights[order] / n
    share = jnp.cumsum(weights[order]) / n
    statistic = jnp.max(jnp.maximum(share - u, u - (share - steps)))
    z = jnp.sqrt(n) * statistic
    return UniformityTest(statistic, _kolmogorov(z + 1 / (6 * jnp.sqrt(n)) + (z - 1) / (4 * n)))


def _kolmogorov(x: Float[Array, ""]) -> Float[Array, ""]:
    r"""Return $P(K > x)$ for the Kolmogorov distribution, by the series that converges faster."""
    j = jnp.arange(1, 9, dtype=x.dtype)
    tail = 2 * jnp.sum((-1) ** (j - 1) * jnp.exp(-2 * (j * x) ** 2))
    near_zero = jnp.maximum(x, 0.1)
    body = jnp.sum(jnp.exp(-(((2 * j - 1) * jnp.pi / near_zero) ** 2) / 8))
    head = 1 - math.sqrt(2 * math.pi) / near_zero * body
    return jnp.clip(jnp.where(x > 1, tail, head), 0, 1)


@jax.jit
def _quantile_calibration_error(pit, weights, levels) -> Float[Array, ""]:
    order = jnp.argsort(pit)
    counted = jnp.pad(jnp.cumsum(weights[order]), (1, 0))
    below = counted[jnp.searchsorted(pit[order], levels, side="right")]
    shares = below.astype(pit.dtype) / over_examples(weights)
    error = jnp.sqrt(jnp.mean((shares - levels) ** 2))
    return jnp.where(jnp.isnan(pit).any(), jnp.nan, error)
