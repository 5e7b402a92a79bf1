"""Scores of doubt: one number for each input, the higher, the further from what is known."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from laplace_kit.eval.metrics import checks
from laplace_kit.eval.metrics.inputs import metric
from laplace_kit.targets.logarithms import entropy

_NEARLY_ONE = 0.999  # nearer, float32 has fewer than four digits of the distance from one


@metric
def max_probability_score(probs: ArrayLike) -> Float[Array, " N"]:
    r"""Return $1 - \max_c p_{nc}$, for each input.

    Near certainty it is the sum of the other probabilities, which tells apart what rounds to one.

    Parameters
    ----------
    probs
        Probabilities `(N, C)`.

    Raises
    ------
    ValueError
        If these are not rows of probabilities.

    References
    ----------
    Hendrycks and Gimpel (2017), "A baseline for detecting misclassified and out-of-distribution
    examples in neural networks".
    """
    return besides_largest(checks.distributions(probs, "(N, C)"))


@metric
def entropy_score(probs: ArrayLike) -> Float[Array, " N"]:
    r"""Return $-\sum_c p_{nc} \log p_{nc}$, in nats, for each input: all uncertainty there is.

    Parameters
    ----------
    probs
        As for `max_probability_score`, with the same errors.
    """
    return entropy(checks.distributions(probs, "(N, C)"))


@jax.jit
def besides_largest(probs: Float[Array, "*batch C"]) -> Float[Array, "*batch"]:
    """Return one minus the largest probability, without cancellation where that is nearly one."""
    largest = jnp.max(probs, axis=-1)
    is_largest = jnp.arange(probs.shape[-1]) == jnp.argmax(probs, axis=-1)[..., None]
    others = jnp.sum(jnp.where(is_largest, 0, probs), axis=-1)
    # Elsewhere equal probabilities shall give equal scores, however the others are rounded.
    return jnp.where(largest > _NEARLY_ONE, others, 1 - largest)
