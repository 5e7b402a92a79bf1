"""Sets of the most probable classes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from laplace_kit.targets.base import LabelTargets, NoTargets, Targets, no_distribution


def class_probabilities(targets: Targets) -> Float[Array, "N ... C"]:
    """Return the probability of every class along the last axis.

    Raises
    ------
    TypeError
        If there are no classes.
    """
    if isinstance(targets, LabelTargets):
        return targets.class_probabilities
    if isinstance(targets, NoTargets):
        raise no_distribution(targets.name, "set of classes")
    raise TypeError(
        f"Found {type(targets).__name__}, expected classes; for numbers and counts call "
        "predictive.interval(level)."
    )


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
        Between 0 and 1. Ties go to the first class. No set is empty, and none holds a class of
        probability zero.
    """
    return (_sums_before(probs, _most_probable_first(probs)) < level) & (probs > 0)


@jax.jit
def probability_after(probs: Float[Array, "*shape C"]) -> Float[Array, "*shape C"]:
    """Return for each class the total probability of all less probable classes.

    Summed from the least probable class: exact where its complement, the probability of the class
    and of all more probable ones, rounds to one.
    """
    return _sums_before(probs, _most_probable_first(probs)[..., ::-1])


@jax.jit
def places(probs: Float[Array, "*shape C"]) -> Int[Array, "*shape C"]:
    """Return how many classes are more probable than each; ties go to the first class."""
    return jnp.argsort(_most_probable_first(probs), axis=-1)


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
