r"""How much of the uncertainty is in the data, and how much in the weights.

By the law of total variance, and of classes by that of entropy too,

$$
\underbrace{\operatorname{Var} y}_{\text{total}} =
\underbrace{\mathbb E_\theta \operatorname{Var}(y \mid \theta)}_{\text{aleatoric}} +
\underbrace{\operatorname{Var}_\theta \mathbb E(y \mid \theta)}_{\text{epistemic}},
\qquad
\underbrace{\mathrm H[\mathbb E_\theta\, p]}_{\text{predictive}} =
\underbrace{\mathbb E_\theta \mathrm H[p]}_{\text{expected}} +
\underbrace{\mathrm I(y; \theta)}_{\text{mutual information}} .
$$

More data reduce the second part alone. All parts are those of one distribution: the Gaussian over
the outputs, or the draws of the weights. Of classes its mean $\mathbb E_\theta\, p$ need not be the
probabilities of a link such as `"probit"`, which approximate it; a total of these would be no sum.
"""

from functools import partial, singledispatch
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from laplace_kit.eval.expectation import drawn_expectation, normal_expectation, positions
from laplace_kit.eval.logarithms import entropy
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    MultivariateGaussian,
    Poisson,
)
from laplace_kit.tree import pytree_dataclass

if TYPE_CHECKING:
    from laplace_kit.eval.outputs import Predictive


@pytree_dataclass()
class Uncertainty:
    """The uncertainty of the targets in two parts, whose sums are `total_var` and so on.

    `aleatoric_var` and `epistemic_var` have the targets' shape, of classes `(N, ..., C)` and of the
    indicator of each class. `expected_entropy` and `mutual_information`, of classes alone, are in
    nats, of the labels' shape.
    """

    aleatoric_var: Float[Array, "N *target"]
    epistemic_var: Float[Array, "N *target"]
    expected_entropy: Float[Array, "N *label"] | None = None
    mutual_information: Float[Array, "N *label"] | None = None

    @property
    def total_var(self) -> Float[Array, "N *target"]:
        """The variance of the targets."""
        return self.aleatoric_var + self.epistemic_var

    @property
    def predictive_entropy(self) -> Float[Array, "N *label"] | None:
        """The entropy of the labels; `None` where there are no classes."""
        if self.expected_entropy is None:
            return None
        return self.expected_entropy + self.mutual_information


@singledispatch
def decompose(
    likelihood: Likelihood | None,
    predictive: "Predictive",
    *,
    key: PRNGKeyArray | None,
    num_samples: int,
) -> Uncertainty:
    r"""Return the aleatoric and the epistemic part of the uncertainty; open to registration.

    Gaussian outputs in closed form (means; log-normal rates and predicted noise), of binary labels
    by quadrature, of several classes by draws of the logits.

    Parameters
    ----------
    likelihood
        Of the targets.
    predictive
        For N inputs; of classes, with full `f_cov` the logits are drawn together, with variances
        alone as independent.
    key, num_samples
        For `Categorical` outputs: the standard error of a mean is that of as many draws.

    Raises
    ------
    TypeError
        If the likelihood defines no distribution of the targets, or is not known.
    ValueError
        If a key is needed and missing.

    References
    ----------
    Depeweg et al. (2018), Decomposition of uncertainty in Bayesian deep learning. Houlsby et al.
    (2011), Bayesian active learning for classification and preference learning.
    """
    raise no_distribution(likelihood, "uncertainty of the targets")


@decompose.register(Gaussian)
@decompose.register(MultivariateGaussian)
@decompose.register(HeteroscedasticGaussian)
@decompose.register(Poisson)
def _(likelihood, predictive, *, key, num_samples):
    return Uncertainty(predictive.noise_var, predictive.epistemic_var)


@decompose.register
def _(likelihood: Bernoulli, predictive, *, key, num_samples):
    return _of_binary(predictive.f_mean, predictive.f_var)


