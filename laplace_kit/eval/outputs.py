"""What a likelihood makes of its outputs' distribution: probabilities, rates, noise."""

import math
from functools import singledispatch

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from laplace_kit.eval import link as links
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    Masked,
    MultivariateGaussian,
    Poisson,
)
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class Predictive:
    """What the posterior says about inputs; what a likelihood does not define is `None`.

    `f_mean`, `f_var` `(N, *event)` and `f_cov` `(N, C, C)`, over flattened outputs, describe the
    model's outputs, `joint_cov` `(N, C, N, C)` those at all inputs together. Classification:
    `probs` `(N, C)`. Regression and counts: `mean`, `epistemic_var` (from the weights) and
    `noise_var` (from the likelihood), of the targets' shape.
    """

    f_mean: Float[Array, "N *event"]
    f_var: Float[Array, "N *event"]
    f_cov: Float[Array, "N C C"] | None = None
    probs: Float[Array, "N *event"] | None = None
    mean: Float[Array, "N *target"] | None = None
    epistemic_var: Float[Array, "N *target"] | None = None
    noise_var: Float[Array, "N *target"] | None = None
    joint_cov: Float[Array, "N C N C"] | None = None

    @property
    def var(self) -> Float[Array, "N *target"] | None:
        """The whole predictive variance of the targets, `epistemic_var + noise_var`."""
        return None if self.mean is None else self.epistemic_var + self.noise_var


@singledispatch
def from_gaussian(
    likelihood: Likelihood,
    f_mean: Float[Array, "N *event"],
    f_var: Float[Array, "N *event"],
    f_cov: Float[Array, "N C C"] | None,
    *,
    link: str,
    key: PRNGKeyArray | None,
    num_samples: int,
) -> Predictive:
    """Return what a likelihood predicts where its outputs are Gaussian; open to registration.

    A likelihood that is not registered, such as `FromLoss`, gets the outputs' moments alone.
    """
    return Predictive(f_mean, f_var, f_cov)


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
    )


@from_gaussian.register
def _(likelihood: HeteroscedasticGaussian, f_mean, f_var, f_cov, *, link, key, num_samples):
    (mean, log_precision), (mean_var, log_precision_var) = (
        jnp.split(part, 2, axis=-1) for part in (f_mean, f_var)
    )
    noise = jnp.exp(log_precision_var / 2 - log_precision)  # the mean of a log-normal
    return Predictive(f_mean, f_var, f_cov, mean=mean, epistemic_var=mean_var, noise_var=noise)


@from_gaussian.register
def _(likelihood: Categorical, f_mean, f_var, f_cov, *, link, key, num_samples):
    num_classes = f_mean.shape[-1]
    logits = f_mean.reshape(-1, num_classes)
    spread = f_var.reshape(-1, num_classes)
    if f_cov is not None:  # of each position, where outputs have axes besides the classes
        num_positions = math.prod(f_mean.shape[1:-1])
        blocks = f_cov.reshape(-1, num_positions, num_classes, num_positions, num_classes)
        spread = jnp.einsum("ntctd->ntcd", blocks).reshape(-1, num_classes, num_classes)
    probs = links.class_probabilities(link, logits, spread, key=key, num_samples=num_samples)
    return Predictive(f_mean, f_var, f_cov, probs=probs.reshape(f_mean.shape))


@from_gaussian.register
def _(likelihood: Bernoulli, f_mean, f_var, f_cov, *, link, key, num_samples):
    probs = links.bernoulli_probabilities(link, f_mean, f_var, key=key, num_samples=num_samples)
    return Predictive(f_mean, f_var, f_cov, probs=probs)


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
    moments = Predictive(f_mean, f_var, f_cov)
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
    return _with_probs(moments, jax.nn.softmax(samples).mean(axis=1))


@_average.register
def _(likelihood: Bernoulli, samples, moments):
    return _with_probs(moments, jax.nn.sigmoid(samples).mean(axis=1))


@_average.register
def _(likelihood: Poisson, samples, moments):
    rates = jnp.exp(samples)
    return _with_moments(moments, rates.mean(axis=1), rates.var(axis=1, ddof=1), rates.mean(axis=1))


def _with_probs(moments, probs):
    return Predictive(moments.f_mean, moments.f_var, moments.f_cov, probs=probs)


def _with_moments(moments, mean, epistemic_var, noise_var):
    return Predictive(
        moments.f_mean,
        moments.f_var,
        moments.f_cov,
        mean=mean,
        epistemic_var=epistemic_var,
        noise_var=noise_var,
    )


def _noise_variance(
    likelihood: Gaussian | MultivariateGaussian, f: Float[Array, "N *event"]
) -> Float[Array, "N *event"]:
    if isinstance(likelihood, Gaussian):
        variance = jnp.asarray(likelihood.noise_std, f.dtype) ** 2
    else:
        covariance = jnp.asarray(likelihood.noise_covariance, f.dtype)
        variance = jnp.diagonal(covariance).reshape(f.shape[1:])
    return jnp.broadcast_to(variance, f.shape)
