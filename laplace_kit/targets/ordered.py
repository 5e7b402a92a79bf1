"""Labels of ordered classes, with one latent output each and cutpoints between the classes."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from laplace_kit.targets.base import LabelTargets
from laplace_kit.targets.classes import label_log_probs, log_mean
from laplace_kit.targets.expectation import log_expectation
from laplace_kit.targets.outputs import Outputs
from laplace_kit.targets.uncertainty import Uncertainty, drawn_parts, parts_by_quadrature
from laplace_kit.tree import pytree_dataclass, replace


@pytree_dataclass()
class OrderedTargets(LabelTargets):
    """Labels 0 to K - 1 in order, with the probabilities `probs` along a new last axis.

    Ordered classes also have a distribution function and quantiles.

    Parameters
    ----------
    outputs
        The latent outputs' distribution.
    cutpoints
        `(L,)`, increasing; one fewer than there are classes.
    probs, logits
        `(N, *event, K)`: integrated over the outputs; the logits are their exact logarithms.
    drawn
        The parts of the uncertainty over draws of the weights; `None` for Gaussian outputs.
    """

    outputs: Outputs
    cutpoints: Float[Array, " L"]
    probs: Float[Array, "N *event K"]
    logits: Float[Array, "N *event K"] | None = None
    drawn: Uncertainty | None = None

    shared = ("cutpoints",)
    is_discrete = True

    def log_prob(self, y):
        return label_log_probs(self.probs, self.logits, y)

    def cdf(self, y):
        sums = jnp.cumsum(self.probs, axis=-1)
        label = jnp.broadcast_to(jnp.floor(y).astype(int), self.probs.shape[:-1])
        last = self.probs.shape[-1] - 1
        within = jnp.take_along_axis(sums, jnp.clip(label, 0, last)[..., None], axis=-1)[..., 0]
        return jnp.where(label < 0, 0, jnp.where(label >= last, 1, within))

    def quantile(self, q):
        sums = jnp.cumsum(self.probs, axis=-1)[..., :-1]
        levels = q.reshape(*q.shape, *(1,) * sums.ndim)
        return jnp.sum(sums < levels, axis=-1)

    def uncertainty(self, key=None, *, num_samples=1000):
        if self.drawn is not None:
            return self.drawn
        logits = Partial(ordered_log_probs, self.cutpoints)
        return parts_by_quadrature(logits, self.outputs.mean, self.outputs.var)

    def tempered(self, temperature):
        logits = self.class_logits / temperature
        return replace(self, probs=jax.nn.softmax(logits), logits=logits)


def ordered(outputs: Outputs, cutpoints: Float[Array, " L"]) -> OrderedTargets:
    """Return labels of ordered classes with the latent output integrated out.

    Parameters
    ----------
    outputs
        The distribution of the latent outputs: by quadrature, or averaged over draws.
    cutpoints
        Increasing.
    """
    drawn = None
    if outputs.draws is None:
        logits = _averaged(outputs, cutpoints)
    else:
        log_p = ordered_log_probs(cutpoints, outputs.draws)
        logits, drawn = log_mean(log_p), drawn_parts(log_p)
    return OrderedTargets(outputs.without_draws(), cutpoints, jax.nn.softmax(logits), logits, drawn)


def ordered_log_probs(
    cutpoints: Float[Array, " L"], f: Float[Array, "*shape"]
) -> Float[Array, "*shape K"]:
    r"""Return $\log p_k = \log [\sigma(c_k - f) - \sigma(c_{k-1} - f)]$ for all classes.

    With $\sigma(a) - \sigma(b) = \sigma(a)\, \sigma(-b)\, (1 - e^{b - a})$, so that nothing cancels
    or underflows.
    """
    distance = cutpoints - f[..., None]
    at_most, above = jax.nn.log_sigmoid(distance), jax.nn.log_sigmoid(-distance)
    gaps = jnp.log(-jnp.expm1(-jnp.diff(cutpoints)))
    middle = at_most[..., 1:] + above[..., :-1] + gaps
    return jnp.concatenate([at_most[..., :1], middle, above[..., -1:]], axis=-1)


@jax.jit
def _averaged(outputs: Outputs, cutpoints: Float[Array, " L"]) -> Float[Array, "N *event K"]:
    return log_expectation(
        lambda f: ordered_log_probs(cutpoints, f), outputs.mean, jnp.sqrt(outputs.var)
    )
