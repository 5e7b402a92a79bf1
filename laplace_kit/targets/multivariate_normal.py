"""Multivariate normal targets: a Gaussian over the outputs, and correlated noise."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.targets.base import NumberTargets
from laplace_kit.targets.normal import normal_quantile
from laplace_kit.targets.outputs import Outputs
from laplace_kit.tree import pytree_dataclass, replace


@pytree_dataclass()
class MultivariateNormalTargets(NumberTargets):
    r"""Targets $\mathcal N(m, S + \Sigma)$ over the flattened outputs of each input.

    `log_prob` and `whitened` are joint over the outputs of an example; `cdf` and `quantile` are
    marginal for each output. Without covariances of the outputs, S is treated as diagonal.

    Parameters
    ----------
    outputs
        With mean m and covariance S.
    noise_covariance
        $\Sigma$ `(C, C)`, the same for all inputs.
    aleatoric_var
        Its diagonal, for each input.
    """

    outputs: Outputs
    noise_covariance: Float[Array, "C C"]
    aleatoric_var: Float[Array, "N *target"]

    shared = ("noise_covariance",)
    is_normal = True
    is_joint = True

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
        return None if self.outputs.cov is None else self.outputs.cov + self.noise_covariance

    def log_prob(self, y):
        white, factor = self._whitened(y)
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)
        num_outputs = white.shape[1]
        return -0.5 * (jnp.sum(white**2, axis=1) + log_det + num_outputs * math.log(2 * math.pi))

    def cdf(self, y):
        return jax.scipy.special.ndtr((y - self.mean) / jnp.sqrt(self.variance))

    def quantile(self, q):
        return normal_quantile(self, q)

    def sample(self, key, num_samples):
        output_key, noise_key = jax.random.split(key)
        f = self.outputs.sample(output_key, num_samples)
        z = jax.random.normal(noise_key, (*f.shape[:2], len(self.noise_covariance)), f.dtype)
        with jax.default_matmul_precision("highest"):
            noise = z @ jnp.linalg.cholesky(self.noise_covariance).T
        return f + noise.reshape(f.shape)

    def whitened(self, y):
        return self._whitened(y)[0].reshape(y.shape)

    def scaled(self, factor):
        return replace(
            self,
            outputs=self.outputs.scaled(factor),
            noise_covariance=self.noise_covariance * factor**2,
            aleatoric_var=self.aleatoric_var * factor**2,
        )

    def _whitened(self, y) -> tuple[Float[Array, "N C"], Float[Array, "N C C"]]:
        """Return residuals whitened by their covariances, and the covariances' Cholesky factors."""
        residual = (y - self.mean).reshape(len(y), -1)
        cov = self.outputs.cov
        if cov is None:
            cov = jax.vmap(jnp.diag)(self.outputs.var.reshape(residual.shape))
        with jax.default_matmul_precision("highest"):
            factor = jnp.linalg.cholesky(cov + self.noise_covariance)
            white = jax.scipy.linalg.solve_triangular(factor, residual[..., None], lower=True)
        return white[..., 0], factor
