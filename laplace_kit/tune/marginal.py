"""The prior precision, and the noise, by the evidence."""

from laplace_kit.tune.fixed_point import maximise_evidence
from laplace_kit.tune.noise import scaled, telling_residuals
from laplace_kit.tune.posterior import PosteriorT, as_tuned, untempered


def evidence(
    la: PosteriorT,
    *,
    per_leaf: bool = False,
    noise: bool = False,
    bounds: tuple[float, float] = (1e-4, 1e6),
) -> PosteriorT:
    """Return the posterior with the prior precision that maximises the marginal likelihood.

    Parameters
    ----------
    la
        The posterior; its own prior precision is ignored. Its temperature becomes one, as a
        temperature belongs to one prior.
    per_leaf
        One precision for every leaf instead of one for all parameters.
    noise
        Maximise over the noise of a Gaussian likelihood too, which can mislead if the mode was
        trained with a different noise.
    bounds
        The smallest and the largest precision to consider.

    Returns
    -------
    la
        The new posterior, with the visited precisions in `la.tuning`. Cost: that of
        `maximise_evidence` and one factorisation; no pass over the data.

    Raises
    ------
    TypeError
        If the noise is to be tuned and the likelihood is not Gaussian.
    ValueError
        If the evidence has no maximum within the bounds, such as for an indefinite curvature.

    Warns
    -----
    UserWarning
        If the best precision lies at a bound, or the evidence is flat.

    References
    ----------
    MacKay (1992), A practical Bayesian framework for backpropagation networks. Immer et al. (2021),
    Scalable marginal likelihood estimation for model selection in deep learning.
    """
    found = maximise_evidence(
        la.expansion.structure,
        la.prior.deviation(la.model),
        la.model.mode,
        per_leaf=per_leaf,
        bounds=bounds,
        residuals=telling_residuals(la) if noise else None,
        noise_power=la.record.choice.curvature_spec.noise_power,
        jitter=la.record.jitter,
    )
    la = untempered(scaled(la, found.noise_scale) if noise else la)
    return as_tuned(la, found)
