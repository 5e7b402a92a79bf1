"""The noise of a Gaussian likelihood, by the residuals at the mode."""

import math

import jax
import jax.numpy as jnp

from laplace_kit import tree
from laplace_kit.approx.noise import Residuals, residuals_of, with_scaled_noise
from laplace_kit.tune.posterior import PosteriorT


def noise_of_residuals(la: PosteriorT) -> PosteriorT:
    r"""Return the posterior with the noise of greatest likelihood at the mode, $s^2 = Q / M$.

    Q is the sum of the M squared observed residuals in units of the present noise; all standard
    deviations are multiplied by one factor. Prior precision and temperature do not change. Unlike
    `evidence(la, noise=True)`, it does not account for the number of parameters fitted to the
    residuals.

    Parameters
    ----------
    la
        A posterior with a `Gaussian` likelihood, masked or not, or a `MultivariateGaussian` one.

    Returns
    -------
    la
        Cost: one factorisation; no pass over the data, as Q follows from the log-likelihood.

    Raises
    ------
    TypeError
        If the likelihood is any other.
    ValueError
        If the residuals are not larger than rounding relative to the present noise.
    """
    return with_noise_of_residuals(la).refactorised()


def with_noise_of_residuals(la: PosteriorT) -> PosteriorT:
    """Return the same without the new posterior, which the caller recomputes."""
    residuals = telling_residuals(la)
    return scaled(la, jnp.sqrt(residuals.squares / residuals.count))


def scaled(la: PosteriorT, factor: jax.Array) -> PosteriorT:
    """Multiply the noise's standard deviations; the caller recomputes the posterior."""
    choice = la.record.choice
    likelihood, expansion = with_scaled_noise(
        *(la.likelihood, la.expansion, factor),
        event=choice.event,
        power=choice.curvature_spec.noise_power,
    )
    return tree.replace(la, likelihood=likelihood, expansion=expansion)


def telling_residuals(la: PosteriorT) -> Residuals:
    """Return the residuals at the mode, larger than rounding; otherwise raise a `ValueError`."""
    residuals = residuals_of(la.likelihood, la.expansion, la.record.choice.event)
    size = math.sqrt(residuals.squares / residuals.count)
    if size < 10 * math.sqrt(jnp.finfo(residuals.squares.dtype).eps):
        raise ValueError(
            f"Found residuals of about {size:.1g} times the noise_std that the posterior was "
            "fitted with, which is below rounding: the model interpolates its training targets, or "
            "their scale is much smaller. Fit with lk.Gaussian(noise_std) near the size of the "
            "residuals, or train with weight decay; method='validation' with noise='keep' needs no "
            "residuals."
        )
    return residuals
