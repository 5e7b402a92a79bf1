"""Diagnostics: numbers that show whether a posterior can be trusted."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from laplace_kit.approx.posterior import Posterior, Structure
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class Diagnostics:
    r"""Numbers to check before trusting a posterior.

    - `gradient_norm`: norm of the gradient of the log posterior at the mode; zero at the maximum
      a posteriori of this prior.
    - `smallest_eigenvalue`: of the curvature, as far as it is known.
    - `largest_residual`: of the eigenpairs, relative to the largest eigenvalue (low rank; else
      zero).
    - `effective_parameters`: $\operatorname{tr} H (H + d)^{-1}$.
    - `jitter`: the share by which the factorised matrix's diagonal was raised.
    - `condition_number`: of the posterior precision, an upper bound from the extreme eigenvalues of
      its two parts.
    - `mode_distance`: $\sqrt{g^\top (H + d)^{-1} g}$ with g that gradient, a second-order estimate
      of the distance of the parameters from the mode of this prior, in posterior standard
      deviations.
    - `prediction_shift`: $\sqrt{\delta^\top H \delta / (T \operatorname{tr} H (H + d)^{-1})}$ with
      the Newton step $\delta = -(H + d)^{-1} g$: how far a step to the mode of this prior would
      move the predictions of the training data, relative to how far a draw from the posterior
      moves them, both in the metric of the likelihood. H is the second derivative of the loss in
      the outputs, pulled back, so that half of $\delta^\top H \delta$ is, to second order, the
      divergence of the predictions before and after the step, and half of the denominator its
      expectation over the posterior.
    """

    gradient_norm: Float[Array, ""]
    smallest_eigenvalue: Float[Array, ""]
    largest_residual: Float[Array, ""]
    effective_parameters: Float[Array, ""]
    jitter: Float[Array, ""]
    condition_number: Float[Array, ""]
    mode_distance: Float[Array, ""]
    prediction_shift: Float[Array, ""]


def diagnose(
    structure: Structure,
    posterior: Posterior,
    *,
    gradient: Float[Array, " P"],
    precision: Float[Array, " P"],
    deviation: Float[Array, " P"],
    jitter: Float[Array, ""],
    temperature: Float[Array, ""],
) -> Diagnostics:
    r"""Return the diagnostics of a posterior.

    Parameters
    ----------
    structure, posterior
        The curvature, and the Gaussian posterior with this prior.
    gradient
        The gradient of the summed loss at the mode, `(P,)`.
    precision, deviation
        The prior precision $d$, and the mode minus the prior mean, `(P,)` each.
    jitter
        The share by which the diagonal was raised.
    temperature
        The factor of the posterior's covariance.

    Returns
    -------
    diagnostics
        Cost: the spectrum of the structure and the variances of the posterior.

    References
    ----------
    MacKay (1992), A practical Bayesian framework for backpropagation networks.
    """
    residuals = getattr(structure, "residuals", np.zeros(1, precision.dtype))
    return _diagnose(
        structure.spectrum(),
        residuals,
        posterior,
        gradient,
        precision,
        deviation,
        jitter,
        temperature,
    )


@jax.jit
def _diagnose(
    spectrum, residuals, posterior, gradient, precision, deviation, jitter, temperature
) -> Diagnostics:
    largest = spectrum.largest
    pull = gradient + precision * deviation
    lowest = jnp.maximum(spectrum.smallest, 0) + precision.min()
    effective = jnp.sum(1 - precision * posterior.variance() / temperature)
    whitened = posterior.scale_rmv(pull)
    step = posterior.scale_mv(whitened) / temperature
    moved = jnp.sum(step * (pull - precision * step))  # H step, from (H + d) step
    ratio = jnp.maximum(moved, 0) / jnp.maximum(
        temperature * effective, jnp.finfo(moved.dtype).tiny
    )
    return Diagnostics(
        gradient_norm=jnp.linalg.norm(pull),
        smallest_eigenvalue=spectrum.smallest,
        largest_residual=residuals.max() / jnp.maximum(largest, jnp.finfo(largest.dtype).tiny),
        effective_parameters=effective,
        jitter=jitter,
        condition_number=(largest + precision.max()) / lowest,
        mode_distance=jnp.linalg.norm(whitened) / jnp.sqrt(temperature),
        prediction_shift=jnp.sqrt(ratio),
    )
