r"""The evidence at the mode, $\log p(D \mid d)$, as a differentiable function of the prior."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.approx.posterior import Spectrum, Structure
from laplace_kit.approx.prior import structure_for


@jax.jit
def log_evidence(
    log_likelihood: Float[Array, ""],
    structure: Structure,
    precision: Float[Array, " P"],
    deviation: Float[Array, " P"],
    jitter: float | Float[Array, ""] = 0.0,
) -> Float[Array, ""]:
    r"""Return the Laplace approximation of the log marginal likelihood.

    $$\sum_n \log p(y_n \mid f_n) + \tfrac12 \log|d| - \tfrac12 (\theta^* - \theta_0)^\top d\,
    (\theta^* - \theta_0) - \tfrac12 \log|H + d|$$

    Exact for a linear model with a Gaussian likelihood at its maximum a posteriori.

    Parameters
    ----------
    log_likelihood
        Summed over the data, at the mode, with all normalisers.
    structure
        The curvature $H$ of the summed loss.
    precision
        The prior precision $d$, `(P,)`.
    deviation
        $\theta^* - \theta_0$, the mode minus the prior mean, `(P,)`.
    jitter
        The share by which the factorised matrix's diagonal is raised; see `factorise`.

    Returns
    -------
    evidence
        In nats. Cost: that of `structure.log_det`.

    References
    ----------
    MacKay (1992), A practical Bayesian framework for backpropagation networks. Immer et al. (2021),
    Scalable marginal likelihood estimation for model selection in deep learning.
    """
    fit = jnp.sum(jnp.log(precision)) - jnp.sum(precision * deviation**2)
    return log_likelihood + 0.5 * (fit - structure.log_det(precision, jitter))


@jax.jit
def log_evidence_isotropic(
    log_likelihood: Float[Array, ""],
    spectrum: Spectrum,
    delta: Float[Array, ""],
    squared_deviation: Float[Array, ""],
) -> Float[Array, ""]:
    r"""Return the log evidence for $d = \delta I$, in $O(P)$ from the eigenvalues of $H$."""
    fit = spectrum.size * jnp.log(delta) - delta * squared_deviation
    return log_likelihood + 0.5 * (fit - spectrum.log_det(delta))


def log_evidence_of(
    log_likelihood: Float[Array, ""],
    structure: Structure,
    prior_precision: PyTree,
    precision: Float[Array, " P"],
    deviation: Float[Array, " P"],
    jitter: float | Float[Array, ""] = 0.0,
) -> Float[Array, ""]:
    """Return the log evidence by the method that suits the form of the prior precision.

    Parameters
    ----------
    log_likelihood, structure, deviation, jitter
        As for `log_evidence`.
    prior_precision, precision
        The prior precision as it was given, and as one value per parameter.
    """
    if tree.is_scalar(prior_precision):  # the spectrum suffices, and is accurate for small values
        delta = jnp.asarray(prior_precision, precision.dtype)
        squared = jnp.sum(deviation**2)
        return log_evidence_isotropic(log_likelihood, structure.spectrum(), delta, squared)
    structure = structure_for(structure, prior_precision, precision)
    return log_evidence(log_likelihood, structure, precision, deviation, jitter)
