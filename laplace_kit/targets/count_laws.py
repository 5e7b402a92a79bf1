"""Distributions of counts whose mean is the exponential of an output."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.targets.logarithms import log_gamma_ratio
from laplace_kit.targets.mixtures import Law
from laplace_kit.targets.outputs import Outputs
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class PoissonLaw(Law):
    r"""Poisson counts with the rate $e^f$."""

    is_discrete = True

    def mean(self, f):
        return jnp.exp(f)

    def variance(self, f):
        return jnp.exp(f)

    def log_prob(self, f, y):
        counts = y.astype(f.dtype)
        return counts * f - jnp.exp(f) - jax.lax.lgamma(counts + 1)

    def cdf(self, f, y):
        return jax.scipy.special.gammaincc(y + 1, jnp.exp(f))

    def sample(self, key, f):
        return jax.random.poisson(key, jnp.exp(f)).astype(f.dtype)

    def moments(self, outputs):
        rate, var, _ = rate_moments(outputs)
        return rate, rate, var


@pytree_dataclass()
class NegativeBinomialLaw(Law):
    r"""Counts with the mean $\mu = e^f$ and the variance $\mu + a \mu^2$ (NB2).

    Poisson counts whose rate has a gamma distribution of mean $\mu$ and relative variance a.
    """

    dispersion: Float[Array, ""]

    is_discrete = True

    def mean(self, f):
        return jnp.exp(f)

    def variance(self, f):
        return jnp.exp(f) + self.dispersion * jnp.exp(2 * f)

    def log_prob(self, f, y):
        return negative_binomial_log_prob(f, y, self.dispersion)

    def cdf(self, f, y):
        success = jax.nn.sigmoid(-f - jnp.log(self.dispersion))
        return jax.scipy.special.betainc(1 / self.dispersion, y + 1, success)

    def sample(self, key, f):
        return negative_binomial_sample(key, f, self.dispersion)

    def moments(self, outputs):
        rate, var, square = rate_moments(outputs)
        return rate, rate + self.dispersion * square, var


def rate_moments(outputs: Outputs) -> tuple[Array, Array, Array]:
    r"""Return mean, variance and mean square of the rate $e^f$: log-normal, or over draws."""
    if outputs.draws is None:
        rate = jnp.exp(outputs.mean + outputs.var / 2)
        return rate, rate**2 * jnp.expm1(outputs.var), rate**2 * jnp.exp(outputs.var)
    rates = jnp.exp(outputs.draws)
    return rates.mean(axis=1), rates.var(axis=1, ddof=1), (rates**2).mean(axis=1)


def negative_binomial_log_prob(
    f: Float[Array, "*shape"], y: Array, dispersion: Float[Array, ""]
) -> Float[Array, "*shape"]:
    r"""Return $\log p(y \mid f)$ of a negative binomial distribution.

    With $r = 1 / a$ and $\pi = \mu / (\mu + r)$ it is

    $$r \log (1 - \pi) + y \log \pi + \log \Gamma(y + r) - \log \Gamma(r) - \log y!.$$
    """
    counts, size = jnp.asarray(y, f.dtype), 1 / dispersion
    logit = f + jnp.log(dispersion)
    shares = size * jax.nn.log_sigmoid(-logit) + counts * jax.nn.log_sigmoid(logit)
    return shares + log_gamma_ratio(size, counts) - jax.lax.lgamma(counts + 1)


def negative_binomial_sample(
    key: Array, f: Float[Array, "*shape"], dispersion: Float[Array, ""]
) -> Float[Array, "*shape"]:
    """Draw gamma rates, and Poisson counts with these rates."""
    rate_key, count_key = jax.random.split(key)
    size = 1 / dispersion
    rate = jnp.exp(f) * jax.random.gamma(rate_key, size, f.shape, f.dtype) / size
    return jax.random.poisson(count_key, rate).astype(f.dtype)
