"""Normal targets with predicted noise: a mixture over the uncertain log-precision."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from laplace_kit.targets.base import NumberTargets
from laplace_kit.targets.expectation import log_integral_with_mode_between, normal_expectation
from laplace_kit.targets.inversion import bisected, for_each_level
from laplace_kit.targets.normal import plus_diagonal
from laplace_kit.targets.outputs import Outputs
from laplace_kit.tree import pytree_dataclass, replace

_NUM_NODES = 257


@pytree_dataclass()
class NormalMixtureTargets(NumberTargets):
    r"""Targets $\mathcal N(m, v + e^{-\ell})$, mixed over the Gaussian log-precision $\ell$.

    `log_prob`, `cdf` and `quantile` integrate $\ell$ out by quadrature. If the outputs' covariance
    is known, the mean moves with the log-precision.

    Parameters
    ----------
    outputs
        `(N, ..., 2 C)`, the C means before the C log-precisions.
    mean, epistemic_var
        Moments of the first C outputs, `(N, ..., C)`.
    aleatoric_var
        $\mathbb E\, e^{-\ell}$, `(N, ..., C)`.
    """

    outputs: Outputs
    mean: Float[Array, "N *target"]
    aleatoric_var: Float[Array, "N *target"]
    epistemic_var: Float[Array, "N *target"]

    @property
    def covariance(self):
        cov = self.outputs.cov
        if cov is None:
            return None
        means = _half_indices(self.outputs)[:, 0].ravel()
        return plus_diagonal(cov[:, means[:, None], means], self)

    def log_prob(self, y):
        return _log_prob(_conditioned(self.outputs), y)

    def cdf(self, y):
        return _cdf(_conditioned(self.outputs), y)

    def quantile(self, q):
        return _quantile(_conditioned(self.outputs), q)

    def sample(self, key, num_samples):
        output_key, noise_key = jax.random.split(key)
        f = self.outputs.sample(output_key, num_samples)
        mean, log_precision = jnp.split(f, 2, axis=-1)
        return mean + jnp.exp(-log_precision / 2) * jax.random.normal(
            noise_key, mean.shape, f.dtype
        )

    def scaled(self, factor):
        mean, log_precision = jnp.split(self.outputs.mean, 2, axis=-1)
        shifted = jnp.concatenate([mean, log_precision - 2 * jnp.log(factor)], axis=-1)
        means = jnp.broadcast_to(factor, mean.shape[1:])
        outputs = self.outputs.scaled(jnp.concatenate([means, jnp.ones_like(means)], axis=-1))
        return replace(
            self,
            outputs=replace(outputs, mean=shifted),
            aleatoric_var=self.aleatoric_var * factor**2,
            epistemic_var=self.epistemic_var * factor**2,
        )


def normal_mixture(outputs: Outputs) -> NormalMixtureTargets:
    """Return targets with predicted noise, from means and log-precisions as outputs.

    Parameters
    ----------
    outputs
        Gaussian, for which the noise variance is log-normal, or draws, over which it is averaged.
    """
    (mean, log_precision), (var, spread) = (
        jnp.split(part, 2, axis=-1) for part in (outputs.mean, outputs.var)
    )
    if outputs.draws is None:
        noise = jnp.exp(spread / 2 - log_precision)
    else:
        noise = jnp.exp(-jnp.split(outputs.draws, 2, axis=-1)[1]).mean(axis=1)
    return NormalMixtureTargets(outputs.without_draws(), mean, noise, var)


@pytree_dataclass()
class _Conditioned:
    """The mean given the log-precision: linear in it, with the factor `slope`."""

    mean: Float[Array, "N *target"]
    var: Float[Array, "N *target"]  # of the mean, given the log-precision
    slope: Float[Array, "N *target"]
    log_precision: Float[Array, "N *target"]
    log_precision_std: Float[Array, "N *target"]

    def cdf(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        def given(log_precision):
            residual, var = self.residual_and_variance(y, log_precision)
            return jax.scipy.special.ndtr(residual / jnp.sqrt(var))

        return normal_expectation(given, self.log_precision, self.log_precision_std)

    def residual_and_variance(
        self, y: Num[Array, "..."], log_precision: Float[Array, "N *target"]
    ) -> tuple[Float[Array, "..."], Float[Array, "N *target"]]:
        """Return targets minus their mean, and their variance, given the log-precision."""
        mean = self.mean + self.slope * (log_precision - self.log_precision)
        return y - mean, self.var + jnp.exp(-log_precision)

    def variance(self) -> Float[Array, "N *target"]:
        noise = jnp.exp(self.log_precision_std**2 / 2 - self.log_precision)
        return self.var + (self.slope * self.log_precision_std) ** 2 + noise


def _conditioned(outputs: Outputs) -> _Conditioned:
    """Condition the mean on the log-precision, if their covariance is known."""
    mean, log_precision = jnp.split(outputs.mean, 2, axis=-1)
    var, log_precision_var = jnp.split(outputs.var, 2, axis=-1)
    slope = jnp.zeros_like(mean)
    if outputs.cov is not None:
        index = _half_indices(outputs)
        cov = outputs.cov[:, index[:, 0], index[:, 1]].reshape(mean.shape)
        slope = jnp.where(log_precision_var > 0, cov / log_precision_var, 0)
        var = jnp.maximum(var - slope * cov, 0)
    return _Conditioned(mean, var, slope, log_precision, jnp.sqrt(log_precision_var))


def _half_indices(outputs: Outputs) -> np.ndarray:
    """Return the flat indices of the means and of the log-precisions, `(rows, 2, C)`."""
    half = outputs.mean.shape[-1] // 2
    return np.arange(math.prod(outputs.mean.shape[1:])).reshape(-1, 2, half)


@jax.jit
def _log_prob(mixture: _Conditioned, y: Num[Array, "N *target"]) -> Float[Array, "N *target"]:
    r"""Integrate over $z = (\ell - \bar\ell) / s$ around the mode of the integrand.

    Outliers move the mode to small precisions. With r the residual and V the variance at z = 0, the
    density of y there is $e^{-r^2 / 2 V}$ of the highest that a variance of V allows. At z < 0 the
    variance is larger, so that a mode higher than the integrand at zero has $z^2 \le r^2 / V$; at
    z > 0 it is at most $e^{s z}$ times smaller, so that $z^2 - s z \le r^2 / V$.
    """
    std = mixture.log_precision_std

    def log_integrand(z):
        residual, var = mixture.residual_and_variance(y, mixture.log_precision + std * z)
        normal = residual**2 / var + jnp.log(2 * math.pi * var)
        return -0.5 * (normal + z**2 + math.log(2 * math.pi))

    residual, var = mixture.residual_and_variance(y, mixture.log_precision)
    distance = jnp.abs(residual) / jnp.sqrt(var)
    high = std / 2 + jnp.hypot(std / 2, distance)
    return log_integral_with_mode_between(log_integrand, -distance, high, _NUM_NODES)


@jax.jit
def _cdf(mixture: _Conditioned, y: Num[Array, "..."]) -> Float[Array, "..."]:
    return mixture.cdf(y)


@jax.jit
def _quantile(mixture: _Conditioned, q: Float[Array, "*levels"]) -> Float[Array, "..."]:
    """Bisect the bracket that Chebyshev's inequality gives."""
    mean, var = mixture.mean, mixture.variance()

    def solve(level):
        low = mean - jnp.sqrt(var * (1 - level) / level)
        return bisected(mixture.cdf, level, low, mean + jnp.sqrt(var * level / (1 - level)))

    return for_each_level(solve, q)
