r"""Targets with Student-t noise: a scale mixture of normal distributions.

With $w \sim \mathrm{Gamma}(\nu / 2, \nu / 2)$ the noise is $\mathcal N(0, s^2 / w)$, so that given
w Gaussian outputs and noise add up to $\mathcal N(m, v + s^2 / w)$. One integral remains, over
$u = \log w$, of a function that is smooth also for noise much smaller than the outputs' variance.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from laplace_kit.targets.base import NumberTargets
from laplace_kit.targets.expectation import log_integral_with_mode_between
from laplace_kit.targets.inversion import inverted
from laplace_kit.targets.outputs import Outputs
from laplace_kit.tree import pytree_dataclass, replace

_NUM_NODES = 257
_LOG_RANGE = 40.0  # the decrease of the log density of u from its mode to the ends: e^-40


@pytree_dataclass()
class StudentTTargets(NumberTargets):
    r"""Targets $f + s\, t_\nu$ with Gaussian outputs f.

    Parameters
    ----------
    outputs
        With mean and variance of f.
    scale
        s, of the outputs' shape.
    degrees_of_freedom
        $\nu$.
    aleatoric_var
        $s^2 \nu / (\nu - 2)$, infinite for $\nu \le 2$.
    """

    outputs: Outputs
    scale: Float[Array, "N *target"]
    degrees_of_freedom: Float[Array, ""]
    aleatoric_var: Float[Array, "N *target"]

    @property
    def mean(self):
        """The mean of the targets."""
        return self.outputs.mean

    @property
    def epistemic_var(self):
        """The variance that comes from the weights."""
        return self.outputs.var

    def log_prob(self, y):
        return _log_prob(self, y)

    def cdf(self, y):
        return _cdf(self, y)

    def quantile(self, q):
        return _quantile(self, q)

    def sample(self, key, num_samples):
        output_key, noise_key = jax.random.split(key)
        f = self.outputs.sample(output_key, num_samples)
        noise = jax.random.t(noise_key, self.degrees_of_freedom, f.shape, f.dtype)
        return f + self.scale * noise

    def scaled(self, factor):
        return replace(
            self,
            outputs=self.outputs.scaled(factor),
            scale=self.scale * factor,
            aleatoric_var=self.aleatoric_var * factor**2,
        )


def student_t(
    outputs: Outputs, scale: Float[Array, "*target"], degrees_of_freedom: Float[Array, ""]
) -> StudentTTargets:
    """Return targets with Student-t noise on Gaussian outputs.

    Parameters
    ----------
    outputs
        The distribution of the outputs; draws enter by their mean and variance.
    scale, degrees_of_freedom
        The noise's parameters; the scale broadcasts to the outputs of one example.
    """
    scale, nu = jnp.broadcast_to(scale, outputs.mean.shape), degrees_of_freedom
    variance = jnp.where(nu > 2, scale**2 * nu / jnp.where(nu > 2, nu - 2, 1), jnp.inf)
    return StudentTTargets(outputs.without_draws(), scale, nu, variance)


def _nodes(nu: Float[Array, ""]) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    r"""Return nodes u and logarithms of weights for $u = \log w$, by the trapezoidal rule.

    The log density of u is $\tfrac\nu2 (u - e^u)$ up to a constant. The ends lie beyond the points
    where it has fallen by `_LOG_RANGE`: $e^u - u - 1$ is at least $e^u / 2 - 1$ and, for positive u
    $u^2 / 2$; for negative u, at least $-u - 1$, and $u^2 / 3$ down to minus one.
    """
    fall = 2 * _LOG_RANGE / nu
    high = jnp.minimum(jnp.sqrt(2 * fall), jnp.log(2 * (1 + fall)))
    low = -jnp.where(fall < 1 / 3, jnp.sqrt(3 * jnp.minimum(fall, 1.0)), 1 + fall)
    u = low + (high - low) * jnp.asarray(np.linspace(0, 1, _NUM_NODES), nu.dtype)
    # expm1 instead of exp, so that the exponent is small near the mode.
    log_density = nu / 2 * (u - jnp.expm1(u))
    return u, log_density - jax.nn.logsumexp(log_density)


def _summed(targets: StudentTTargets, fn) -> Float[Array, "..."]:
    """Return the log of the sum over nodes of weights times `exp(fn(std))`."""
    u, log_weights = _nodes(targets.degrees_of_freedom)

    def add(total, node):
        u, log_weight = node
        std = jnp.sqrt(targets.outputs.var + targets.scale**2 * jnp.exp(-u))
        return jnp.logaddexp(total, fn(std) + log_weight), None

    like = jax.eval_shape(fn, targets.scale)
    return jax.lax.scan(add, jnp.full(like.shape, -jnp.inf, like.dtype), (u, log_weights))[0]


@jax.jit
def _log_prob(targets: StudentTTargets, y: Num[Array, "N *target"]) -> Float[Array, "N *target"]:
    r"""Integrate around the mode of the integrand, which outliers move to small w.

    If the outputs have no variance, that mode is at $w = (\nu + 1) / (\nu + r^2 / s^2)$; otherwise
    it lies between that point and the mode of the density. There may be two modes: a grid finds the
    higher one.
    """
    residual, nu = y - targets.mean, targets.degrees_of_freedom
    half, log_normaliser = nu / 2, _log_normaliser(nu / 2)

    def log_integrand(u):
        variance = targets.outputs.var + targets.scale**2 * jnp.exp(-u)
        normal = -0.5 * (residual**2 / variance + jnp.log(2 * math.pi * variance))
        return half * (u - jnp.expm1(u)) - log_normaliser + normal

    low = jnp.log((nu + 1) / (nu + (residual / targets.scale) ** 2)) - 1 / nu
    high = jnp.ones_like(low) / nu + jnp.maximum(low, 0)
    return log_integral_with_mode_between(log_integrand, low, high, _NUM_NODES)


def _log_normaliser(a: Float[Array, ""]) -> Float[Array, ""]:
    r"""Return $\log \int e^{a (u + 1 - e^u)} du = \log \Gamma(a) + a - a \log a$.

    By Stirling's series for large a, where the three terms cancel.
    """
    large = jnp.maximum(a, 20.0)
    series = 1 / (12 * large) - 1 / (360 * large**3) + 1 / (1260 * large**5)
    stirling = 0.5 * jnp.log(2 * math.pi / large) + series
    return jnp.where(a > 20, stirling, jax.lax.lgamma(a) + a - a * jnp.log(a))


@jax.jit
def _cdf(targets: StudentTTargets, y: Num[Array, "..."]) -> Float[Array, "..."]:
    residual = y - targets.mean
    # The smaller tail, whose logarithm is accurate.
    tail = jnp.exp(_summed(targets, lambda std: jax.scipy.special.log_ndtr(-abs(residual) / std)))
    return jnp.where(residual < 0, tail, 1 - tail)


@jax.jit
def _quantile(targets: StudentTTargets, q: Float[Array, "*levels"]) -> Float[Array, "..."]:
    width = jnp.sqrt(targets.outputs.var + targets.scale**2)
    return inverted(targets.cdf, q, centre=targets.mean, width=width)