@decompose.register
def _(likelihood: Categorical, predictive, *, key, num_samples):
    if key is None:
        raise ValueError(
            "Found no key, expected one to draw the logits of several classes; pass "
            "key=jax.random.key(0)."
        )
    moments = (predictive.f_mean, predictive.f_var, predictive.f_cov)
    return _of_classes(*moments, key, num_samples)


def no_distribution(likelihood: Likelihood | None, what: str) -> TypeError:
    """Return the error for a likelihood from which something does not follow."""
    if likelihood is None:
        return TypeError(
            f"Found a predictive without a likelihood, expected one, from which the {what} follows;"
            " pass Predictive(..., likelihood=lk.Categorical()) or whichever it is."
        )
    return TypeError(
        f"Found a {type(likelihood).__name__} likelihood, from which no {what} follows, expected "
        "a likelihood of the library that defines it, such as lk.Gaussian()."
    )


# --- classes --------------------------------------------------------------------------------------


class _Averages(NamedTuple):
    """What is averaged over outputs; `shift` is p less a reference, so that squares cancel less."""

    shift: Float[Array, "*shape C"]
    square: Float[Array, "*shape C"]
    aleatoric: Float[Array, "*shape C"]
    entropy: Float[Array, "*shape"]


def _averaged(reference: Float[Array, "... C"], logits: Float[Array, "*shape C"]) -> _Averages:
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    shift = p - reference
    return _Averages(shift, shift**2, -p * jnp.expm1(log_p), -jnp.sum(p * log_p, axis=-1))


def _parts(average: _Averages, reference: Float[Array, "*shape C"]) -> Uncertainty:
    """Return the parts, of which rounding makes none negative."""
    mean = reference + average.shift
    of_mean = entropy(mean)
    return Uncertainty(
        average.aleatoric,
        jnp.maximum(average.square - average.shift**2, 0),
        average.entropy,
        jnp.maximum(of_mean - average.entropy, 0),
    )


def _two_logits(f: Float[Array, "*shape"]) -> Float[Array, "*shape 2"]:
    return jnp.stack([jnp.zeros_like(f), f], axis=-1)


def _of_label_one(found: Uncertainty) -> Uncertainty:
    return Uncertainty(
        found.aleatoric_var[..., 1],
        found.epistemic_var[..., 1],
        found.expected_entropy,
        found.mutual_information,
    )


@jax.jit
def _of_binary(f_mean: Float[Array, "*shape"], f_var: Float[Array, "*shape"]) -> Uncertainty:
    reference = jax.nn.softmax(_two_logits(f_mean))
    average = normal_expectation(
        lambda f: _averaged(reference, _two_logits(f)), f_mean, jnp.sqrt(jnp.maximum(f_var, 0))
    )
    return _of_label_one(_parts(average, reference))


@partial(jax.jit, static_argnames="num_samples")
def _of_classes(f_mean, f_var, f_cov, key, num_samples) -> Uncertainty:
    rows, covariance = positions(f_mean, f_var, f_cov)
    reference = jax.nn.softmax(rows)
    average = drawn_expectation(partial(_averaged, reference), rows, covariance, key, num_samples)
    found = _parts(average, reference)
    of_labels = f_mean.shape[:-1]
    return Uncertainty(
        found.aleatoric_var.reshape(f_mean.shape),
        found.epistemic_var.reshape(f_mean.shape),
        found.expected_entropy.reshape(of_labels),
        found.mutual_information.reshape(of_labels),
    )


@jax.jit
def of_drawn_logits(samples: Float[Array, "N K *event"]) -> Uncertainty:
    """Return the decomposition of class probabilities at K draws of the weights, as they are.

    Parameters
    ----------
    samples
        Logits; the last axis is that of the classes.
    """
    reference = jax.nn.softmax(samples.mean(axis=1))
    drawn = _averaged(reference[:, None], samples)
    return _parts(jax.tree.map(lambda part: part.mean(axis=1), drawn), reference)


@jax.jit
def of_drawn_binary_logits(samples: Float[Array, "N K *event"]) -> Uncertainty:
    """Return the same of binary labels, each with a logit."""
    return _of_label_one(of_drawn_logits(_two_logits(samples)))
