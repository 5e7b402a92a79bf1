"""Scores of class probabilities that look at each example alone."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from laplace_kit.eval.metrics import checks, weighting
from laplace_kit.eval.metrics.inputs import metric
from laplace_kit.targets.logarithms import finite_log


@metric
def negative_log_likelihood(
    probs: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return $-\frac{1}{N} \sum_n \sum_c y_{nc} \log p_{nc}$, in nats.

    Parameters
    ----------
    probs
        Probabilities `(N, C)`. A probability of zero counts as the smallest normal number of its
        dtype, so that one such label costs 87 nats in float32 and 708 in float64, not infinity.
    y
        Labels `(N,)` or `(N, C)`; soft labels give the cross-entropy.
    weights
        Of the examples, `(N,)`; one each by default.

    Raises
    ------
    ValueError
        If shapes or values are not those of probabilities, labels and weights.
    """
    probs, targets = checks.labelled(probs, y)
    weights = weighting.checked(weights, len(probs), probs.dtype)
    return _cross_entropy(probs, targets, weights)


@jax.jit
def _cross_entropy(probs, targets, weights):
    return -weighting.mean(jnp.sum(targets * finite_log(probs), axis=1), weights)


@metric
def accuracy(
    probs: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    """Return the fraction of examples whose most probable class is the label.

    Parameters
    ----------
    probs, y, weights
        As for `negative_log_likelihood`, with the same errors. Of equal probabilities the first
        class counts, of a soft label the most probable one.
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
        As for `accuracy`, which this is for `k=1`, with the same errors.
    k
        From 1 to the number of classes, which makes the answer 1, or a `ValueError` says so.
    """
    probs, targets = checks.labelled(probs, y)
    if not 1 <= k <= probs.shape[1]:
        raise ValueError(f"Found k={k} for {probs.shape[1]} classes, expected from 1 to as many.")
    weights = weighting.checked(weights, len(probs), probs.dtype)
    return weighting.mean(hits(probs, targets, k), weights)


def _ranks(probs: Float[Array, "N C"], targets: Float[Array, "N C"]) -> Float[Array, " N"]:
    """Return how many classes come before the label; NaN where either is unknown."""
    label = jnp.argmax(targets, axis=1, keepdims=True)
    of_label = jnp.take_along_axis(probs, label, axis=1)
    is_before = jnp.arange(probs.shape[1]) < label
    rank = jnp.sum((probs > of_label) | ((probs == of_label) & is_before), axis=1)
    unknown = jnp.isnan(jnp.sum(probs + targets, axis=1))
    return jnp.where(unknown, jnp.nan, rank.astype(probs.dtype))


@jax.jit
def hits(
    probs: Float[Array, "N C"], targets: Float[Array, "N C"], k: int | Int[Array, ""] = 1
) -> Float[Array, " N"]:
    """Return 1 where the label is among the first `k` classes, else 0; NaN where it is unknown."""
    ranks = _ranks(probs, targets)
    return jnp.where(jnp.isnan(ranks), jnp.nan, (ranks < k).astype(probs.dtype))


@jax.jit
def agreement(probs: Float[Array, "N C"], targets: Float[Array, "N C"]) -> Float[Array, " N"]:
    """Return what the label gives to the most probable class; NaN where either is unknown.

    Confidence is compared with this: of hard labels the hits, of soft ones a fraction, as large as
    the confidence where prediction and label are equal.
    """
    first = jnp.argmax(probs, axis=1, keepdims=True)
    unknown = jnp.isnan(jnp.sum(probs + targets, axis=1))
    return jnp.where(unknown, jnp.nan, jnp.take_along_axis(targets, first, axis=1)[:, 0])
