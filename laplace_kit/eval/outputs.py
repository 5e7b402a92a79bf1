"""What a likelihood makes of its outputs' distribution: probabilities, rates, noise."""

import math
from collections.abc import Sequence
from functools import singledispatch

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from laplace_kit import tree
from laplace_kit.eval import link as links
from laplace_kit.eval import quantiles
from laplace_kit.eval.expectation import positions
from laplace_kit.eval.prediction_sets import class_probabilities, most_probable
from laplace_kit.eval.uncertainty import (
    Uncertainty,
    decompose,
    of_drawn_binary_logits,
    of_drawn_logits,
)
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    Masked,
    MultivariateGaussian,
    Poisson,
    unmasked,
)
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class Predictive:
    """What the posterior says about inputs; what a likelihood does not define is `None`.

    `f_mean`, `f_var` `(N, *event)` and `f_cov` `(N, C, C)`, over flattened outputs, describe the
    model's outputs, `joint_cov` `(N, C, N, C)` those at all inputs together. Classification:
    `probs` `(N, C)`, and the `logits` whose softmax or sigmoid they are, with exact log
    probabilities where `probs` round to zero. Regression and counts: `mean`, `epistemic_var` (from
    the weights) and `noise_var` (from the likelihood), of the targets' shape. `likelihood` says
    what the targets are, and with that `quantile`, `uncertainty` and so on; `drawn` is the
    uncertainty of class probabilities at the draws of the sampled predictive.
    """

    f_mean: Float[Array, "N *event"]
    f_var: Float[Array, "N *event"]
    f_cov: Float[Array, "N C C"] | None = None
    probs: Float[Array, "N *event"] | None = None
    mean: Float[Array, "N *target"] | None = None
    epistemic_var: Float[Array, "N *target"] | None = None
    noise_var: Float[Array, "N *target"] | None = None
    joint_cov: Float[Array, "N C N C"] | None = None
    likelihood: Likelihood | None = None
    drawn: Uncertainty | None = None
    logits: Float[Array, "N *event"] | None = None

    @property
    def var(self) -> Float[Array, "N *target"] | None:
        """The whole predictive variance of the targets, `epistemic_var + noise_var`."""
        return None if self.mean is None else self.epistemic_var + self.noise_var

    @property
    def cov(self) -> Float[Array, "N C C"] | None:
        """The predictive covariance of the targets of each input, flattened; of regression.

        `f_cov` and the noise; `None` without `f_cov`, and for other likelihoods.
        """
        return None if self.f_cov is None else target_covariance(self.likelihood, self)

    def quantile(self, q: ArrayLike | Sequence[float]) -> Float[Array, "..."]:
        """Return quantiles of the targets; see `laplace_kit.eval.quantiles.quantile`.

        Parameters
        ----------
        q
            One level between 0 and 1, or several, whose axes come first in the answer.
        """
        quantiles.check_levels("q", q)
        return quantiles.quantile(self.likelihood, self, jnp.asarray(q, self.f_mean.dtype))

    def interval(
        self, level: float | Float[Array, ""] = 0.9
    ) -> tuple[Float[Array, "N *target"], Float[Array, "N *target"]]:
        """Return the ends of the central interval of each target, of counts both included.

        Parameters
        ----------
        level
            The probability to be within: of counts at least that.
        """
        quantiles.check_levels("level", level)
        low, high = self.quantile(jnp.asarray([(1 - level) / 2, (1 + level) / 2]))
        return low, high

    def cdf(self, y: ArrayLike) -> Float[Array, "..."]:
        """Return the probability of each target to be at most `y`.

        Parameters
        ----------
        y
            Of a shape that broadcasts to the targets. For the probability integral transform of
            counts see `laplace_kit.eval.quantiles.pit`.
        """
        return quantiles.cdf(self.likelihood, self, jnp.asarray(y))

    def prediction_set(self, level: float | Float[Array, ""] = 0.9) -> Bool[Array, "N ... C"]:
        """Tell which classes are in the smallest set of a probability of at least `level`.

        Parameters
        ----------
        level
            Between 0 and 1. Of binary labels the classes are 0 and 1, on an axis of their own.
        """
        probs = class_probabilities(self.likelihood, self)
        quantiles.check_levels("level", level)
        return most_probable(probs, jnp.asarray(level, probs.dtype))

    def uncertainty(
        self, key: PRNGKeyArray | None = None, *, num_samples: int = 1000
    ) -> Uncertainty:
        """Return the aleatoric and the epistemic part; see `laplace_kit.eval.uncertainty`.

        Parameters
        ----------
        key, num_samples
            To draw the logits of several classes, where the predictive was not made of draws.
        """
        if self.drawn is not None:
            return self.drawn
        return decompose(self.likelihood, self, key=key, num_samples=num_samples)


