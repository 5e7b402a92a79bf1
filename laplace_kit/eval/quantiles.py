r"""Quantiles and distribution functions of the targets.

| likelihood | the predictive of one target |
| --- | --- |
| `Gaussian`, `MultivariateGaussian` | $\mathcal N(m, v + s^2)$ |
| `HeteroscedasticGaussian` | $\mathcal N(m, v + e^{-\ell})$, mixed over the log-precision $\ell$ |
| `Poisson` | Poisson, mixed over the log-rate |

The mixtures are over the Gaussian of the outputs, by quadrature. Of the sampled predictive it is
the Gaussian with the moments of the draws.
"""

import math
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num, PRNGKeyArray

from laplace_kit import tree
from laplace_kit.eval.expectation import normal_expectation
from laplace_kit.eval.uncertainty import no_distribution
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    MultivariateGaussian,
    Poisson,
)

if TYPE_CHECKING:
    from laplace_kit.eval.outputs import Predictive


@singledispatch
def quantile(
    likelihood: Likelihood | None, predictive: "Predictive", q: Float[Array, "*levels"]
) -> Float[Array, "..."]:
    r"""Return $\inf\{y : F(y) \ge q\}$ for each target; open to registration.

    Parameters
    ----------
    likelihood
        Of the targets.
    predictive
        For N inputs.
    q
        Between 0 and 1: one level, or several.

    Returns
    -------
    quantiles
        Of the targets' shape, the axes of `q` in front. Of predicted noise and counts the cost is
        137 evaluations of the distribution for each halving of a bracket.

    Raises
    ------
    TypeError
        If the targets have no order, or no distribution.
    """
    raise no_distribution(likelihood, "distribution of the targets")


@singledispatch
def cdf(
    likelihood: Likelihood | None, predictive: "Predictive", y: Num[Array, "..."]
) -> Float[Array, "..."]:
    """Return the probability of each target to be at most `y`; open to registration.

    Parameters
    ----------
    likelihood, predictive
        As for `quantile`, with the same errors.
    y
        Of a shape that broadcasts to the targets.
    """
    raise no_distribution(likelihood, "distribution of the targets")


def check_levels(name: str, levels: ArrayLike | Sequence[float]) -> None:
    """Raise a `ValueError` where levels are not strictly between 0 and 1."""
    if tree.is_concrete(levels) and not np.all((np.asarray(levels) > 0) & (np.asarray(levels) < 1)):
        raise ValueError(
            f"Found {name}={levels}, expected numbers between 0 and 1, both excluded, such as 0.9."
        )


def pit(
    likelihood: Likelihood | None,
    predictive: "Predictive",
    y: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "N *target"]:
    r"""Return the probability integral transform $F(y)$, uniform where the predictive is right.

    Of counts $F(y - 1) + u\, p(y)$, with $u$ uniform, which is uniform then too, or without a key
    $u = 1/2$, the mid-PIT, whose mean is $1/2$.

    Parameters
    ----------
    likelihood, predictive
        As for `quantile`, with the same errors.
    y
        The targets that were observed.
    key
        To randomise the transform of counts.

    References
    ----------
    Czado, Gneiting and Held (2009), Predictive model assessment for count data.
    """
    y = jnp.asarray(y)
    upper = cdf(likelihood, predictive, y)
    if not isinstance(likelihood, Poisson):
        return upper
    u = 0.5 if key is None else jax.random.uniform(key, upper.shape, upper.dtype)
    lower = cdf(likelihood, predictive, y.astype(upper.dtype) - 1)  # unsigned zeros less one wrap
    return lower + u * (upper - lower)


# --- numbers --------------------------------------------------------------------------------------


@quantile.register(Gaussian)
@quantile.register(MultivariateGaussian)
def _(likelihood, predictive, q):
    return predictive.mean + jnp.sqrt(predictive.var) * _before(
        jax.scipy.special.ndtri(q), predictive.mean
    )


@cdf.register(Gaussian)
@cdf.register(MultivariateGaussian)
def _(likelihood, predictive, y):
    return jax.scipy.special.ndtr((y - predictive.mean) / jnp.sqrt(predictive.var))


@quantile.register
def _(likelihood: HeteroscedasticGaussian, predictive, q):
    return _invert(_mixed_normal(predictive), q)


@cdf.register
def _(likelihood: HeteroscedasticGaussian, predictive, y):
    return _evaluate(_mixed_normal(predictive), y)


@quantile.register
def _(likelihood: Poisson, predictive, q):
    return _invert_counts(_MixedPoisson(predictive.f_mean, jnp.sqrt(predictive.f_var)), q)


@cdf.register
def _(likelihood: Poisson, predictive, y):
    return _evaluate(_MixedPoisson(predictive.f_mean, jnp.sqrt(predictive.f_var)), y)


