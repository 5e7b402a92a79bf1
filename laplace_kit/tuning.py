"""`tune`: noise, prior precision and temperature of a posterior, one after the other."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from laplace_kit import tree
from laplace_kit.approx.evidence import log_evidence, log_evidence_isotropic
from laplace_kit.approx.prior import structure_for
from laplace_kit.curv.mode import examine_mode, labelled
from laplace_kit.data import InMemory
from laplace_kit.errors import check_option
from laplace_kit.eval.link import Link
from laplace_kit.eval.predictive import Predictive, from_moments, predict
from laplace_kit.eval.temperature import (
    isotropic_prior_terms,
    prior_terms,
    variational_temperature,
)
from laplace_kit.eval.tune import Residuals, Tuning, tune_evidence
from laplace_kit.eval.validation import (
    Fold,
    cross_validated,
    held_out_loss,
    minimise,
    split_folds,
    tune_validation,
)
from laplace_kit.likelihood import Categorical, Gaussian, MultivariateGaussian, unmasked

if TYPE_CHECKING:
    from laplace_kit.laplace import Laplace

METHODS = ("evidence", "validation", "cross_validation")
NOISES = ("keep", "residuals", "evidence")
_TEMPERATURES = (1e-6, 1e2)
# In closed form, of the same moments; the bridge hardly depends on how wide the posterior is.
_LINKS = ("probit", "mean_field_1", "mean_field_2")


class Request(NamedTuple):
    """What `Laplace.tune` was asked for; see there."""

    method: str | None
    objective: str | Callable
    per_leaf: bool
    noise: str | None
    temperature: bool | None
    link: Link | None
    num_folds: int
    bounds: tuple[float, float]
    key: PRNGKeyArray | None


def tune(la: "Laplace", request: Request, data: Any) -> "Laplace":
    """Return the posterior as `Laplace.tune` describes."""
    if request.link is not None:
        prediction = dataclasses.replace(la.prediction, link=request.link)
        la = tree.replace(la, prediction=prediction)
    method = request.method or ("evidence" if data is None else "validation")
    _check(la, request, method, data)
    noise = request.noise or ("keep" if la.knows_noise else "residuals")
    if noise == "residuals":
        la = scale_noise(la, _noise_of_residuals(la))
    la = tree.replace(la, temperature=jnp.ones_like(la.temperature))
    if method == "evidence":
        return _by_evidence(la, request, noise)
    x, y = labelled(la.objective, data)
    loss = held_out_loss(request.objective, la.likelihood)
    if method == "validation":
        return _by_validation(la, x, y, loss, request)
    return _by_folds(la, x, y, loss, request)


def _by_validation(la: "Laplace", x: Any, y: Any, loss: Callable, request: Request) -> "Laplace":
    """Choose precision, link and temperature by the loss of held-out data."""

    def of_precision(prior_precision: float) -> float:
        return min(_by_link(la.with_prior(prior_precision), x, y, loss, request.key).values())

    found = tune_validation(of_precision, bounds=request.bounds, method="validation")
    tuned = la.with_prior(found.prior_precision)
    losses = _by_link(tuned, x, y, loss, request.key)
    prediction = dataclasses.replace(la.prediction, link=min(losses, key=losses.get))
    tuned = tree.replace(tuned, prediction=prediction)
    if request.temperature:

        def of_temperature(temperature: float) -> float:
            return loss(_predict(tuned.with_temperature(temperature), x, request.key), y)

        best, _, _ = minimise(of_temperature, *_TEMPERATURES)
        tuned = tuned.with_temperature(best)
    return _noted(tuned, found)


def _by_folds(la: "Laplace", x: Any, y: Any, loss: Callable, request: Request) -> "Laplace":
    """Choose precision and temperature by the loss of folds that are predicted without themselves.

    In-sample, where the posterior was fitted, nearly no uncertainty at all would be the best.
    """
    of_folds = _of_folds(la, x, y, loss, request)
    found = tune_validation(of_folds, bounds=request.bounds, method="cross_validation")
    tuned = la.with_prior(found.prior_precision)
    if request.temperature:
        best, _, _ = minimise(partial(of_folds, float(found.prior_precision)), *_TEMPERATURES)
        tuned = tuned.with_temperature(best)
    return _noted(tuned, found)


def _by_link(
    la: "Laplace", x: Any, y: Any, loss: Callable, key: PRNGKeyArray | None
) -> dict[Link | None, float]:
    """Return the loss under the posterior's link, or under every one that is to be chosen from."""
    predictive = _predict(la, x, key)
    kind, _ = unmasked(la.likelihood, (None,))
    is_open = la.prediction.link is None and la.prediction.method == "linearized"
    if not (is_open and isinstance(kind, Categorical)):
        return {la.prediction.link: loss(predictive, y)}
    losses = {}
    for link in _LINKS:
        moments = predictive.f_mean, predictive.f_var, predictive.f_cov
        again = from_moments(la.likelihood, *moments, link=link, key=None, num_samples=2)
        value = loss(again, y)
        losses[link] = value if math.isfinite(value) else math.inf
    return losses


