r"""Predictive distributions: linearised in closed form, or sampled through the model itself.

Linearised: $f(x) \sim \mathcal N(f(x; \theta^*),\ J(x) \Sigma J(x)^\top)$, then what the likelihood
makes of a Gaussian over its outputs. Sampled: weights from the posterior, pushed through the model.
"""

import math
from functools import singledispatch
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from laplace_kit import memory, tree
from laplace_kit.approx.posterior import Posterior
from laplace_kit.curv.objective import Objective
from laplace_kit.data import as_data, check_batch_size, map_over
from laplace_kit.errors import check_option
from laplace_kit.eval import link as links
from laplace_kit.eval.moments import linearized_moments
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    Poisson,
)
from laplace_kit.tree import pytree_dataclass

METHODS = ("linearized", "sampled")
COVARIANCES = ("auto", "full", "diagonal")
# An exact covariance is worth its memory up to this share of the limit.
_COVARIANCE_SHARE = 4


@pytree_dataclass()
class Predictive:
    """What the posterior says about inputs; what a likelihood does not define is `None`.

    `f_mean`, `f_var` `(N, *event)` and `f_cov` `(N, C, C)`, over flattened outputs, describe the
    model's outputs. Classification: `probs` `(N, C)`. Regression and counts: `mean`,
    `epistemic_var` (from the weights) and `noise_var` (from the likelihood), of the targets' shape.
    """

    f_mean: Float[Array, "N *event"]
    f_var: Float[Array, "N *event"]
    f_cov: Float[Array, "N C C"] | None = None
    probs: Float[Array, "N *event"] | None = None
    mean: Float[Array, "N *target"] | None = None
    epistemic_var: Float[Array, "N *target"] | None = None
    noise_var: Float[Array, "N *target"] | None = None

    @property
    def var(self) -> Float[Array, "N *target"] | None:
        """The whole predictive variance of the targets, `epistemic_var + noise_var`."""
        return None if self.mean is None else self.epistemic_var + self.noise_var


def predict(
    objective: Objective,
    posterior: Posterior,
    x: PyTree,
    *,
    method: Literal["linearized", "sampled"] = "linearized",
    link: str = "probit",
    covariance: Literal["auto", "full", "diagonal"] = "auto",
    key: PRNGKeyArray | None = None,
    num_samples: int | None = None,
    batch_size: int | None = None,
    memory_limit: int | None = None,
) -> Predictive:
    r"""Return the predictive distribution at inputs.

    Parameters
    ----------
    objective
        The model at its mode, and the likelihood.
    posterior
        Over the free parameters.
    x
        Inputs with a leading axis N.
    method
        `"linearized"`: the model's linearisation at the mode (Immer et al. 2021), or `"sampled"`.
    link
        How class probabilities follow from a Gaussian over logits; see `laplace_kit.eval.link`.
        Only for the linearised predictive: the sampled one averages probabilities.
    covariance
        `"full"` output covariances, `"diagonal"` variances only, or `"auto"`: full where `f_cov`
        fits a share of the memory limit.
    key
        For `"sampled"` and the link `"monte_carlo"`.
    num_samples
        Draws: by default 100 weights for `"sampled"`, 1000 logits for `"monte_carlo"`.
    batch_size
        The number of inputs held at a time; `None` chooses from the memory limit.
    memory_limit
        In bytes; `None` for a share of the device's memory.

    Returns
    -------
    predictive
        A `Predictive`. Cost, linearised: one forward and C backward passes, and the posterior's
        root applied to C rows for each input. Sampled: `num_samples` forward passes.

    Raises
    ------
    ValueError
        If an option is unknown, a key is missing, the inputs are not finite, or one input exceeds
        the memory limit.

    References
    ----------
    Immer, Korzepa and Bauer (2021), Improving predictions of Bayesian neural nets via local
    linearization.
    """
    check_option("method", method, METHODS)
    check_option("covariance", covariance, COVARIANCES)
    check_option("link", link, links.LINKS)
    check_batch_size(batch_size)
    if key is None and (method == "sampled" or link == "monte_carlo"):
        what = 'method="sampled"' if method == "sampled" else 'link="monte_carlo"'
        raise ValueError(f"Found no key, expected one for {what}; pass key=jax.random.key(0).")
    if num_samples is not None and num_samples < 2:
        raise ValueError(f"Found num_samples={num_samples}, expected at least 2 draws.")
    x = _checked_inputs(x)
    f = objective.output_spec(x)
    full = _wants_full(covariance, f, memory_limit)
    if method == "linearized":
        moments = linearized_moments(
            objective, posterior, x, full=full, batch_size=batch_size, memory_limit=memory_limit
        )
        return from_gaussian(
            objective.likelihood, *moments, link=link, key=key, num_samples=num_samples or 1000
        )
    num_outputs = math.prod(f.shape[1:])
    unit = memory.activation_bytes(objective.model_fn, objective.params, x)
    num_samples = num_samples or 100
    held = 2 * unit + 2 * num_samples * num_outputs * f.dtype.itemsize
    batch_size = batch_size or memory.chunk_size(held, memory_limit)
    keys = jax.random.split(key, num_samples)
    samples = map_over(_sampled_outputs, (objective, posterior, keys), x, batch_size)
    return from_samples(objective.likelihood, samples, full)


