r"""The parts of the uncertainty: aleatoric, in the data, and epistemic, in the weights.

By the law of total variance, and for classes by the chain rule of entropy too,

$$
\underbrace{\operatorname{Var} y}_{\text{total}} =
\underbrace{\mathbb E_\theta \operatorname{Var}(y \mid \theta)}_{\text{aleatoric}} +
\underbrace{\operatorname{Var}_\theta \mathbb E(y \mid \theta)}_{\text{epistemic}},
\qquad
\underbrace{\mathrm H[\mathbb E_\theta\, p]}_{\text{predictive}} =
\underbrace{\mathbb E_\theta \mathrm H[p]}_{\text{expected}} +
\underbrace{\mathrm I(y; \theta)}_{\text{mutual information}} .
$$

Only the second part decreases with more data. All parts belong to one distribution: the Gaussian
over the outputs, or the draws of the weights. For classes its mean $\mathbb E_\theta\, p$ need not
equal the probabilities of a link such as `"probit"`, which approximate it, so that their entropy is
not exactly the sum.

With Gaussian outputs the parts have closed forms for means, log-normal rates and predicted noise;
they are computed by quadrature for binary and ordinal labels, and by draws of the logits for
several classes.

References
----------
Depeweg et al. (2018), Decomposition of uncertainty in Bayesian deep learning. Houlsby et al.
(2011), Bayesian active learning for classification and preference learning.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from laplace_kit.targets.expectation import drawn_expectation, normal_expectation, positions
from laplace_kit.targets.logarithms import entropy
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class Uncertainty:
    """The uncertainty of the targets in two parts, with sums `total_var` and `predictive_entropy`.

    `aleatoric_var` and `epistemic_var` have the targets' shape; for classes they are variances of
    the indicator of each class, `(N, ..., C)`. `expected_entropy` and `mutual_information`, for
    classes only, are in nats, of the labels' shape.
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


# --- classes --------------------------------------------------------------------------------------


class _Averages(NamedTuple):
    """The quantities to average; `shift` is p minus a reference, so that squares cancel less."""

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
    """Return the parts, at least zero: rounding cannot make them negative."""
    mean = reference + average.shift
    whole = entropy(mean)
    return Uncertainty(
        average.aleatoric,
        jnp.maximum(average.square - average.shift**2, 0),
        average.entropy,
        jnp.maximum(whole - average.entropy, 0),
    )


def two_logits(f: Float[Array, "*shape"]) -> Float[Array, "*shape 2"]:
    """Return logits of the classes 0 and 1 for the logit of 1."""
    return jnp.stack([jnp.zeros_like(f), f], axis=-1)


def _label_one(found: Uncertainty) -> Uncertainty:
    return Uncertainty(
        found.aleatoric_var[..., 1],
        found.epistemic_var[..., 1],
        found.expected_entropy,
        found.mutual_information,
    )


@jax.jit
def parts_by_quadrature(
    class_logits: Partial, f_mean: Float[Array, "*shape"], f_var: Float[Array, "*shape"]
) -> Uncertainty:
    """Return the parts for labels that have one Gaussian output each.

    Parameters
    ----------
    class_logits
        From outputs to logits of all classes, along a new last axis.
    f_mean, f_var
        Moments of the outputs.
    """
    reference = jax.nn.softmax(class_logits(f_mean))
    average = normal_expectation(
        lambda f: _averaged(reference, class_logits(f)), f_mean, jnp.sqrt(jnp.maximum(f_var, 0))
    )
    return _parts(average, reference)


def binary_parts(f_mean: Float[Array, "*shape"], f_var: Float[Array, "*shape"]) -> Uncertainty:
    """Return the parts for binary labels with a Gaussian logit each, by quadrature."""
    return _label_one(parts_by_quadrature(Partial(two_logits), f_mean, f_var))


@partial(jax.jit, static_argnames="num_samples")
def class_parts(
    f_mean: Float[Array, "N *event"],
    f_var: Float[Array, "N *event"],
    f_cov: Float[Array, "N D D"] | None,
    key: PRNGKeyArray,
    num_samples: int,
) -> Uncertainty:
    """Return the parts for labels with a Gaussian logit for each class, by draws of the logits.

    Parameters
    ----------
    f_mean, f_var, f_cov
        Moments of the logits; without covariances they are drawn independently.
    key, num_samples
        For the draws; the standard error of a part is that of a mean of `num_samples` draws.
    """
    rows, covariance = positions(f_mean, f_var, f_cov)
    reference = jax.nn.softmax(rows)
    average = drawn_expectation(partial(_averaged, reference), rows, covariance, key, num_samples)
    found = _parts(average, reference)
    labels = f_mean.shape[:-1]
    return Uncertainty(
        found.aleatoric_var.reshape(f_mean.shape),
        found.epistemic_var.reshape(f_mean.shape),
        found.expected_entropy.reshape(labels),
        found.mutual_information.reshape(labels),
    )


@jax.jit
def drawn_parts(samples: Float[Array, "N K *event"]) -> Uncertainty:
    """Return the parts for class probabilities at K draws of the weights.

    Parameters
    ----------
    samples
        Logits, with the classes on the last axis.
    """
    reference = jax.nn.softmax(samples.mean(axis=1))
    drawn = _averaged(reference[:, None], samples)
    return _parts(jax.tree.map(lambda part: part.mean(axis=1), drawn), reference)


@jax.jit
def drawn_binary_parts(samples: Float[Array, "N K *event"]) -> Uncertainty:
    """Return the same for binary labels, each with one logit."""
    return _label_one(drawn_parts(two_logits(samples)))
