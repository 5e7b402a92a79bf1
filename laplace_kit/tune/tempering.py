"""The temperature of a posterior, by the training data's evidence or by held-out data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from laplace_kit import tree
from laplace_kit.curv.mode import labelled
from laplace_kit.data import as_data
from laplace_kit.errors import warn
from laplace_kit.eval.functions import sample_functions
from laplace_kit.eval.moments import takes_many_passes
from laplace_kit.eval.predictive import predict, predict_at_mode
from laplace_kit.examples import first_examples
from laplace_kit.tune.criteria import Loss, as_loss
from laplace_kit.tune.line_search import minimise
from laplace_kit.tune.posterior import PosteriorT, as_tempered
from laplace_kit.tune.variational import (
    NODES,
    isotropic_prior_terms,
    prior_terms,
    temperature_by_draws,
    variational_temperature,
)

TEMPERATURES = (1e-6, 1e2)  # the smallest and the largest that a loss may choose
# Outputs of all examples by whose draws a temperature is tuned, and the most of one example: the
# likelihood is evaluated at each of them 2,112 times.
_OUTPUTS, _MOST_OUTPUTS = 2**18, 2**20


def temperature(
    la: PosteriorT,
    data: Any = None,
    *,
    loss: str | Loss = "nll",
    key: PRNGKeyArray | None = None,
) -> PosteriorT:
    r"""Return the posterior $\mathcal N(\theta^*, T (H + d)^{-1})$ with T tuned, at its own prior.

    Without data, T maximises the variational bound of the evidence, within $10^{-6}$ and one, on
    the up to 256 training examples that the posterior keeps. Where exact variances of the outputs
    would take more than 1024 passes through the model for an example, as those of all tokens of a
    vocabulary, the bound's expectation is over 16 draws of the linearised function, on as many of
    the examples as have $2^{18}$ outputs. With data, T minimises the loss of the
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
        Without data, if an example has more than $2^{20}$ outputs: the temperature is then one.
        With data, if their loss is smallest at a bound.

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
    objective, deviation = la.objective.planned(x), la.prior.deviation(la.model)
    many = takes_many_passes(objective)
    if many and objective.plan.num_outputs > _MOST_OUTPUTS:
        warn(
            f"Found {objective.plan.num_outputs} outputs for each example, expected at most "
            f"{_MOST_OUTPUTS} to tune a temperature by the training data: it stays one. Pass "
            "temperature=False, tune with held-out data, or choose the outputs that matter with "
            "lk.model.with_tokens."
        )
        return jnp.ones_like(la.prior.temperature)
    if tree.is_scalar(la.prior.precision):  # the spectrum is cached from tuning by the evidence
        prior = isotropic_prior_terms(structure.spectrum(), la.prior.precision, deviation)
    else:
        prior = prior_terms(la.posterior, la.prior.vector(la.model), deviation)
    if many:
        num = max(_OUTPUTS // objective.plan.num_outputs, 1)
        x, y, weights = first_examples(as_data(la.record.examples), num)
        chosen = jax.random.key(0) if key is None else key
        draws = sample_functions(objective, la.posterior, chosen, NODES)(x)
        mean = predict_at_mode(objective, x).f_mean
        return temperature_by_draws(la.likelihood, mean, draws, y, prior, num_data, weights)
    predictive = predict(objective, la.posterior, x)
    return variational_temperature(la.likelihood, predictive, y, prior, num_data, weights, key=key)


def check_examples(la: PosteriorT) -> None:
    """Raise a `ValueError` if a posterior has no training examples."""
    if la.record.examples is None:
        raise ValueError(
            "Found no training examples in this posterior, which was loaded from a file, expected "
            "some for the temperature: tune before saving, or pass temperature=False."
        )
