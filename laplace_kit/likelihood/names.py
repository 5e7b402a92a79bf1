"""Likelihoods by name."""

from laplace_kit.errors import check_option
from laplace_kit.likelihood.base import Likelihood
from laplace_kit.likelihood.classification import Bernoulli, Categorical
from laplace_kit.likelihood.counts import Poisson
from laplace_kit.likelihood.gaussian import Gaussian, HeteroscedasticGaussian

_BY_NAME = {
    "gaussian": Gaussian,
    "heteroscedastic_gaussian": HeteroscedasticGaussian,
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "poisson": Poisson,
}


def as_likelihood(likelihood: object) -> Likelihood:
    """Return the likelihood object for a name such as `"categorical"`, or the object itself.

    Raises
    ------
    ValueError
        If the name is unknown (the nearest known one is named).
    TypeError
        If it is neither a name nor a `Likelihood`.
    """
    if isinstance(likelihood, str):
        return _BY_NAME[check_option("likelihood", likelihood, _BY_NAME)]()
    if isinstance(likelihood, Likelihood):
        return likelihood
    raise TypeError(
        f"Found likelihood of type {type(likelihood).__name__}, expected an object such as "
        f"lk.Categorical() or one of {', '.join(map(repr, _BY_NAME))}; wrap a loss function as "
        "lk.FromLoss(loss)."
    )
