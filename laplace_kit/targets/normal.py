"""Normal targets: a Gaussian over the outputs, and known noise."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.targets.base import NumberTargets
from laplace_kit.targets.outputs import Outputs
from laplace_kit.tree import pytree_dataclass, replace


@pytree_dataclass()
class NormalTargets(NumberTargets):
    r"""Targets $\mathcal N(m, v + s^2)$, independent noise of variance $s^2$ on each output.

    Parameters
    ----------
    outputs
        With the mean m and the variance v.
    aleatoric_var
        $s^2$, of the outputs' shape.
    """

    outputs: Outputs
    aleatoric_var: Float[Array, "N *target"]

    is_normal = True

    @property
    def mean(self):
        """The mean of the targets."""
        return self.outputs.mean

    @property
    def epistemic_var(self):
        """The variance that comes from the weights."""
        return self.outputs.var

    @property
    def covariance(self):
        return None if self.outputs.cov is None else plus_diagonal(self.outputs.cov, self)

    def log_prob(self, y):
        return jax.scipy.stats.norm.logpdf(y, self.mean, jnp.sqrt(self.variance))

    def cdf(self, y):
        return jax.scipy.special.ndtr((y - self.mean) / jnp.sqrt(self.variance))

    def quantile(self, q):
        return normal_quantile(self, q)

    def sample(self, key, num_samples):
        return normal_sample(self, key, num_samples)

    def scaled(self, factor):
        noise = self.aleatoric_var * factor**2
        return replace(self, outputs=self.outputs.scaled(factor), aleatoric_var=noise)


def normal_quantile(targets: NumberTargets, q: Float[Array, "*levels"]) -> Float[Array, "..."]:
    """Return quantiles of the normal distribution with mean and variance of the targets."""
    z = jax.scipy.special.ndtri(q)
    levels = z.reshape(*z.shape, *(1,) * targets.mean.ndim)
    return targets.mean + jnp.sqrt(targets.variance) * levels


def normal_sample(targets: NormalTargets, key: Array, num_samples: int) -> Float[Array, "K N ..."]:
    """Draw outputs, jointly for each input if their covariance is known, and add the noise."""
    output_key, noise_key = jax.random.split(key)
    f = targets.outputs.sample(output_key, num_samples)
    noise = jax.random.normal(noise_key, f.shape, f.dtype)
    return f + jnp.sqrt(targets.aleatoric_var) * noise


def plus_diagonal(cov: Float[Array, "N C C"], targets: NumberTargets) -> Float[Array, "N C C"]:
    """Add the variance of independent noise to covariances of the targets' means."""
    noise = targets.aleatoric_var.reshape(len(cov), -1)
    return cov + noise[:, :, None] * jnp.eye(noise.shape[1], dtype=cov.dtype)