def _by_evidence(la: "Laplace", request: Request, noise: str) -> "Laplace":
    joint = noise == "evidence"
    found = tune_evidence(
        la.structure,
        la.deviation,
        la.mode,
        per_leaf=request.per_leaf,
        bounds=request.bounds,
        residuals=_telling_residuals(la) if joint else None,
        noise_power=_noise_power(la),
        jitter=la.jitter,
    )
    if joint:
        la = scale_noise(la, found.noise_scale)
    la = tree.replace(la, prior_precision=found.prior_precision).refactorised()
    wanted = not _is_gaussian(la) if request.temperature is None else request.temperature
    if wanted and la.examples is None:
        warnings.warn(
            "Found no training examples in this posterior, which was loaded from a file: its "
            "temperature stays one. Tune before saving, or pass temperature=False.",
            stacklevel=4,
        )
    elif wanted:
        la = la.with_temperature(_variational(la))
    return _noted(la, found)


def _noted(la: "Laplace", found: Tuning) -> "Laplace":
    return tree.replace(la, tuning=tree.replace(found, temperature=la.temperature))


def _check(la: "Laplace", request: Request, method: str, data: Any) -> None:
    check_option("method", method, METHODS)
    check_option("noise", request.noise or "keep", NOISES)
    if (method == "evidence") != (data is None) or (request.per_leaf and method != "evidence"):
        raise ValueError(
            f"Found method={method!r} with data={'None' if data is None else 'given'} and "
            f"per_leaf={request.per_leaf}, expected method='validation' with held-out data and one "
            "precision for all, method='cross_validation' with the training data, or "
            "method='evidence' without data."
        )
    if request.noise in ("residuals", "evidence"):
        _gaussian(la)
    if request.noise == "evidence" and method != "evidence":
        raise ValueError(
            f"Found noise='evidence' with method={method!r}, expected method='evidence', which "
            "maximises over both; or take noise='residuals'."
        )
    if method == "evidence" and request.temperature and la.examples is None:
        raise ValueError(
            "Found no training examples in this posterior, which was loaded from a file, expected "
            "some for the temperature: tune before saving, or pass temperature=False."
        )


def _predict(la: "Laplace", x: Any, key: PRNGKeyArray | None) -> Predictive:
    return la.predict(x, key=key)


def _is_gaussian(la: "Laplace") -> bool:
    kind, _ = unmasked(la.likelihood, (None,))
    return isinstance(kind, Gaussian | MultivariateGaussian)


def _variational(la: "Laplace") -> jax.Array:
    """Return the temperature by the variational bound, from the training examples that are kept."""
    x, y = la.examples
    predictive = predict(la.objective, la.posterior, x)
    if tree.is_scalar(la.prior_precision):  # as the evidence, which has asked for the spectrum
        prior = isotropic_prior_terms(la.structure.spectrum(), la.prior_precision, la.deviation)
    else:
        prior = prior_terms(la.posterior, la.expand(la.prior_precision), la.deviation)
    return variational_temperature(la.likelihood, predictive, y, prior, la.num_data)


def _of_folds(la: "Laplace", x: Any, y: Any, loss: Callable, request: Request) -> Callable:
    """Fit every fold's complement and return the loss by prior precision and temperature."""
    objective, folds = la.objective.planned(x), []
    for rest, (fold_x, fold_y) in split_folds(x, y, request.num_folds):
        others = InMemory(*rest)
        gradient = examine_mode(objective, others).gradient
        structure = la.choice.with_key(request.key).fit(objective, others, request.key)
        folds.append(Fold(fold_x, fold_y, structure, gradient.astype(la.gradient.dtype)))

    def predict_fold(moved, posterior, inputs) -> Predictive:
        default = la.prediction
        return predict(
            moved,
            posterior,
            inputs,
            method=default.method,
            link=default.named_link,
            covariance=default.covariance,
            num_samples=default.num_samples,
            key=request.key,
        )

    return cross_validated(folds, objective, la.deviation, la.expand, predict_fold, loss)


# --- the evidence itself --------------------------------------------------------------------------


