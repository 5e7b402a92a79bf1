"""Labels of several classes, with one logit for each class."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from laplace_kit.targets.base import LabelTargets
from laplace_kit.targets.logarithms import finite_log
from laplace_kit.targets.outputs import Outputs
from laplace_kit.targets.uncertainty import Uncertainty, class_parts, drawn_parts
from laplace_kit.tree import pytree_dataclass, replace

# The logistic function is nearest to the normal CDF of a variance 8 / pi (MacKay, 1992).
_PROBIT_SCALE = math.pi / 8


@pytree_dataclass()
class ClassTargets(LabelTargets):
    """Labels of C classes with the probabilities `probs`.

    Parameters
    ----------
    outputs
        The logits' distribution, from which the parts of the uncertainty follow.
    probs
        `(N, ..., C)`.
    logits
        The logits whose softmax is `probs`, if known.
    drawn
        The parts of the uncertainty over draws of the weights; `None` for Gaussian logits.
    """

    outputs: Outputs
    probs: Float[Array, "N ... C"]
    logits: Float[Array, "N ... C"] | None = None
    drawn: Uncertainty | None = None

    def log_prob(self, y):
        return label_log_probs(self.probs, self.logits, y)

    def uncertainty(self, key=None, *, num_samples=1000):
        if self.drawn is not None:
            return self.drawn
        if key is None:
            raise ValueError(
                "Found no key, expected one to draw the logits of several classes; pass "
                "key=jax.random.key(0)."
            )
        outputs = self.outputs
        return class_parts(outputs.mean, outputs.var, outputs.cov, key, num_samples)

    def tempered(self, temperature):
        return self.with_logits(self.class_logits / temperature)

    def with_logits(self, logits: Float[Array, "N ... C"]) -> "ClassTargets":
        """Return the labels with other logits; the uncertainty stays that of the outputs."""
        return replace(self, probs=jax.nn.softmax(logits), logits=logits)


def classes(outputs: Outputs) -> ClassTargets:
    """Return labels with these logits: averaged over draws, or by the probit approximation.

    Parameters
    ----------
    outputs
        The distribution of the logits. `laplace_kit.eval.class_probabilities` has more links.
    """
    if outputs.draws is None:
        logits, drawn = probit_logits(outputs), None
    else:
        logits = log_mean(jax.nn.log_softmax(outputs.draws))
        drawn = drawn_parts(outputs.draws)
    return ClassTargets(outputs.without_draws(), jax.nn.softmax(logits), logits, drawn)


def probit_logits(outputs: Outputs) -> Float[Array, "N *event"]:
    r"""Return $m / \sqrt{1 + \pi v / 8}$."""
    return outputs.mean / jnp.sqrt(1 + _PROBIT_SCALE * jnp.maximum(outputs.var, 0))


@jax.jit
def log_mean(log_probs: Float[Array, "N K *event"]) -> Float[Array, "N *event"]:
    """Return the logarithm of the average over draws, finite where the average underflows."""
    return jax.nn.logsumexp(log_probs - math.log(log_probs.shape[1]), axis=1)


@jax.jit
def label_log_probs(
    probs: Float[Array, "N ... C"],
    logits: Float[Array, "N ... C"] | None,
    y: Num[Array, "N ..."],
) -> Float[Array, "N ..."]:
    r"""Return $\sum_c y_c \log p_c$ for each label, exactly if logits are known.

    Parameters
    ----------
    probs
        The probabilities. Without logits, zero is replaced by the smallest normal number.
    logits
        The logits whose softmax is `probs`, if known.
    y
        Integer labels, or distributions over the classes.
    """
    log_p = finite_log(probs) if logits is None else jax.nn.log_softmax(logits)
    if y.shape == probs.shape:
        return jnp.sum(y * log_p, axis=-1)
    labels = y.astype(jnp.int32)
    labels = jnp.where((labels >= 0) & (labels < probs.shape[-1]), labels, 0)
    return jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
