"""The noise of a Gaussian likelihood, by the residuals at the mode."""

import math

import jax
import jax.numpy as jnp

from laplace_kit import tree
from laplace_kit.approx.noise import Residuals, residuals_of, with_scaled_noise
from laplace_kit.tune.posterior import PosteriorT


def noise_of_residuals(la: PosteriorT) -> PosteriorT:
    r"""Return the posterior with the noise of greatest likelihood at the mode, $s^2 = Q / M$.

    With Q the sum of the M squared residuals in units of the present noise, all standard deviations
    are multiplied by one factor. It leaves the prior precision and the temperature as they are, and
    does not count how many parameters were fitted to the residuals, as `evidence(la, noise=True)`
    does.

    Parameters
    ----------
    la
        With an unmasked `Gaussian` or `MultivariateGaussian` likelihood.

    Returns
    -------
    la
        Cost: one factorisation; no pass over the data, as Q follows from the log-likelihood.

    Raises
    ------
    TypeError
        If the likelihood is another.
    ValueError
        If the residuals are mere rounding next to the present noise.
    """
    return with_noise_of_residuals(la).refactorised()


def with_noise_of_residuals(la: PosteriorT) -> PosteriorT:
    """Return the same with the posterior left for the caller to make."""
    residuals = telling_residuals(la)
    return scaled(la, jnp.sqrt(residuals.squares / residuals.count))


def scaled(la: PosteriorT, factor: jax.Array) -> PosteriorT:
    """Multiply the noise's standard deviations; the posterior is left for the caller to make."""
    choice = la.record.choice
    likelihood, expansion = with_scaled_noise(
        *(la.likelihood, la.expansion, factor),
        event=choice.event,
        power=choice.curvature_spec.noise_power,
    )
    return tree.replace(la, likelihood=likelihood, expansion=expansion)


def telling_residuals(la: PosteriorT) -> Residuals:
    """Return the residuals if they are more than rounding next to the present noise.

    Raises
    ------
    ValueError
        If they are not.
    """
    residuals = residuals_of(la.likelihood, la.expansion, la.record.choice.event)
    size = math.sqrt(residuals.squares / residuals.count)
    if size < 10 * math.sqrt(jnp.finfo(residuals.squares.dtype).eps):
        raise ValueError(
            f"Found residuals of about {size:.1g} times the noise_std that the posterior was "
            "fitted with, which rounding hides: the model interpolates its training targets, or "
            "these are of a much smaller scale. Fit with lk.Gaussian(noise_std) near the size of "
            "the residuals, or train with weight decay; method='validation' with noise='keep' "
            "needs no residuals."
        )
    return residuals
