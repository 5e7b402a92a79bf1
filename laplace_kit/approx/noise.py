r"""Change the noise of a Gaussian likelihood without a pass over the data.

A common factor of all noise standard deviations rescales every sum over the data: the curvature,
the gradient, and the squared residuals in the log-likelihood, whose normaliser is known.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from laplace_kit import tree
from laplace_kit.approx.update import Expansion
from laplace_kit.likelihood import Gaussian, Likelihood, MultivariateGaussian
from laplace_kit.likelihood.masked import with_mask_of, without_mask

GAUSSIANS = Gaussian | MultivariateGaussian


class Residuals(NamedTuple):
    r"""The observed residuals of a Gaussian likelihood, in units of its present variance.

    With all noise variances multiplied by $e^w$ the log-likelihood is $-\tfrac12 (e^{-w} Q + M w)$
    plus a constant, with Q the sum of squared residuals (`squares`) and M their number (`count`).
    """

    squares: Float[ArrayLike, ""]
    count: Float[ArrayLike, ""]

    def log_likelihood(self, w: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return the log-likelihood minus its value at w = 0."""
        return -0.5 * (jnp.expm1(-w) * self.squares + self.count * w)


def residuals_of(likelihood: Likelihood, expansion: Expansion, event: tuple[int, ...]) -> Residuals:
    """Return the residuals at the mode, from the log-likelihood and its normaliser.

    Parameters
    ----------
    likelihood
        `Gaussian`, masked or not, or `MultivariateGaussian`.
    expansion
        The log-likelihood at the mode, and the numbers of examples and of observed entries.
    event
        The shape of one example's outputs.

    Raises
    ------
    TypeError
        If the likelihood is any other.
    ValueError
        If the likelihood has a mask and the expansion no numbers of observed entries.
    """
    kind = gaussian_of(likelihood)
    count = expansion.num_data * math.prod(event)
    if isinstance(kind, MultivariateGaussian):
        _, log_det = jnp.linalg.slogdet(jnp.asarray(kind.noise_covariance))
        log_variances = log_det * expansion.num_data
    else:
        log_stds = jnp.broadcast_to(jnp.log(jnp.asarray(kind.noise_std)), event)
        log_variances = 2 * jnp.sum(log_stds) * expansion.num_data
        if kind is not likelihood:
            observed = _num_entries(expansion)
            count, log_variances = jnp.sum(observed), 2 * jnp.sum(log_stds * observed)
    normaliser = 0.5 * (count * math.log(2 * math.pi) + log_variances)
    squares = jnp.maximum(-2 * (expansion.log_likelihood + normaliser), 0)
    return Residuals(squares, jnp.asarray(count, squares.dtype))


def noise_factor(likelihood: Likelihood, noise_std: ArrayLike) -> jax.Array:
    """Return the factor from the noise of the likelihood to another one.

    Raises
    ------
    TypeError, ValueError
        If the likelihood is not `Gaussian`, or the noise is not positive and proportional to that
        of the likelihood.
    """
    kind = gaussian_of(likelihood)
    if isinstance(kind, MultivariateGaussian):
        raise TypeError(
            "Found a MultivariateGaussian likelihood, expected Gaussian, whose noise is a standard "
            "deviation; fit again with another covariance, or tune(noise='residuals')."
        )
    new, old = jnp.asarray(noise_std), jnp.asarray(kind.noise_std)
    in_proportion = new.shape in ((), old.shape)
    ratio = jnp.ravel(new / old) if in_proportion else None
    if in_proportion and tree.is_concrete(ratio):
        in_proportion = np.all(ratio > 0) and np.allclose(ratio, ratio[0], rtol=1e-5)
    if not in_proportion:
        raise ValueError(
            f"Found noise_std={noise_std} for a likelihood with noise_std={kind.noise_std}, "
            "expected positive numbers proportional to these, so that every sum over the data is "
            "only rescaled; fit again with the other noise."
        )
    return ratio[0]


def with_scaled_noise(
    likelihood: Likelihood,
    expansion: Expansion,
    factor: jax.Array,
    *,
    event: tuple[int, ...],
    power: int = 1,
) -> tuple[Likelihood, Expansion]:
    """Return likelihood and expansion with the noise's standard deviations multiplied by a factor.

    Parameters
    ----------
    likelihood, expansion, event
        As for `residuals_of`, with the same error.
    factor
        Positive.
    power
        The power of $1/s^2$ to which the curvature is proportional: `noise_power` of its spec.
    """
    kind = gaussian_of(likelihood)
    factor = jnp.asarray(factor, expansion.log_likelihood.dtype)
    if isinstance(kind, MultivariateGaussian):
        scaled = MultivariateGaussian(kind.noise_covariance * factor**2)
    else:
        scaled = with_mask_of(likelihood, Gaussian(kind.noise_std * factor, known=kind.known))
    gained = residuals_of(likelihood, expansion, event).log_likelihood(2 * jnp.log(factor))
    return scaled, tree.replace(
        expansion,
        structure=expansion.structure.scaled(factor ** (-2 * power)),
        log_likelihood=expansion.log_likelihood + gained,
        gradient=expansion.gradient / factor**2,
    )


def with_known_noise(likelihood: Likelihood) -> Likelihood:
    """Return a `Gaussian` likelihood, masked or not, with its noise marked as known."""
    return with_mask_of(likelihood, tree.replace(gaussian_of(likelihood), known=True))


def gaussian_of(likelihood: Likelihood) -> GAUSSIANS:
    """Return the Gaussian likelihood, without its mask if it has one.

    Raises
    ------
    TypeError
        If the likelihood is any other.
    """
    kind = without_mask(likelihood)
    if isinstance(kind, GAUSSIANS):
        return kind
    raise TypeError(
        f"Found a {type(kind).__name__} likelihood, expected lk.Gaussian or "
        "lk.MultivariateGaussian, whose noise can be tuned; pass noise='keep' or leave it out."
    )


def _num_entries(expansion: Expansion) -> Float[jax.Array, "*entries"]:
    if expansion.num_entries is None:
        raise ValueError(
            "Found a posterior of masked targets without the numbers of observed entries, expected "
            "them for the noise; it was saved by an earlier version: fit it again."
        )
    return expansion.num_entries.astype(expansion.log_likelihood.dtype)