def log_marginal_likelihood(
    la: "Laplace", prior_precision: PyTree, noise_std: ArrayLike | None
) -> Float[Array, ""]:
    """Return the evidence as `Laplace.log_marginal_likelihood` describes."""
    if prior_precision is None:
        prior_precision = la.prior_precision
    if noise_std is not None:
        la = scale_noise(la, noise_factor(la, noise_std))
    precision, deviation = la.expand(prior_precision), la.deviation
    if tree.is_scalar(prior_precision):  # the spectrum does, and does not mind small values
        delta = jnp.asarray(prior_precision, precision.dtype)
        squared = jnp.sum(deviation**2)
        return log_evidence_isotropic(la.log_likelihood, la.structure.spectrum(), delta, squared)
    structure = structure_for(la.structure, prior_precision, precision)
    return log_evidence(la.log_likelihood, structure, precision, deviation, la.jitter)


# --- the noise of a Gaussian likelihood -----------------------------------------------------------


def with_noise(la: "Laplace", noise_std: ArrayLike) -> "Laplace":
    """Return the posterior for another noise as `Laplace.with_noise` describes."""
    return scale_noise(la, noise_factor(la, noise_std)).refactorised()


def noise_factor(la: "Laplace", noise_std: ArrayLike) -> jax.Array:
    """Return how many times a noise is that of the likelihood, after checking that it is."""
    kind = _gaussian(la)
    if isinstance(kind, MultivariateGaussian):
        raise TypeError(
            "Found a MultivariateGaussian likelihood, expected Gaussian, whose noise is a standard "
            "deviation; fit again with another covariance, or tune(noise='residuals')."
        )
    new, old = jnp.asarray(noise_std), jnp.asarray(kind.noise_std)
    ratio = jnp.ravel(new / old)
    in_proportion = new.shape in ((), old.shape)
    if in_proportion and tree.is_concrete(ratio):
        in_proportion = np.all(ratio > 0) and np.allclose(ratio, ratio[0], rtol=1e-5)
    if not in_proportion:
        raise ValueError(
            f"Found noise_std={noise_std} for a likelihood with noise_std={kind.noise_std}, "
            "expected positive numbers in one proportion to these, as only then everything "
            "scales; fit again with the other noise."
        )
    return ratio[0]


def scale_noise(la: "Laplace", factor: jax.Array) -> "Laplace":
    """Multiply the noise's standard deviations; the posterior is left for its caller to make."""
    kind = _gaussian(la)
    factor = jnp.asarray(factor, la.log_likelihood.dtype)
    if isinstance(kind, MultivariateGaussian):
        scaled = MultivariateGaussian(kind.noise_covariance * factor**2)
    else:
        scaled = Gaussian(kind.noise_std * factor)
    gained = _residuals(la).log_likelihood(2 * jnp.log(factor))
    return tree.replace(
        la,
        likelihood=scaled,
        structure=la.structure.scaled(factor ** (-2 * _noise_power(la))),
        log_likelihood=la.log_likelihood + gained,
        gradient=la.gradient / factor**2,
    )


def _noise_of_residuals(la: "Laplace") -> jax.Array:
    """Return the factor of the noise under which the residuals are likeliest."""
    residuals = _telling_residuals(la)
    return jnp.sqrt(residuals.squares / residuals.count)


def _telling_residuals(la: "Laplace") -> Residuals:
    """Return the residuals if they are no mere rounding next to the present noise."""
    residuals = _residuals(la)
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


def _residuals(la: "Laplace") -> Residuals:
    """Return what the residuals amount to, from the log-likelihood and its normaliser."""
    kind = _gaussian(la)
    count = la.num_data * la.choice.num_outputs
    if isinstance(kind, MultivariateGaussian):
        _, log_det = jnp.linalg.slogdet(jnp.asarray(kind.noise_covariance))
        log_variances = log_det * la.num_data
    else:
        stds = jnp.broadcast_to(jnp.asarray(kind.noise_std), la.choice.event)
        log_variances = 2 * jnp.sum(jnp.log(stds)) * la.num_data
    normaliser = 0.5 * (count * math.log(2 * math.pi) + log_variances)
    squares = jnp.maximum(-2 * (la.log_likelihood + normaliser), 0)
    return Residuals(squares, jnp.asarray(count, squares.dtype))


def _noise_power(la: "Laplace") -> int:
    return la.choice.curvature_spec.noise_power


def _gaussian(la: "Laplace") -> Gaussian | MultivariateGaussian:
    """Return the likelihood if it is Gaussian and unmasked."""
    if isinstance(la.likelihood, Gaussian | MultivariateGaussian):
        return la.likelihood
    raise TypeError(
        f"Found a {type(la.likelihood).__name__} likelihood, expected an unmasked Gaussian one, "
        "whose noise can be tuned; pass noise='keep' or leave it out."
    )