@tree.pytree_dataclass()
class _MixedNormal:
    """A normal target whose log-precision is normal, and with it moves the mean by `slope`."""

    mean: Float[Array, "N *target"]
    var: Float[Array, "N *target"]  # of the mean, given the log-precision
    slope: Float[Array, "N *target"]
    log_precision: Float[Array, "N *target"]
    log_precision_std: Float[Array, "N *target"]

    def __call__(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        def given(log_precision):
            mean = self.mean + self.slope * (log_precision - self.log_precision)
            return jax.scipy.special.ndtr((y - mean) / jnp.sqrt(self.var + jnp.exp(-log_precision)))

        return normal_expectation(given, self.log_precision, self.log_precision_std)

    def moments(self) -> tuple[Float[Array, "N *target"], Float[Array, "N *target"]]:
        """Return mean and variance."""
        noise = jnp.exp(self.log_precision_std**2 / 2 - self.log_precision)
        return self.mean, self.var + (self.slope * self.log_precision_std) ** 2 + noise


@tree.pytree_dataclass()
class _MixedPoisson:
    """A count whose log-rate is normal."""

    log_rate: Float[Array, "N *target"]
    log_rate_std: Float[Array, "N *target"]

    def __call__(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        count = jnp.floor(y).astype(self.log_rate.dtype)

        def given(log_rate):
            at_least_0 = jax.scipy.special.gammaincc(jnp.maximum(count, 0) + 1, jnp.exp(log_rate))
            return jnp.where(count < 0, 0, at_least_0)

        return normal_expectation(given, self.log_rate, self.log_rate_std)

    def bound(self, level: Float[Array, ""]) -> Float[Array, "N *target"]:
        """Return a count that is not below the quantile.

        Half of what may lie above goes to rates that are larger still, half to Chebyshev's
        inequality: unlike the moments of the mixture, both are finite where rates spread wide.
        """
        level = (1 + level) / 2
        rate = jnp.exp(self.log_rate + self.log_rate_std * jax.scipy.special.ndtri(level))
        return jnp.ceil(rate + jnp.sqrt(rate * level / (1 - level)))


def _mixed_normal(predictive: "Predictive") -> _MixedNormal:
    """Condition the mean on the log-precision, where their covariance is known."""
    mean, log_precision = jnp.split(predictive.f_mean, 2, axis=-1)
    var, log_precision_var = jnp.split(predictive.f_var, 2, axis=-1)
    slope = jnp.zeros_like(mean)
    if predictive.f_cov is not None:
        cov = halves_covariance(predictive.f_mean, predictive.f_cov)
        slope = jnp.where(log_precision_var > 0, cov / log_precision_var, 0)
        var = jnp.maximum(var - slope * cov, 0)
    return _MixedNormal(mean, var, slope, log_precision, jnp.sqrt(log_precision_var))


def halves_covariance(
    f_mean: Float[Array, "N *event"], f_cov: Float[Array, "N D D"]
) -> Float[Array, "N *target"]:
    """Return the covariance of each mean with its own log-precision."""
    half = f_mean.shape[-1] // 2
    index = np.arange(math.prod(f_mean.shape[1:])).reshape(-1, 2, half)
    return f_cov[:, index[:, 0], index[:, 1]].reshape(*f_mean.shape[:-1], half)


@jax.jit
def _evaluate(mixture: _MixedNormal | _MixedPoisson, y: Num[Array, "..."]) -> Float[Array, "..."]:
    return mixture(y)


@jax.jit
def _invert(mixture: _MixedNormal, q: Float[Array, "*levels"]) -> Float[Array, "..."]:
    """Halve the bracket that Chebyshev's inequality gives until floating point has no middle."""
    mean, var = mixture.moments()

    def solve(level):
        low = mean - jnp.sqrt(var * (1 - level) / level)
        high = mean + jnp.sqrt(var * level / (1 - level))

        def halve(_, bracket):
            low, high = bracket
            middle = (low + high) / 2
            is_below = mixture(middle) < level
            return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

        return jax.lax.fori_loop(0, jnp.finfo(mean.dtype).nmant + 10, halve, (low, high))[1]

    return _for_each(solve, q)


@jax.jit
def _invert_counts(mixture: _MixedPoisson, q: Float[Array, "*levels"]) -> Float[Array, "..."]:
    """Halve a bracket of whole numbers, the lower end excluded, until one is left."""

    def solve(level):
        high = mixture.bound(level)

        def is_open(bracket):
            low, high = bracket
            middle = jnp.floor((low + high) / 2)  # one of them, where floating point is too coarse
            return jnp.any((low < middle) & (middle < high))

        def halve(bracket):
            low, high = bracket
            middle = jnp.floor((low + high) / 2)
            is_below = mixture(middle) < level
            return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

        return jax.lax.while_loop(is_open, halve, (jnp.full_like(high, -1), high))[1]

    return _for_each(solve, q)


def _for_each(solve: Callable, q: Float[Array, "*levels"]) -> Float[Array, "..."]:
    found = jax.lax.map(solve, q.reshape(-1))
    return found.reshape(*q.shape, *found.shape[1:])


def _before(values: Float[Array, "*levels"], like: Array) -> Float[Array, "..."]:
    """Give levels axes of length one for those of `like`."""
    return values.reshape(*values.shape, *(1,) * like.ndim)


# --- classes --------------------------------------------------------------------------------------


@quantile.register(Categorical)
@quantile.register(Bernoulli)
@cdf.register(Categorical)
@cdf.register(Bernoulli)
def _(likelihood, predictive, _):
    raise TypeError(
        f"Found a {type(likelihood).__name__} likelihood, whose classes have no order, expected "
        "numbers or counts; for the most probable classes call predictive.prediction_set(level)."
    )
