"""Sets of the most probable classes."""

from functools import singledispatch
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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
    return jnp.stack([1 - predictive.probs, predictive.probs], axis=-1)


@jax.jit
def most_probable(
    probs: Float[Array, "*shape C"], level: Float[Array, ""]
) -> Bool[Array, "*shape C"]:
    """Tell which classes are in the smallest set with a probability of at least `level`.

    Parameters
    ----------
    probs
        Class probabilities along the last axis.
    level
        Between 0 and 1. Of equal probabilities the first class counts first; no set is empty.
    """
    return cumulative_probability(probs) - probs < level


@jax.jit
def cumulative_probability(probs: Float[Array, "*shape C"]) -> Float[Array, "*shape C"]:
    """Return for each class its probability and that of all that are more probable."""
    order = jnp.argsort(-probs, axis=-1, stable=True)
    sums = jnp.cumsum(jnp.take_along_axis(probs, order, axis=-1), axis=-1)
    return jnp.take_along_axis(sums, jnp.argsort(order, axis=-1), axis=-1)