@singledispatch
def from_gaussian(
    likelihood: Likelihood,
    f_mean: Float[Array, "N *event"],
    f_var: Float[Array, "N *event"],
    f_cov: Float[Array, "N C C"] | None,
    *,
    link: str | links.LinkFunction,
    key: PRNGKeyArray | None,
    num_samples: int,
) -> Predictive:
    """Return what a likelihood predicts where its outputs are Gaussian; open to registration.

    A likelihood that is not registered, such as `FromLoss`, gets the outputs' moments alone.
    """
    return Predictive(f_mean, f_var, f_cov, likelihood=likelihood)


@from_gaussian.register
def _(likelihood: Masked, f_mean, f_var, f_cov, *, link, key, num_samples):
    return from_gaussian(
        likelihood.likelihood, f_mean, f_var, f_cov, link=link, key=key, num_samples=num_samples
    )


@from_gaussian.register(Gaussian)
@from_gaussian.register(MultivariateGaussian)
def _(likelihood, f_mean, f_var, f_cov, *, link, key, num_samples):
    return Predictive(
        f_mean,
        f_var,
        f_cov,
        mean=f_mean,
        epistemic_var=f_var,
        noise_var=_noise_variance(likelihood, f_mean),
        likelihood=likelihood,
    )


@from_gaussian.register
def _(likelihood: HeteroscedasticGaussian, f_mean, f_var, f_cov, *, link, key, num_samples):
    (mean, log_precision), (mean_var, log_precision_var) = (
        jnp.split(part, 2, axis=-1) for part in (f_mean, f_var)
    )
    noise = jnp.exp(log_precision_var / 2 - log_precision)  # the mean of a log-normal
    return Predictive(
        f_mean,
        f_var,
        f_cov,
        mean=mean,
        epistemic_var=mean_var,
        noise_var=noise,
        likelihood=likelihood,
    )


@from_gaussian.register
def _(likelihood: Categorical, f_mean, f_var, f_cov, *, link, key, num_samples):
    rows, spread = positions(f_mean, f_var, f_cov)
    logits = links.class_logits(link, rows, spread, key=key, num_samples=num_samples)
    logits = logits.reshape(f_mean.shape)
    probs = jax.nn.softmax(logits)
    return Predictive(f_mean, f_var, f_cov, probs=probs, logits=logits, likelihood=likelihood)


@from_gaussian.register
def _(likelihood: Bernoulli, f_mean, f_var, f_cov, *, link, key, num_samples):
    logits = links.bernoulli_logits(link, f_mean, f_var, key=key, num_samples=num_samples)
    probs = jax.nn.sigmoid(logits)
    return Predictive(f_mean, f_var, f_cov, probs=probs, logits=logits, likelihood=likelihood)


@from_gaussian.register
def _(likelihood: Poisson, f_mean, f_var, f_cov, *, link, key, num_samples):
    # The rate exp(f) is log-normal; the counts add its mean to its variance.
    rate = jnp.exp(f_mean + f_var / 2)
    return Predictive(
        f_mean,
        f_var,
        f_cov,
        mean=rate,
        epistemic_var=rate**2 * jnp.expm1(f_var),
        noise_var=rate,
        likelihood=likelihood,
    )


def from_samples(
    likelihood: Likelihood, samples: Float[Array, "N K *event"], full: bool
) -> Predictive:
    """Return the predictive from outputs at K weight draws; moments are the draws' own."""
    f_mean = samples.mean(axis=1)
    flat = (samples - f_mean[:, None]).reshape(*samples.shape[:2], -1)
    f_var = jnp.sum(flat**2, axis=1).reshape(f_mean.shape) / (samples.shape[1] - 1)
    f_cov = None
    if full:
        with jax.default_matmul_precision("highest"):
            f_cov = jnp.einsum("nkc,nkd->ncd", flat, flat) / (samples.shape[1] - 1)
    moments = Predictive(f_mean, f_var, f_cov, likelihood=unmasked(likelihood, (None,))[0])
    return _average(likelihood, samples, moments)


