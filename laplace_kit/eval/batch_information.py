r"""Batches of inputs chosen greedily by the joint information of their labels and the weights.

$I(y_1, \dots, y_b; \theta)$ grows with a label at input n by
$H(y_n \mid y_1, \dots, y_b) - H(y_n \mid \theta)$. Functions drawn from the posterior stand for
$\theta$; the labels before are enumerated, or drawn where there are too many configurations. Each
configuration is a distribution over the functions, so that no product of probabilities underflows.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from laplace_kit.chunks import chunk_of_map
from laplace_kit.eval.functions import FunctionSamples
from laplace_kit.eval.moments import accurate
from laplace_kit.placement import placement_of
from laplace_kit.sums import map_over
from laplace_kit.targets.outputs import Outputs
from laplace_kit.tree import pytree_dataclass

_CONFIGURATIONS = 1024
# Probabilities of all functions are kept up to one part in this many of the memory limit.
_SHARE = 4


@pytree_dataclass()
class Configurations:
    """M configurations of the labels chosen so far: their weights, and functions given each."""

    weights: Float[Array, " M"]
    functions: Float[Array, "M K"]


def batch_by_labels(
    samples: FunctionSamples,
    pool: PyTree,
    held: int,
    num: int,
    key: PRNGKeyArray,
    *,
    num_configurations: int = _CONFIGURATIONS,
) -> Int[Array, " num"]:
    """Return the inputs whose labels add most to the joint information, one by one.

    Parameters
    ----------
    samples
        K functions, under a likelihood with one label of classes for each input.
    pool, held
        Inputs, only the first `held` of which may be chosen.
    num
        How many to choose, at most `held`.
    key
        For the draws of configurations.
    num_configurations
        M: while there are at most as many, all are enumerated.

    Returns
    -------
    indices
        Cost: the K functions at all inputs, once or for each choice, and M K C operations for each
        input and choice.
    """
    limits, placement = samples.objective.limits, placement_of(pool)
    spec = jax.eval_shape(drawn_probabilities, samples, pool)
    num_classes = spec.shape[-1]
    source, x = samples, pool
    if spec.size * spec.dtype.itemsize <= limits.budget // _SHARE:
        size = chunk_of_map(drawn_probabilities, samples, pool, limits, placement)
        source, x = None, map_over(drawn_probabilities, samples, pool, size, placement)
    found, count = _empty(num_configurations, len(samples), spec.dtype), 1
    size = chunk_of_map(_gain, (source, found), x, limits, placement)
    indices = jnp.full(num, len(spec))
    for step in range(num):
        gains = map_over(_gain, (source, found), x, size, placement)
        indices = _choose(gains, indices, step, held)
        if step + 1 < num:
            count *= num_classes
            drawn = jax.random.fold_in(key, step) if count > num_configurations else None
            found = _grown(source, x, indices[step], found, drawn)
    return indices


def drawn_probabilities(samples: FunctionSamples, x: PyTree) -> Float[Array, "N K C"]:
    """Return the probabilities of the label's classes under each function.

    Raises
    ------
    ValueError
        If inputs have several labels.
    """
    f = jnp.moveaxis(jax.vmap(lambda k: samples[k](x))(jnp.arange(len(samples))), 0, 1)
    f = accurate(f)
    flat = f.reshape(-1, *f.shape[2:])
    certain = Outputs(flat, jnp.zeros_like(flat))
    p = samples.objective.likelihood.targets(certain).class_probabilities
    if p[0, ..., 0].size > 1:
        raise ValueError(
            f"Found outputs {f.shape[2:]} with {p[0, ..., 0].size} labels for each input, expected "
            "one label; use method='bald', which adds up the information of all labels, or "
            "'logdet'."
        )
    return p.reshape(*f.shape[:2], p.shape[-1])


@partial(jax.jit, static_argnames=("num", "num_functions", "dtype"))
def _empty(num, num_functions, dtype) -> Configurations:
    """Return the one configuration of no labels, and rows of weight zero."""
    weights = jnp.zeros(num, dtype).at[0].set(1)
    return Configurations(weights, jnp.full((num, num_functions), 1 / num_functions, dtype))


def _gain(args, x) -> Float[Array, " B"]:
    """Return the entropy of each label given those before, minus that given the function."""
    source, found = args
    p = _probabilities(source, x)
    given = jnp.einsum("mk,bkc->bmc", found.functions, p, precision="highest")
    entropies = entr(given).sum(axis=-1) @ found.weights
    return entropies - entr(p).sum(axis=-1).mean(axis=1)


def _probabilities(source: FunctionSamples | None, x: PyTree) -> Float[Array, "N K C"]:
    """Return the probabilities at inputs, or x itself where it holds them."""
    return x if source is None else drawn_probabilities(source, x)


@jax.jit
def _choose(gains, indices, step, held):
    is_free = jnp.arange(len(gains)) < held
    is_free = is_free.at[indices].set(False, mode="drop")
    return indices.at[step].set(jnp.argmax(jnp.where(is_free, gains, -jnp.inf)))


@jax.jit
def _grown(source, x, index, found: Configurations, key: PRNGKeyArray | None) -> Configurations:
    """Return the configurations with the label of one more input: all, or as many drawn."""
    own = jax.tree.map(lambda leaf: leaf[index][None], x)
    p = _probabilities(source, own)[0]
    num, num_classes = len(found.weights), p.shape[1]
    given = jnp.matmul(found.functions, p, precision="highest")
    if key is None:
        # Rows of weight zero, behind all others, fall out where there are too many.
        before, label = jnp.divmod(jnp.arange(num), num_classes)
        weights = found.weights[before] * given[before, label]
    else:
        offset, labels = jax.random.split(key)
        places = (jnp.arange(num) + jax.random.uniform(offset, dtype=p.dtype)) / num
        before = jnp.searchsorted(jnp.cumsum(found.weights), places).clip(0, num - 1)
        label = jax.random.categorical(labels, jnp.log(given[before]))
        weights = jnp.full_like(found.weights, 1 / num)
    likely = found.functions[before] * p.T[label]
    total = likely.sum(axis=1, keepdims=True)
    is_possible = total > 0
    functions = jnp.where(
        is_possible, likely / jnp.where(is_possible, total, 1), found.functions[before]
    )
    return Configurations(weights, functions)
