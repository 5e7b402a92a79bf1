"""Sets of the most probable classes."""

from functools import singledispatch
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from laplace_kit.eval.logarithms import finite_log
from laplace_kit.eval.uncertainty import no_distribution
from laplace_kit.likelihood import Bernoulli, Categorical, Likelihood

if TYPE_CHECKING:
    from laplace_kit.eval.outputs import Predictive


@singledispatch
def class_probabilities(
    likelihood: Likelihood | None, predictive: "Predictive"
) -> Float[Array, "N ... C"]:
    """Return the probability of every class along the last axis; of binary labels of 0 and 1.

    Raises
    ------
    TypeError
        If there are no classes.
    """
    if likelihood is None:
        raise no_distribution(None, "set of classes")
    raise TypeError(
        f"Found a {type(likelihood).__name__} likelihood, expected classes; of numbers and counts "
        "call predictive.interval(level)."
    )


@class_probabilities.register
def _(likelihood: Categorical, predictive):
    return predictive.probs


@class_probabilities.register
def _(likelihood: Bernoulli, predictive):
    logits, probs = predictive.logits, predictive.probs
    others = 1 - probs if logits is None else jax.nn.sigmoid(-logits)
    return jnp.stack([others, probs], axis=-1)


def class_logits(
    likelihood: Likelihood | None, predictive: "Predictive"
) -> Float[Array, "N ... C"]:
    """Return logits whose softmax is `class_probabilities`, with the same errors.

    Known up to a constant for each label. Without logits of the predictive's own they are the
    logarithms of its probabilities, of zero that of the smallest normal number.
    """
    probs, logits = class_probabilities(likelihood, predictive), predictive.logits
    if logits is None:
        return finite_log(probs)
    if isinstance(likelihood, Bernoulli):
        return jnp.stack([jnp.zeros_like(logits), logits], axis=-1)
    return logits


@jax.jit
def most_probable(
    probs: Float[Array, "*shape C"], level: Float[Array, ""]
) -> Bool[Array, "*shape C"]:
    """Return whether each class is in the smallest set with a probability of at least `level`.

    Parameters
    ----------
    probs
        Class probabilities along the last axis.
    level
        Between 0 and 1. Among equal probabilities the first class counts first. No set is empty,
        and none holds a class of probability zero.
    """
    return (_sums_before(probs, _most_probable_first(probs)) < level) & (probs > 0)


@jax.jit
def probability_after(probs: Float[Array, "*shape C"]) -> Float[Array, "*shape C"]:
    """Return for each class the probability of all that are less probable.

    Summed from the least probable class on: exact where its complement, the probability of the
    class and of all before it, rounds to one.
    """
    return _sums_before(probs, _most_probable_first(probs)[..., ::-1])


def _most_probable_first(probs: Float[Array, "*shape C"]) -> Int[Array, "*shape C"]:
    return jnp.argsort(-probs, axis=-1, stable=True)


def _sums_before(
    probs: Float[Array, "*shape C"], order: Int[Array, "*shape C"]
) -> Float[Array, "*shape C"]:
    """Return for each class the sum over the classes before it in this order."""
    ordered = jnp.take_along_axis(probs, order, axis=-1)
    sums = jnp.cumsum(ordered, axis=-1)[..., :-1]
    sums = jnp.concatenate([jnp.zeros_like(ordered[..., :1]), sums], axis=-1)
    return jnp.take_along_axis(sums, jnp.argsort(order, axis=-1), axis=-1)
