"""The temperature of a posterior, by the training data's evidence or by held-out data."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PRNGKeyArray

from laplace_kit import tree
from laplace_kit.curv.mode import labelled
from laplace_kit.errors import warn
from laplace_kit.eval.predictive import predict
from laplace_kit.tune.criteria import Loss, as_loss
from laplace_kit.tune.line_search import minimise
from laplace_kit.tune.posterior import PosteriorT, as_tempered
from laplace_kit.tune.variational import (
    isotropic_prior_terms,
    prior_terms,
    variational_temperature,
)

TEMPERATURES = (1e-6, 1e2)  # the smallest and the largest that a loss may choose


def temperature(
    la: PosteriorT,
    data: Any = None,
    *,
    loss: str | Loss = "nll",
    key: PRNGKeyArray | None = None,
) -> PosteriorT:
    r"""Return the posterior $\mathcal N(\theta^*, T (H + d)^{-1})$ with T tuned, at its own prior.

    Without data, T maximises the variational bound of the evidence, within $10^{-6}$ and one, on
    the up to 256 training examples that the posterior keeps. With data, T minimises the loss of the
    default predictive, within $10^{-6}$ and 100.

    Parameters
    ----------
    la
        The posterior; its own temperature is ignored.
    data
        Held-out `(x, y)`, used neither for training nor for testing, or an iterable of such pairs,
        iterated once; `None` for the bound.
    loss
        As in `held_out`; only with data.
    key
        With data, for predictives that draw samples. Without data, it draws the nodes of the
        expectation; by default they are fixed, see `variational_temperature`.

    Returns
    -------
    la
        The new posterior. Cost: without data, one prediction of the kept examples; with data, about
        20 factorisations and predictions.

    Raises
    ------
    TypeError, ValueError
        If the data do not suit the model, the loss is unknown or not defined for the likelihood,
        or there are neither data nor training examples, as in a posterior from a file.

    Warns
    -----
    UserWarning
        If the loss of held-out data is smallest at a bound.

    References
    ----------
    Opper and Archambeau (2009), The variational Gaussian approximation revisited. Wenzel et al.
    (2020), How good is the Bayes posterior in deep neural networks really?
    """
    if data is None:
        return as_tempered(la, _by_variational_bound(la, key))
    x, y, weights = labelled(la.objective, data)
    score = as_loss(loss, la.likelihood)

    def loss_at(value: float) -> float:
        return score(la.with_temperature(value).predict(x, key=key), y, weights)

    return as_tempered(la, best_temperature(loss_at))


def best_temperature(loss: Callable[[float], float]) -> float:
    """Return the temperature of smallest loss; warn if it lies at a bound."""
    low, high = TEMPERATURES
    best, _, _ = minimise(loss, low, high)
    if not low * 1.05 < best < high / 1.05:
        warn(
            f"The held-out loss is smallest at a bound of the temperature ({TEMPERATURES}): the "
            "data hardly determine it, or the parameters are not near a mode. Train further, or "
            "set it yourself by la.with_temperature."
        )
    return best


def _by_variational_bound(la: PosteriorT, key: PRNGKeyArray | None):
    """Return the temperature that maximises the bound, from the kept training examples."""
    check_examples(la)
    if float(la.prior.temperature) != 1:
        la = la.with_temperature(1.0)
    x, y, weights = la.record.examples
    structure, num_data = la.expansion.structure, la.expansion.num_data
    predictive, deviation = predict(la.objective, la.posterior, x), la.prior.deviation(la.model)
    if tree.is_scalar(la.prior.precision):  # the spectrum is cached from tuning by the evidence
        prior = isotropic_prior_terms(structure.spectrum(), la.prior.precision, deviation)
    else:
        prior = prior_terms(la.posterior, la.prior.vector(la.model), deviation)
    return variational_temperature(la.likelihood, predictive, y, prior, num_data, weights, key=key)


def check_examples(la: PosteriorT) -> None:
    """Raise a `ValueError` if a posterior has no training examples."""
    if la.record.examples is None:
        raise ValueError(
            "Found no training examples in this posterior, which was loaded from a file, expected "
            "some for the temperature: tune before saving, or pass temperature=False."
        )