def _checked_inputs(x: PyTree) -> PyTree:
    """Return inputs as arrays; refuse what has no rows, and where values can be looked at, NaN."""
    x = as_data((x, ())).x
    finite = jax.tree.map(_finite_rows, x)
    if not tree.is_concrete(finite):
        return x
    for path, rows in zip(tree.paths(x), jax.tree.leaves(finite), strict=True):
        if not np.all(rows):
            where = f" at {path!r}" if path else ""
            row = int(np.argmin(rows))
            raise ValueError(
                f"Found inputs that are not finite{where}, first in row {row}, expected finite "
                "numbers; clean or drop these rows."
            )
    return x


@jax.jit
def _finite_rows(leaf: Array) -> Array:
    return jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)


def _wants_full(covariance: str, f: jax.ShapeDtypeStruct, memory_limit: int | None) -> bool:
    if covariance != "auto":
        return covariance == "full"
    num_outputs = math.prod(f.shape[1:])
    needed = f.shape[0] * num_outputs**2 * f.dtype.itemsize
    return needed <= memory.budget(memory_limit) // _COVARIANCE_SHARE


# --- outputs at sampled weights -----------------------------------------------------------------


def _sampled_outputs(args, x):
    """Return the outputs at weights drawn one at a time, `(N, K, *event)`."""
    objective, posterior, keys = args
    mode = tree.ravel(objective.params).astype(posterior.dtype)

    def at_draw(key):
        eps = jax.random.normal(key, mode.shape, mode.dtype)
        params = tree.unravel(mode + posterior.scale_mv(eps), objective.params)
        return objective.model_fn(params, x)

    return jnp.moveaxis(jax.lax.map(at_draw, keys), 0, 1)


# --- what a likelihood makes of them --------------------------------------------------------------


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
def _(likelihood: Gaussian, f_mean, f_var, f_cov, *, link, key, num_samples):
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
def _(likelihood: Gaussian, samples, moments):
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


def _noise_variance(likelihood: Gaussian, f: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(likelihood.noise_std, f.dtype) ** 2, f.shape)


def predict_at_mode(
    objective: Objective,
    x: PyTree,
    *,
    batch_size: int | None = None,
    memory_limit: int | None = None,
) -> Predictive:
    """Return the predictive of the mode alone, without weight uncertainty: the MAP's.

    Parameters
    ----------
    objective, x, batch_size, memory_limit
        As in `predict`.

    Returns
    -------
    predictive
        With `f_var` zero. Cost: one forward pass.
    """
    x = _checked_inputs(x)
    if batch_size is None:
        unit = memory.activation_bytes(objective.model_fn, objective.params, x)
        batch_size = memory.chunk_size(unit, memory_limit)
    f = map_over(_outputs, objective, x, batch_size)
    return from_gaussian(
        objective.likelihood, f, jnp.zeros_like(f), None, link="probit", key=None, num_samples=2
    )


def _outputs(objective, x):
    return objective.outputs(x)
