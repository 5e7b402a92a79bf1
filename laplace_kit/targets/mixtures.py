r"""Mixtures: a distribution of the target given one output, integrated over the output.

$$p(y \mid x, D) = \int p(y \mid f)\, p(f \mid x, D)\, df$$

A likelihood with one output for each target defines $p(y \mid f)$; mean, both parts of the
variance, density, distribution function, quantiles and draws follow from it.
"""

import abc
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from laplace_kit.targets.base import NumberTargets
from laplace_kit.targets.expectation import log_concave_expectation, normal_expectation
from laplace_kit.targets.inversion import inverted, inverted_counts
from laplace_kit.targets.outputs import Outputs
from laplace_kit.tree import pytree_dataclass


class Law(abc.ABC):
    r"""The distribution of a target given its output, $p(y \mid f)$; a frozen pytree.

    All methods are elementwise: outputs and targets are arrays of the same shape. $\log p(y \mid
    f)$ must be concave in f, as it is for exponential families with natural or logarithmic link and
    for log-concave noise.
    """

    is_discrete: ClassVar[bool] = False

    @abc.abstractmethod
    def mean(self, f: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""Return $\mathbb E[y \mid f]$."""

    @abc.abstractmethod
    def variance(self, f: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""Return $\operatorname{Var}(y \mid f)$."""

    @abc.abstractmethod
    def log_prob(
        self, f: Float[Array, "*shape"], y: Num[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        r"""Return $\log p(y \mid f)$, differentiable in f."""

    @abc.abstractmethod
    def cdf(self, f: Float[Array, "*shape"], y: Num[Array, "..."]) -> Float[Array, "..."]:
        r"""Return $P(Y \le y \mid f)$; for counts y is an integer, zero or more."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, f: Float[Array, "*shape"]) -> Num[Array, "*shape"]:
        r"""Draw $y \sim p(y \mid f)$."""

    def moments(self, outputs: Outputs) -> tuple[Array, Array, Array]:
        """Return mean, aleatoric and epistemic variance, by quadrature or over draws.

        Parameters
        ----------
        outputs
            The distribution of the outputs.
        """
        mean, epistemic = outputs.moments(self.mean)
        return mean, outputs.expectation(self.variance), epistemic


@pytree_dataclass()
class MixtureTargets(NumberTargets):
    """Targets that follow a law given one output each; made by `mixture`."""

    outputs: Outputs
    law: Law
    mean: Float[Array, "N *target"]
    aleatoric_var: Float[Array, "N *target"]
    epistemic_var: Float[Array, "N *target"]

    shared = ("law",)

    @property
    def is_discrete(self) -> bool:
        """Whether the targets are counts."""
        return self.law.is_discrete

    def log_prob(self, y):
        return _log_prob(self.outputs, self.law, y)

    def cdf(self, y):
        return _cdf(self.outputs, self.law, y)

    def quantile(self, q):
        return _quantile(self, q)

    def sample(self, key, num_samples):
        output_key, target_key = jax.random.split(key)
        return self.law.sample(target_key, self.outputs.sample(output_key, num_samples))


def mixture(outputs: Outputs, law: Law) -> MixtureTargets:
    r"""Return the distribution of targets that follow a law given one output each.

    Parameters
    ----------
    outputs
        The distribution of the outputs, of the targets' shape.
    law
        $p(y \mid f)$.

    Returns
    -------
    targets
        Density and distribution function are integrals over the Gaussian of the outputs, by 137
        evaluations of the law; a quantile takes about 40 such integrals.
    """
    return MixtureTargets(outputs.without_draws(), law, *law.moments(outputs))


@jax.jit
def _log_prob(outputs: Outputs, law: Law, y: Num[Array, "N *target"]) -> Float[Array, "N *target"]:
    return log_concave_expectation(lambda f: law.log_prob(f, y), outputs.mean, outputs.std)


@jax.jit
def _cdf(outputs: Outputs, law: Law, y: Num[Array, "..."]) -> Float[Array, "..."]:
    if not law.is_discrete:
        return normal_expectation(lambda f: law.cdf(f, y), outputs.mean, outputs.std)
    count = jnp.floor(y).astype(outputs.mean.dtype)

    def given(f):
        return jnp.where(count < 0, 0, law.cdf(f, jnp.maximum(count, 0)))

    return normal_expectation(given, outputs.mean, outputs.std)


@jax.jit
def _quantile(targets: MixtureTargets, q: Float[Array, "*levels"]) -> Float[Array, "..."]:
    if targets.is_discrete:
        return inverted_counts(targets.cdf, q, targets.mean)
    centre, width = targets.law.mean(targets.outputs.mean), jnp.sqrt(targets.variance)
    is_usable = jnp.isfinite(width) & (width > 0)
    return inverted(targets.cdf, q, centre=centre, width=jnp.where(is_usable, width, 1))
