"""The predictive: the outputs, and the distribution of the targets that follows from them."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Num, PRNGKeyArray

from laplace_kit import tree
from laplace_kit.eval import link as links
from laplace_kit.eval import shown
from laplace_kit.eval.prediction_sets import class_probabilities, most_probable
from laplace_kit.likelihood import Likelihood
from laplace_kit.likelihood.masked import without_mask
from laplace_kit.targets.base import LabelTargets, NumberTargets, Targets
from laplace_kit.targets.binary import BinaryTargets
from laplace_kit.targets.classes import ClassTargets
from laplace_kit.targets.expectation import positions
from laplace_kit.targets.inversion import check_levels
from laplace_kit.targets.outputs import Outputs, outputs_of_draws
from laplace_kit.targets.uncertainty import Uncertainty
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class Predictive:
    """The predictive at N inputs; attributes that the likelihood does not define are `None`.

    `f_mean`, `f_var` `(N, *event)` and `f_cov` `(N, C, C)`, over flattened outputs, describe the
    model's outputs at each input, `joint_cov` `(N, C, N, C)` at all inputs jointly. Classification:
    `probs` `(N, C)`, and the `logits` whose softmax or sigmoid they are, with exact log
    probabilities where `probs` round to zero. Regression and counts: `mean`, `epistemic_var` (from
    the weights) and `noise_var` (from the likelihood), of the targets' shape.

    Parameters
    ----------
    targets
        The distribution of the targets, with that of the outputs inside it.
    likelihood
        The likelihood of the targets, without a mask; for the checks of labelled data.
    """

    targets: Targets
    likelihood: Likelihood | None = None

    __repr__, _repr_html_ = shown.line, shown.html

    @property
    def f_mean(self) -> Float[Array, "N *event"]:
        """The mean of the outputs."""
        return self.targets.outputs.mean

    @property
    def f_var(self) -> Float[Array, "N *event"]:
        """The variances of the outputs."""
        return self.targets.outputs.var

    @property
    def f_cov(self) -> Float[Array, "N C C"] | None:
        """The covariances of the flattened outputs of each input, if they were computed."""
        return self.targets.outputs.cov

    @property
    def joint_cov(self) -> Float[Array, "N C N C"] | None:
        """The covariances between all inputs, if they were computed."""
        return self.targets.outputs.joint_cov

    @property
    def probs(self) -> Float[Array, "N *labels"] | None:
        """The probabilities of the classes, or of the label 1 for binary labels."""
        return self.targets.probs if isinstance(self.targets, LabelTargets) else None

    @property
    def logits(self) -> Float[Array, "N *labels"] | None:
        """The logits whose softmax or sigmoid is `probs`, if known."""
        return self.targets.logits if isinstance(self.targets, LabelTargets) else None

    @property
    def mean(self) -> Float[Array, "N *target"] | None:
        """The mean of the targets, for numbers and counts."""
        return self.targets.mean if isinstance(self.targets, NumberTargets) else None

    @property
    def epistemic_var(self) -> Float[Array, "N *target"] | None:
        """The part of the variance that comes from the weights."""
        return self.targets.epistemic_var if isinstance(self.targets, NumberTargets) else None

    @property
    def noise_var(self) -> Float[Array, "N *target"] | None:
        """The part of the variance that comes from the likelihood."""
        return self.targets.aleatoric_var if isinstance(self.targets, NumberTargets) else None

    @property
    def var(self) -> Float[Array, "N *target"] | None:
        """The predictive variance of the targets, `epistemic_var + noise_var`."""
        return self.targets.variance if isinstance(self.targets, NumberTargets) else None

    @property
    def cov(self) -> Float[Array, "N C C"] | None:
        """The predictive covariance of the flattened targets of each input, for regression.

        `f_cov` plus the noise; `None` without `f_cov`, and for other likelihoods.
        """
        return self.targets.covariance if isinstance(self.targets, NumberTargets) else None

    def quantile(self, q: ArrayLike | Sequence[float]) -> Num[Array, "..."]:
        r"""Return quantiles of the targets, $\inf\{y : F(y) \ge q\}$.

        Parameters
        ----------
        q
            One level between 0 and 1, or several, whose axes come first in the result.

        Raises
        ------
        TypeError
            If the targets have no order, or no distribution.
        """
        check_levels("q", q)
        return self.targets.quantile(jnp.asarray(q, self.f_mean.dtype))

    def interval(
        self, level: float | Float[Array, ""] = 0.9
    ) -> tuple[Num[Array, "N *target"], Num[Array, "N *target"]]:
        """Return both ends of the central interval of each target; for counts they are included.

        Parameters
        ----------
        level
            The probability of the interval; for counts, at least that.
        """
        check_levels("level", level)
        low, high = self.quantile(jnp.asarray([(1 - level) / 2, (1 + level) / 2]))
        return low, high

    def cdf(self, y: ArrayLike) -> Float[Array, "..."]:
        """Return the probability that each target is at most `y`.

        Parameters
        ----------
        y
            An array that broadcasts to the targets. For the probability integral transform of
            counts see `laplace_kit.eval.pit`.
        """
        return self.targets.cdf(jnp.asarray(y))

    def log_prob(self, y: ArrayLike) -> Float[Array, "N *entries"]:
        """Return the log probability of each target, or of each example of dependent targets.

        Parameters
        ----------
        y
            Targets of the N inputs, valid ones and without a mask.
        """
        return self.targets.log_prob(jnp.asarray(y))

    def sample(self, key: PRNGKeyArray, num_samples: int) -> Num[Array, "K N *target"]:
        """Draw targets, independently between inputs.

        Parameters
        ----------
        key, num_samples
            For the draws, K.
        """
        return self.targets.sample(key, num_samples)

    def prediction_set(self, level: float | Float[Array, ""] = 0.9) -> Bool[Array, "N ... C"]:
        """Return whether each class is in the smallest set of a probability of at least `level`.

        Parameters
        ----------
        level
            Between 0 and 1. Binary labels have the classes 0 and 1, on a new last axis.
        """
        probs = class_probabilities(self.targets)
        check_levels("level", level)
        return most_probable(probs, jnp.asarray(level, probs.dtype))

    def uncertainty(
        self, key: PRNGKeyArray | None = None, *, num_samples: int = 1000
    ) -> Uncertainty:
        """Return the aleatoric and the epistemic part; see `laplace_kit.targets.Uncertainty`.

        Parameters
        ----------
        key, num_samples
            To draw the logits of several classes, if the predictive was not made from draws.
        """
        return self.targets.uncertainty(key, num_samples=num_samples)


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
    """Return the predictive of a likelihood with Gaussian outputs.

    Parameters
    ----------
    likelihood, f_mean, f_var, f_cov
        The likelihood, with or without a mask, and the moments of its outputs.
    link, key, num_samples
        How class probabilities follow from Gaussian logits; see `predict`.
    """
    likelihood = without_mask(likelihood)
    targets = likelihood.targets(Outputs(f_mean, f_var, f_cov))
    if isinstance(targets, ClassTargets):
        rows, spread = positions(f_mean, f_var, f_cov)
        logits = links.class_logits(link, rows, spread, key=key, num_samples=num_samples)
        targets = targets.with_logits(logits.reshape(f_mean.shape))
    elif isinstance(targets, BinaryTargets):
        logits = links.bernoulli_logits(link, f_mean, f_var, key=key, num_samples=num_samples)
        targets = targets.with_logits(logits)
    return Predictive(targets, likelihood)


def from_samples(
    likelihood: Likelihood, samples: Float[Array, "N K *event"], full: bool
) -> Predictive:
    """Return the predictive of a likelihood with outputs at K weight draws.

    Parameters
    ----------
    likelihood
        With or without a mask.
    samples
        The outputs at the draws; only their moments and averages are kept.
    full
        Whether to compute `f_cov`.
    """
    likelihood = without_mask(likelihood)
    targets = likelihood.targets(outputs_of_draws(samples, full))
    return Predictive(_with_outputs(targets, targets.outputs.without_draws()), likelihood)


def with_joint_covariance(predictive: Predictive, joint_cov: Float[Array, "N C N C"]) -> Predictive:
    """Return the predictive with the covariance of its outputs between all inputs."""
    outputs = tree.replace(predictive.targets.outputs, joint_cov=joint_cov)
    return tree.replace(predictive, targets=_with_outputs(predictive.targets, outputs))


def _with_outputs(targets: Targets, outputs: Outputs) -> Targets:
    return tree.replace(targets, outputs=outputs)
