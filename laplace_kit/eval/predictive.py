r"""Predictive distributions: linearised in closed form, or sampled through the model itself.

Linearised: $f(x) \sim \mathcal N(f(x; \theta^*),\ J(x) \Sigma J(x)^\top)$, and the likelihood's
distribution of targets for Gaussian outputs. Sampled: the model at weights drawn from the
posterior.
"""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from laplace_kit import tree
from laplace_kit.approx.posterior import Posterior
from laplace_kit.chunks import chunk_of_map
from laplace_kit.curv.objective import Objective
from laplace_kit.errors import check_count, check_option, warn
from laplace_kit.eval import link as links
from laplace_kit.eval.inputs import checked_inputs, filled_inputs
from laplace_kit.eval.joint import joint_moments, marginal_moments
from laplace_kit.eval.moments import (
    MOST_PASSES,
    accurate,
    estimated_moments,
    linearized_moments,
    takes_many_passes,
)
from laplace_kit.eval.outputs import Predictive as Predictive
from laplace_kit.eval.outputs import from_gaussian, from_samples, with_joint_covariance
from laplace_kit.eval.rows import first_rows
from laplace_kit.host import check_same
from laplace_kit.likelihood import Likelihood
from laplace_kit.likelihood.masked import without_mask
from laplace_kit.placement import in_automatic_context
from laplace_kit.sums import map_over
from laplace_kit.targets.binary import BinaryTargets
from laplace_kit.targets.classes import ClassTargets

