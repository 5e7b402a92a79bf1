r"""The interface of the distribution of the targets at N inputs, $p(y \mid x, D)$.

A likelihood makes it from the distribution of the model's outputs, `likelihood.targets(outputs)`.
Metrics, intervals, prediction sets, conformal scores, tuning, recalibration and reports use only
this object. There are three kinds: `NumberTargets`, ordered numbers or counts; `LabelTargets`,
classes; and `NoTargets`, for a loss that defines no distribution.

A distribution is a frozen pytree. Its arrays have the inputs on their first axis; values shared by
all inputs are scalars, fields named in `shared`, or static.
"""

import abc
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from laplace_kit.targets.logarithms import finite_log
from laplace_kit.targets.outputs import Outputs
from laplace_kit.targets.uncertainty import Uncertainty
from laplace_kit.tree import pytree_dataclass


class Targets(abc.ABC):
    """The distribution of the targets at N inputs; a subclass has a field `outputs`."""

    outputs: Outputs
    shared: ClassVar[tuple[str, ...]] = ()  # fields without the inputs' axis, besides scalars
    is_discrete: ClassVar[bool] = False  # the distribution function has steps, as for counts

    @abc.abstractmethod
    def log_prob(self, y: Num[Array, "N ..."]) -> Float[Array, "N *entries"]:
        r"""Return $\log p(y_i \mid x, D)$ for every entry of the targets.

        There is one value per entry, such as a number or a label, or one per example if the entries
        of an example depend on each other. The result is undefined for invalid targets: the caller
        checks them, and leaves missing ones out.
        """

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, num_samples: int) -> Num[Array, "K N *target"]:
        """Draw targets, independently between inputs."""

    @abc.abstractmethod
    def uncertainty(
        self, key: PRNGKeyArray | None = None, *, num_samples: int = 1000
    ) -> Uncertainty:
        """Return the aleatoric and the epistemic part of the uncertainty.

        Parameters
        ----------
        key, num_samples
            For draws of the outputs, where there is neither a closed form nor a quadrature.
        """

    def cdf(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """Return the probability that each target is at most `y`, which broadcasts to them."""
        raise self._without_order()

    def quantile(self, q: Float[Array, "*levels"]) -> Float[Array, "..."]:
        r"""Return $\inf\{y : F(y) \ge q\}$ for each target, the axes of `q` in front."""
        raise self._without_order()

    def _without_order(self) -> TypeError:
        return TypeError(
            f"Found {type(self).__name__}, whose classes have no order, expected numbers or counts;"
            " for the most probable classes call predictive.prediction_set(level)."
        )


class NumberTargets(Targets):
    """Numbers or counts, with `mean` and both parts of the variance of the targets' shape.

    A subclass implements `cdf` and `quantile`; `laplace_kit.targets.inverted` inverts a
    distribution function.
    """

    mean: Float[Array, "N *target"]
    aleatoric_var: Float[Array, "N *target"]  # of the noise
    epistemic_var: Float[Array, "N *target"]  # of the weights
    is_normal: ClassVar[bool] = False  # normal, so that closed forms score it
    is_joint: ClassVar[bool] = False  # the entries of an example depend on each other

    @property
    def variance(self) -> Float[Array, "N *target"]:
        """The variance of the targets, the sum of its two parts."""
        return self.epistemic_var + self.aleatoric_var

    @property
    def covariance(self) -> Float[Array, "N C C"] | None:
        """The covariance of the flattened targets of each input; `None` where it is unknown."""
        return None

    def uncertainty(self, key=None, *, num_samples=1000):
        return Uncertainty(self.aleatoric_var, self.epistemic_var)

    def whitened(self, y: Num[Array, "N *target"]) -> Float[Array, "N *target"]:
        """Return whitened residuals: uncorrelated, of variance one for a calibrated predictive."""
        return (y - self.mean) / jnp.sqrt(self.variance)

    def scaled(self, factor: Float[Array, "*target"]) -> "NumberTargets":
        """Return the distribution of `mean + factor * (y - mean)`, for recalibration."""
        raise TypeError(
            f"Found {type(self).__name__}, for which no recalibration is defined, expected targets "
            "whose deviations can be scaled, such as those of lk.Gaussian(), or classes."
        )

    def _without_order(self) -> TypeError:
        return TypeError(
            f"Found {type(self).__name__} without cdf or quantile, expected both for intervals; "
            "implement them, the second by laplace_kit.targets.inverted."
        )


class LabelTargets(Targets):
    """Labels: one of several classes, or binary.

    `probs` are the probabilities in the form of the predictive, and `logits` the logits whose
    softmax or sigmoid they are, exact where `probs` round to zero; `None` if unknown.
    """

    probs: Float[Array, "N *event"]
    logits: Float[Array, "N *event"] | None

    @property
    def mean(self) -> Float[Array, "N *event"]:
        """The mean of the indicator of each class, `probs`."""
        return self.probs

    @property
    def variance(self) -> Float[Array, "N *event"]:
        """The variance of the indicator of each class."""
        return self.probs * (1 - self.probs)

    @property
    def class_probabilities(self) -> Float[Array, "N ... C"]:
        """The probability of every class along the last axis."""
        return self.probs

    @property
    def class_logits(self) -> Float[Array, "N ... C"]:
        """Logits whose softmax is `class_probabilities`, up to a constant for each label.

        If `logits` are unknown, the logarithms of the probabilities, with zero replaced by the
        smallest normal number.
        """
        return finite_log(self.class_probabilities) if self.logits is None else self.logits

    @abc.abstractmethod
    def tempered(self, temperature: Float[Array, ""]) -> "LabelTargets":
        r"""Return the labels with probabilities $\mathrm{softmax}(\log p / T)$."""

    def sample(self, key, num_samples):
        logits = self.class_logits
        return jax.random.categorical(key, logits, shape=(num_samples, *logits.shape[:-1]))


@pytree_dataclass(static=("name",))
class NoTargets(Targets):
    """The outputs of a likelihood that defines no distribution of the targets.

    `name` is the name of the likelihood's class, for messages; `None` without a likelihood.
    """

    outputs: Outputs
    name: str | None = None

    def log_prob(self, y):
        if self.name is None:
            raise no_distribution(None, "probability of the targets")
        raise TypeError(
            f"Found a {self.name} likelihood, which defines no predictive distribution of the "
            "targets, expected one such as lk.Gaussian(), or a likelihood with a method "
            "targets(outputs); tune by evidence."
        )

    def sample(self, key, num_samples):
        raise no_distribution(self.name, "distribution of the targets")

    def uncertainty(self, key=None, *, num_samples=1000):
        raise no_distribution(self.name, "uncertainty of the targets")

    def _without_order(self):
        return no_distribution(self.name, "distribution of the targets")


def no_distribution(name: str | None, what: str) -> TypeError:
    """Return the error for a likelihood that does not define `what`."""
    if name is None:
        return TypeError(
            f"Found a predictive without a likelihood, expected one, from which the {what} follows;"
            " pass Predictive(lk.Categorical().targets(outputs)), or whichever it is."
        )
    return TypeError(
        f"Found a {name} likelihood, from which no {what} follows, expected a likelihood that "
        "defines it, such as lk.Gaussian(), or a method targets(outputs) of your own."
    )
