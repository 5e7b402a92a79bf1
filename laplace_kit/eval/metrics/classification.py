"""Per-example scores of class probabilities: likelihood and accuracy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from laplace_kit.eval.metrics import checks, weighting
from laplace_kit.eval.metrics.inputs import metric


@metric
def negative_log_likelihood(
    probs: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return $-\frac{1}{N} \sum_n \sum_c y_{nc} \log p_{nc}$, in nats.

    Parameters
    ----------
    probs
        Probabilities `(N, C)`. A label of probability zero costs infinitely much, also where the
        softmax has rounded to zero; `la.evaluate` and reports take logits, where nothing rounds.
    y
        Labels `(N,)` or `(N, C)`; soft labels give the cross-entropy.
    weights
        Weights of the examples, `(N,)`; one each by default.

    Raises
    ------
    ValueError
        If probabilities, labels or weights have inconsistent shapes or invalid values.
    """
    probs, targets = checks.labelled(probs, y)
    weights = weighting.checked(weights, len(probs), probs.dtype)
    return _cross_entropy(probs, targets, weights)


@jax.jit
def _cross_entropy(probs, targets, weights):
    losses = -jnp.sum(jax.scipy.special.xlogy(targets, jnp.maximum(probs, 0)), axis=1)
    # An example of weight zero does not count, whatever its loss.
    return weighting.mean(jnp.where(weights == 0, 0, losses), weights)


@metric
def accuracy(
    probs: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    """Return the fraction of examples whose most probable class is the label.

    Parameters
    ----------
    probs, y, weights
        As for `negative_log_likelihood`, with the same errors. Among equal probabilities the first
        class is taken; a soft label counts as its most probable class.
    """
    probs, targets = checks.labelled(probs, y)
    weights = weighting.checked(weights, len(probs), probs.dtype)
    return weighting.mean(hits(probs, targets), weights)


@metric
def top_k_accuracy(
    probs: ArrayLike, y: ArrayLike, k: int = 5, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    """Return the fraction of examples whose label is among the `k` most probable classes.

    Parameters
    ----------
    probs, y, weights
        As for `accuracy`, which is the case `k=1`, with the same errors.
    k
        An integer from 1 to the number of classes, where the result is 1; a `ValueError` otherwise.
    """
    probs, targets = checks.labelled(probs, y)
    if not 1 <= k <= probs.shape[1]:
        num = probs.shape[1]
        raise ValueError(f"Found k={k} for {num} classes, expected an integer from 1 to {num}.")
    weights = weighting.checked(weights, len(probs), probs.dtype)
    return weighting.mean(hits(probs, targets, k), weights)


def _ranks(probs: Float[Array, "N C"], targets: Float[Array, "N C"]) -> Float[Array, " N"]:
    """Return the number of classes ranked above the label; NaN where either input is NaN."""
    label = jnp.argmax(targets, axis=1, keepdims=True)
    label_prob = jnp.take_along_axis(probs, label, axis=1)
    is_before = jnp.arange(probs.shape[1]) < label
    rank = jnp.sum((probs > label_prob) | ((probs == label_prob) & is_before), axis=1)
    unknown = jnp.isnan(jnp.sum(probs + targets, axis=1))
    return jnp.where(unknown, jnp.nan, rank.astype(probs.dtype))


@jax.jit
def hits(
    probs: Float[Array, "N C"], targets: Float[Array, "N C"], k: int | Int[Array, ""] = 1
) -> Float[Array, " N"]:
    """Return 1 where the label is among the `k` most probable classes, else 0; NaN for NaNs."""
    ranks = _ranks(probs, targets)
    return jnp.where(jnp.isnan(ranks), jnp.nan, (ranks < k).astype(probs.dtype))


@jax.jit
def agreement(probs: Float[Array, "N C"], targets: Float[Array, "N C"]) -> Float[Array, " N"]:
    """Return the label probability of the predicted class; NaN where either input is NaN.

    Confidence is compared with this. For hard labels it is 0 or 1; for soft labels it is a fraction
    that equals the confidence where prediction and label are equal.
    """
    first = jnp.argmax(probs, axis=1, keepdims=True)
    unknown = jnp.isnan(jnp.sum(probs + targets, axis=1))
    return jnp.where(unknown, jnp.nan, jnp.take_along_axis(targets, first, axis=1)[:, 0])
