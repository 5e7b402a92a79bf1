"""The interface of a posterior that can be tuned, through which this package uses `Laplace`."""

from typing import Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from laplace_kit import tree
from laplace_kit.approx.posterior import Posterior
from laplace_kit.approx.prior import Prior
from laplace_kit.approx.update import Expansion
from laplace_kit.curv.objective import Objective
from laplace_kit.curv.trained_model import TrainedModel
from laplace_kit.eval.link import Link
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.predictive import Prediction
from laplace_kit.likelihood import Likelihood
from laplace_kit.record import Record
from laplace_kit.tune.result import Tuning

_Self = TypeVar("_Self")  # beartype knows `typing.Self` only in classes that it decorates


@runtime_checkable
class Tunable(Protocol):
    """A posterior whose noise, prior and temperature can be changed, such as a `Laplace`."""

    model: TrainedModel
    likelihood: Likelihood
    expansion: Expansion
    prior: Prior
    posterior: Posterior
    prediction: Prediction
    record: Record

    @property
    def objective(self) -> Objective:
        """The model as a function of its free parameters, and the likelihood."""

    def with_prior(self: _Self, prior_precision: PyTree) -> _Self:
        """Return the posterior for another prior precision."""

    def with_temperature(self: _Self, temperature: float | Float[Array, ""]) -> _Self:
        """Return the posterior at another temperature."""

    def with_prediction(self: _Self, *, link: Link | None = None) -> _Self:
        """Return the posterior with another link for its predictions."""

    def refactorised(self: _Self) -> _Self:
        """Return the same with its posterior recomputed from structure, prior and temperature."""

    def predict(self, x: PyTree, *, key: PRNGKeyArray | None = None) -> Predictive:
        """Return the predictive distribution at inputs."""


PosteriorT = TypeVar("PosteriorT", bound=Tunable)


def untempered(la: PosteriorT) -> PosteriorT:
    """Return the same with a temperature of one; the caller recomputes the posterior."""
    prior = la.prior
    one = jnp.ones_like(prior.temperature)
    return tree.replace(la, prior=tree.replace(prior, temperature=one))


def as_tuned(la: PosteriorT, found: Tuning) -> PosteriorT:
    """Return the posterior with the tuned prior precision, and record the tuning."""
    prior = tree.replace(la.prior, precision=found.prior_precision)
    la = tree.replace(la, prior=prior).refactorised()
    return tree.replace(la, record=tree.replace(la.record, tuning=found))


def as_tempered(la: PosteriorT, temperature: float | Float[Array, ""]) -> PosteriorT:
    """Return the posterior at a temperature, recorded if the prior was tuned."""
    la = la.with_temperature(temperature)
    tuning = la.record.tuning
    tuning = tuning and tree.replace(tuning, temperature=la.prior.temperature)
    return tree.replace(la, record=tree.replace(la.record, tuning=tuning))
