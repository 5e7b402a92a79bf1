"""The Gaussian likelihood with a full noise covariance over outputs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from laplace_kit import tree
from laplace_kit.host import fetch_array
from laplace_kit.likelihood.base import Likelihood, check_same_shape
from laplace_kit.targets.multivariate_normal import MultivariateNormalTargets
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class MultivariateGaussian(Likelihood):
    r"""Regression with correlated noise: $y \sim \mathcal N(f, \Sigma)$ over flattened outputs.

    $$-\log p(y \mid f) = \tfrac12 (y - f)^\top \Sigma^{-1} (y - f) + \tfrac12 \log |2 \pi \Sigma|$$

    With $\Sigma = R R^\top$, $R$ lower triangular, $L = \Sigma^{-1}$ has the root $S = R^{-\top}$.

    Parameters
    ----------
    noise_covariance
        $\Sigma$ `(C, C)`, symmetric and positive definite, over the C outputs of one example in
        the order of `f.reshape(-1)`; a leaf, so it can be differentiated.

    Raises
    ------
    ValueError
        If `noise_covariance` is not square, finite, symmetric and positive definite.
    """

    noise_covariance: Num[ArrayLike, "C C"]

    def __post_init__(self):
        if tree.is_concrete(self.noise_covariance):
            _check_covariance(self.noise_covariance)

    def negative_log_prob(self, f, y):
        factor = self._factor(f)
        residual = jnp.ravel(y - f).astype(factor.dtype)
        white = jax.scipy.linalg.solve_triangular(factor, residual, lower=True)
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
        loss = 0.5 * (jnp.sum(white**2) + log_det + residual.size * math.log(2 * math.pi))
        return loss.astype(f.dtype)

    def hessian_mv(self, f, y, u):
        factor = self._factor(f)
        white = jax.scipy.linalg.solve_triangular(
            factor, jnp.ravel(u).astype(factor.dtype), lower=True
        )
        product = jax.scipy.linalg.solve_triangular(factor, white, lower=True, trans="T")
        return product.reshape(f.shape).astype(f.dtype)

    def hessian_diagonal(self, f, y):
        factor = self._factor(f)
        identity = jnp.eye(f.size, dtype=factor.dtype)
        white = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
        return jnp.sum(white**2, axis=0).reshape(f.shape).astype(f.dtype)

    def hessian_sqrt_mv(self, f, y, w):
        factor = self._factor(f)
        product = jax.scipy.linalg.solve_triangular(
            factor, jnp.ravel(w).astype(factor.dtype), lower=True, trans="T"
        )
        return product.reshape(f.shape).astype(f.dtype)

    def sample(self, key, f):
        factor = self._factor(f)
        with jax.default_matmul_precision("highest"):
            noise = factor @ jax.random.normal(key, (f.size,), factor.dtype)
        return f + noise.reshape(f.shape).astype(f.dtype)

    def check_shapes(self, outputs, targets):
        check_same_shape("MultivariateGaussian", outputs, targets)
        num, expected = len(self.noise_covariance), math.prod(outputs[1:])
        if num != expected:
            raise ValueError(
                f"MultivariateGaussian: found a noise covariance of shape {(num, num)} for outputs "
                f"{outputs}, expected {(expected, expected)}, over the flattened outputs of one "
                "example; for the same noise everywhere use lk.Gaussian(noise_std)."
            )

    def is_valid(self, f, y):
        return jnp.isfinite(y).all()

    def targets(self, outputs):
        covariance = jnp.asarray(self.noise_covariance, outputs.mean.dtype)
        noise = jnp.diagonal(covariance).reshape(outputs.mean.shape[1:])
        noise = jnp.broadcast_to(noise, outputs.mean.shape)
        return MultivariateNormalTargets(outputs, covariance, noise)

    @property
    def support(self):
        return "finite numbers"

    def _factor(self, f) -> Float[Array, "C C"]:
        """Return the Cholesky factor of the covariance, in float32 or better."""
        covariance = jnp.asarray(self.noise_covariance, jnp.promote_types(f.dtype, jnp.float32))
        with jax.default_matmul_precision("highest"):
            return jnp.linalg.cholesky(covariance)


def _check_covariance(covariance: ArrayLike) -> None:
    dtype = jnp.promote_types(jnp.result_type(covariance), jnp.float32)  # that of the factor
    matrix = fetch_array(covariance, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(
            f"Found a noise covariance of shape {matrix.shape}, expected (C, C) for C outputs; for "
            "standard deviations use lk.Gaussian(noise_std)."
        )
    if not np.isfinite(matrix).all() or np.diag(matrix).min() <= 0:
        raise ValueError(
            f"Found a noise covariance with the variances {np.diag(matrix)}, expected finite "
            "covariances and positive variances; check how they were estimated."
        )
    # Whatever the units, the Cholesky factor is as accurate as that of the correlation matrix.
    std = np.sqrt(np.diag(matrix))
    correlation = matrix / np.outer(std, std)
    rounding = len(matrix) * float(jnp.finfo(dtype).eps)
    skew = np.abs(correlation - correlation.T)
    if skew.max() > rounding:
        row, column = sorted(np.unravel_index(np.argmax(skew), skew.shape))
        raise ValueError(
            f"Found a noise covariance that is not symmetric: {matrix[row, column]:.6g} at "
            f"({row}, {column}), {matrix[column, row]:.6g} at ({column}, {row}), expected a "
            "symmetric matrix; pass (S + S.T) / 2."
        )
    smallest = np.linalg.eigvalsh(correlation)[0]
    if smallest <= rounding:
        raise ValueError(
            "Found a noise covariance that is not positive definite: the smallest eigenvalue of "
            f"its correlations is {smallest:.3g}, expected it above {rounding:.2g}; add a multiple "
            "of the identity, and pass covariances, not precisions."
        )
