"""Binary labels, with one logit each."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.targets.base import LabelTargets
from laplace_kit.targets.classes import log_mean, probit_logits
from laplace_kit.targets.logarithms import finite_log
from laplace_kit.targets.outputs import Outputs
from laplace_kit.targets.uncertainty import Uncertainty, binary_parts, drawn_binary_parts
from laplace_kit.tree import pytree_dataclass, replace


@pytree_dataclass()
class BinaryTargets(LabelTargets):
    """Labels 0 and 1, with the probability of 1 in `probs`.

    Parameters
    ----------
    outputs
        The logits' distribution, from which the parts of the uncertainty follow.
    probs
        The probability of the label 1, of the outputs' shape.
    logits
        The logits whose sigmoid is `probs`, if known.
    drawn
        The parts of the uncertainty over draws of the weights; `None` for Gaussian logits.
    """

    outputs: Outputs
    probs: Float[Array, "N *event"]
    logits: Float[Array, "N *event"] | None = None
    drawn: Uncertainty | None = None

    @property
    def class_probabilities(self):
        others = 1 - self.probs if self.logits is None else jax.nn.sigmoid(-self.logits)
        return jnp.stack([others, self.probs], axis=-1)

    @property
    def class_logits(self):
        if self.logits is None:
            return finite_log(self.class_probabilities)
        return jnp.stack([jnp.zeros_like(self.logits), self.logits], axis=-1)

    def log_prob(self, y):
        y = y.astype(self.probs.dtype)  # unsigned labels cannot be negated
        if self.logits is not None:
            yes, no = jax.nn.log_sigmoid(self.logits), jax.nn.log_sigmoid(-self.logits)
            return y * yes + (1 - y) * no  # no difference of large numbers
        return y * finite_log(self.probs) + (1 - y) * finite_log(1 - self.probs)

    def sample(self, key, num_samples):
        shape = (num_samples, *self.probs.shape)
        return jax.random.bernoulli(key, self.probs, shape).astype(self.probs.dtype)

    def uncertainty(self, key=None, *, num_samples=1000):
        if self.drawn is not None:
            return self.drawn
        return binary_parts(self.outputs.mean, self.outputs.var)

    def tempered(self, temperature):
        logits = self.class_logits / temperature
        return self.with_logits(logits[..., 1] - logits[..., 0])

    def with_logits(self, logits: Float[Array, "N *event"]) -> "BinaryTargets":
        """Return the labels with other logits; the uncertainty stays that of the outputs."""
        return replace(self, probs=jax.nn.sigmoid(logits), logits=logits)


def binary(outputs: Outputs) -> BinaryTargets:
    """Return binary labels with these logits: averaged over draws, or by the probit approximation.

    Parameters
    ----------
    outputs
        The distribution of the logits. `laplace_kit.eval.bernoulli_probabilities` has more links.
    """
    if outputs.draws is None:
        logits, drawn = probit_logits(outputs), None
    else:
        draws = outputs.draws
        logits = log_mean(jax.nn.log_sigmoid(draws)) - log_mean(jax.nn.log_sigmoid(-draws))
        drawn = drawn_binary_parts(draws)
    return BinaryTargets(outputs.without_draws(), jax.nn.sigmoid(logits), logits, drawn)