@singledispatch
def _average(likelihood: Likelihood, samples: Array, moments: Predictive) -> Predictive:
    return moments


@_average.register
def _(likelihood: Masked, samples, moments):
    return _average(likelihood.likelihood, samples, moments)


@_average.register(Gaussian)
@_average.register(MultivariateGaussian)
def _(likelihood, samples, moments):
    noise = _noise_variance(likelihood, moments.f_mean)
    return _with_moments(moments, moments.f_mean, moments.f_var, noise)


@_average.register
def _(likelihood: HeteroscedasticGaussian, samples, moments):
    mean, log_precision = jnp.split(samples, 2, axis=-1)
    noise = jnp.exp(-log_precision).mean(axis=1)
    return _with_moments(moments, mean.mean(axis=1), mean.var(axis=1, ddof=1), noise)


@_average.register
def _(likelihood: Categorical, samples, moments):
    logits = _log_mean(jax.nn.log_softmax(samples))
    drawn = of_drawn_logits(samples)
    return tree.replace(moments, probs=jax.nn.softmax(logits), logits=logits, drawn=drawn)


@_average.register
def _(likelihood: Bernoulli, samples, moments):
    logits = _log_mean(jax.nn.log_sigmoid(samples)) - _log_mean(jax.nn.log_sigmoid(-samples))
    drawn = of_drawn_binary_logits(samples)
    return tree.replace(moments, probs=jax.nn.sigmoid(logits), logits=logits, drawn=drawn)


@_average.register
def _(likelihood: Poisson, samples, moments):
    rates = jnp.exp(samples)
    return _with_moments(moments, rates.mean(axis=1), rates.var(axis=1, ddof=1), rates.mean(axis=1))


@jax.jit
def _log_mean(log_probs: Float[Array, "N K *event"]) -> Float[Array, "N *event"]:
    """Return the logarithm of the average over draws, where it underflows too."""
    return jax.nn.logsumexp(log_probs - math.log(log_probs.shape[1]), axis=1)


def _with_moments(moments, mean, epistemic_var, noise_var):
    return tree.replace(moments, mean=mean, epistemic_var=epistemic_var, noise_var=noise_var)


# --- covariances of the targets -------------------------------------------------------------------


@singledispatch
def target_covariance(
    likelihood: Likelihood | None, predictive: Predictive
) -> Float[Array, "N C C"] | None:
    """Return the covariance of the targets of each input, flattened; open to registration.

    Parameters
    ----------
    likelihood
        Of the targets; for others than Gaussian ones the answer is `None`.
    predictive
        With `f_cov`.
    """
    return None


@target_covariance.register(Gaussian)
@target_covariance.register(HeteroscedasticGaussian)
def _(likelihood, predictive):
    cov = predictive.f_cov
    if isinstance(likelihood, HeteroscedasticGaussian):
        half = predictive.mean.shape[-1]
        means = np.arange(cov.shape[1]).reshape(-1, 2, half)[:, 0].ravel()
        cov = cov[:, means[:, None], means]
    noise = predictive.noise_var.reshape(len(cov), -1)
    return cov + noise[:, :, None] * jnp.eye(noise.shape[1], dtype=cov.dtype)


@target_covariance.register
def _(likelihood: MultivariateGaussian, predictive):
    return predictive.f_cov + jnp.asarray(likelihood.noise_covariance, predictive.f_cov.dtype)


def _noise_variance(
    likelihood: Gaussian | MultivariateGaussian, f: Float[Array, "N *event"]
) -> Float[Array, "N *event"]:
    if isinstance(likelihood, Gaussian):
        variance = jnp.asarray(likelihood.noise_std, f.dtype) ** 2
    else:
        covariance = jnp.asarray(likelihood.noise_covariance, f.dtype)
        variance = jnp.diagonal(covariance).reshape(f.shape[1:])
    return jnp.broadcast_to(variance, f.shape)