Method = Literal["linearized", "sampled"]
CovarianceForm = Literal["auto", "full", "diagonal", "estimated"]
METHODS, COVARIANCES = get_args(Method), get_args(CovarianceForm)
# `covariance="auto"` computes full covariances up to one part in this many of the memory limit.
_COVARIANCE_SHARE = 4


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The configuration of predictions, shared by `tune` and `predict`.

    `method`, `link`, `covariance` and `num_samples` are as in `predict`. A link of `None` may be
    chosen by `tune` with held-out data, and means `"probit"` until then. A link function is
    compared by identity: define it once.

    Raises
    ------
    ValueError
        If an option is unknown.
    """

    method: Method = "linearized"
    link: str | links.LinkFunction | None = None
    covariance: CovarianceForm = "auto"
    num_samples: int | None = None

    def __post_init__(self):
        check_option("method", self.method, METHODS)
        check_option("covariance", self.covariance, COVARIANCES)
        links.check_link(self.named_link)
        if self.num_samples is not None:
            check_count("num_samples", self.num_samples, "draws", least=2)

    @property
    def named_link(self) -> str | links.LinkFunction:
        """The link to predict with."""
        return "probit" if self.link is None else self.link


def changed(
    prediction: Prediction,
    method: Method | Literal["auto"] | None = None,
    link: links.Link | Literal["auto"] | None = None,
    covariance: CovarianceForm | None = None,
    num_samples: int | Literal["auto"] | None = None,
) -> Prediction:
    """Return a configuration with changes; `None` keeps, `"auto"` restores the default."""
    values = method, link, covariance, num_samples
    changes = {
        field.name: field.default if value == "auto" else value
        for field, value in zip(dataclasses.fields(prediction), values, strict=True)
        if value is not None
    }
    return dataclasses.replace(prediction, **changes)


def predict(
    objective: Objective,
    posterior: Posterior,
    x: PyTree,
    *,
    method: Method = "linearized",
    link: str | links.LinkFunction = "probit",
    covariance: CovarianceForm = "auto",
    key: PRNGKeyArray | None = None,
    num_samples: int | None = None,
    joint: bool = False,
) -> Predictive:
    r"""Return the predictive distribution at inputs.

    Parameters
    ----------
    objective
        The model at its mode, the likelihood, and the limits that bound the memory.
    posterior
        Over the free parameters.
    x
        Inputs with a leading axis N.
    method
        `"linearized"`: the model's linearisation at the mode (Immer et al. 2021), or `"sampled"`.
    link
        How class probabilities follow from a Gaussian over logits: a name, or a function
        `(mean, covariance) -> probabilities`. For several classes it takes the mean `(N, C)` and
        the covariances `(N, C, C)`, or the variances `(N, C)` without `f_cov`; for binary outputs
        mean and variance of one shape. It is compiled: define it once, as each function object is
        compiled separately. See `laplace_kit.eval.class_probabilities`. Only for the linearised
        predictive: the sampled one averages probabilities. Without logits of classes, as in
        regression, a name is ignored and a function refused.
    covariance
        `"full"` output covariances; `"diagonal"` variances only; `"estimated"` variances, from
        draws of the linearised function, whose cost does not grow with the number of outputs; or
        `"auto"`: full where `f_cov` fits a share of the memory limit, diagonal otherwise, and
        estimated for more than 1024 outputs of an input that would take a backward pass each, such
        as every token of a vocabulary at every position.
    key
        For `"sampled"` and the link `"monte_carlo"`; for estimated variances it draws other
        functions than by default, where all inputs share fixed ones.
    num_samples
        The number of draws: by default 100 of the weights for `"sampled"` and for estimated
        variances, whose relative standard error is then 14 %, and 1000 of the logits for
        `"monte_carlo"`.
    joint
        Whether to return the covariance between all inputs, `joint_cov`, too.

    Returns
    -------
    predictive
        A `Predictive`. Cost, linearised: one forward and C backward passes, and the posterior's
        root applied to C rows for each input. Estimated: one forward pass and `num_samples` of its
        tangents, and as many draws for each chunk of inputs. Sampled: `num_samples` forward passes.

    Raises
    ------
    ValueError
        If an option is unknown, a key is missing, the inputs are not finite, one input exceeds
        the memory limit, or a link function returns values that are no probabilities.

    Warns
    -----
    UserWarning
        If `"auto"` estimates the variances.

    References
    ----------
    Immer, Korzepa and Bauer (2021), Improving predictions of Bayesian neural nets via local
    linearization.
    """
    Prediction(method, link, covariance, num_samples)  # checks them
    if key is None and (method == "sampled" or link == "monte_carlo"):
        what = 'method="sampled"' if method == "sampled" else 'link="monte_carlo"'
        raise ValueError(f"Found no key, expected one for {what}; pass key=jax.random.key(0).")
    if joint and method != "linearized":
        raise ValueError(
            f"Found joint=True with method={method!r}, expected 'linearized', whose covariance "
            "between inputs is known; for sampled functions use la.sample_functions(key, n, "
            "method='sampled')."
        )
    check_same("inputs", (objective.params, x))
    options = _Options(method, link, covariance, num_samples, joint)
    return in_automatic_context(partial(_predict, options), objective, posterior, x, key)


class _Options(NamedTuple):
    """How to predict, as `predict` takes it."""

    method: Method
    link: str | links.LinkFunction
    covariance: CovarianceForm
    num_samples: int | None
    joint: bool


def _predict(options, objective, posterior, x, key) -> Predictive:
    method, link, covariance, num_samples, joint = options
    make_predictive = partial(
        from_moments, objective.likelihood, link=link, key=key, num_samples=num_samples or 1000
    )
    if joint:
        x = checked_inputs(x)
        mean, joint_cov = joint_moments(objective, posterior, x)
        moments = (mean, *marginal_moments(mean, joint_cov))
        predictive = make_predictive(*moments)
        return with_joint_covariance(predictive, joint_cov)
    x, num = filled_inputs(x)
    objective = objective.planned(x)
    if method == "linearized" and _wants_estimate(covariance, objective):
        chosen = jax.random.key(0) if key is None else key
        moments = estimated_moments(objective, posterior, x, chosen, num_samples or 100)
        return first_rows(make_predictive(*moments), num)
    full = _wants_full(covariance, num, objective.plan.output, objective.limits.budget)
    if method == "linearized":
        moments = linearized_moments(objective, posterior, x, full=full)
        return first_rows(make_predictive(*moments), num)
    args = objective, posterior, jax.random.split(key, num_samples or 100)
    size = chunk_of_map(_sampled_outputs, args, x, objective.limits)
    samples = map_over(_sampled_outputs, args, x, size, together=posterior.is_spread)
    return first_rows(_from_samples(objective.likelihood, samples, full), num)


def from_moments(
    likelihood: Likelihood,
    f_mean: Array,
    f_var: Array,
    f_cov: Array | None,
    *,
    link: str | links.LinkFunction,
    key: PRNGKeyArray | None,
    num_samples: int,
) -> Predictive:
    """Return the result of `from_gaussian`, by one compiled program for each link."""
    if link != "monte_carlo":  # other links ignore these, and need not be compiled again for them
        key, num_samples = None, 0
    moments = (f_mean, f_var, f_cov)
    made = _from_gaussian(likelihood, *moments, link=link, key=key, num_samples=num_samples)
    if callable(link):
        has_classes = isinstance(made.targets, ClassTargets)
        if not has_classes and not isinstance(made.targets, BinaryTargets):
            raise ValueError(
                f"Found a link function for a {type(without_mask(likelihood)).__name__} likelihood,"
                " expected none, as links are for targets of the classes ClassTargets and "
                "BinaryTargets, those of lk.Categorical() and lk.Bernoulli(); leave link= out."
            )
        links.check_defined(link, made.logits, made.f_mean, has_classes=has_classes)
    return made


_from_gaussian = jax.jit(from_gaussian, static_argnames=("link", "num_samples"))
_from_samples = jax.jit(from_samples, static_argnames="full")


def _wants_estimate(covariance: str, objective: Objective) -> bool:
    if covariance != "auto" or not takes_many_passes(objective):
        return covariance == "estimated"
    warn(
        f"Found {objective.plan.num_outputs} outputs for each input, more than {MOST_PASSES}, each "
        "of which would take a backward pass: their variances are estimated from draws of the "
        'linearised function. Pass covariance="estimated" to confirm, covariance="diagonal" for '
        "exact ones, or choose the outputs that are needed with lk.model.with_tokens."
    )
    return True


def _wants_full(covariance: str, num: int, output: jax.ShapeDtypeStruct, limit: int) -> bool:
    if covariance != "auto":
        return covariance == "full"
    needed = num * output.size**2 * output.dtype.itemsize
    return needed <= limit // _COVARIANCE_SHARE


# --- outputs at sampled weights -----------------------------------------------------------------


def _sampled_outputs(args, x):
    """Return the outputs at weights drawn one at a time, `(N, K, *event)`."""
    objective, posterior, keys = args
    mode = tree.ravel(objective.params).astype(posterior.dtype)

    def at_draw(key):
        eps = jax.random.normal(key, mode.shape, mode.dtype)
        params = tree.unravel(mode + posterior.scale_mv(eps), objective.params)
        return accurate(objective.model_fn(params, x))

    return jnp.moveaxis(jax.lax.map(at_draw, keys), 0, 1)


# --- at the mode ----------------------------------------------------------------------------------


def predict_at_mode(objective: Objective, x: PyTree) -> Predictive:
    """Return the MAP predictive, at the mode and without weight uncertainty.

    Parameters
    ----------
    objective, x
        As in `predict`.

    Returns
    -------
    predictive
        With `f_var` zero. Cost: one forward pass.
    """
    check_same("inputs", (objective.params, x))
    x, num = filled_inputs(x)
    objective = objective.planned(x)
    size = chunk_of_map(_outputs, objective, x, objective.limits)
    f = map_over(_outputs, objective, x, size)
    return first_rows(_at_mode(objective.likelihood, f), num)


def _outputs(objective, x):
    return accurate(objective.outputs(x))


@jax.jit
def _at_mode(likelihood, f):
    certain = jnp.zeros_like(f)
    return from_gaussian(likelihood, f, certain, None, link="probit", key=None, num_samples=2)
