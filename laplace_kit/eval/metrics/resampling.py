r"""Bootstrap confidence intervals of metrics.

Drawing $N$ of $N$ examples with replacement amounts to weighting each example by the number of
times it was drawn, and every metric takes weights. A bootstrap replicate is therefore an evaluation
with random counts as weights. Replicates are evaluated in chunks that fit in memory, by one
compiled program for each metric and shape of arrays.

A metric is a module-level function of arrays and `weights`, or a `functools.partial` of one with
hashable options: `partial(expected_calibration_error, num_bins=10)`. It may return a pytree, such
as `ReliabilityBins`, whose numbers then have an interval each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Num, PRNGKeyArray, PyTree

from laplace_kit.errors import check_count
from laplace_kit.eval.metrics.inputs import Numbers, as_numbers, in_own_precision
from laplace_kit.memory import Limits, activation_bytes

# If a chunk would be smaller, the memory that a replicate needs is estimated more precisely.
_SMALL_CHUNK = 16


class Interval(NamedTuple):
    """A metric with its confidence interval; each field has the metric's own structure.

    Attributes
    ----------
    value
        The metric of the original examples.
    low, high
        Ends of the confidence interval.
    standard_error
        Standard deviation of the metric over the replicates.
    """

    value: PyTree[Num[Array, "..."]]
    low: PyTree[Num[Array, "..."]]
    high: PyTree[Num[Array, "..."]]
    standard_error: PyTree[Num[Array, "..."]]


def bootstrap(
    metric: Callable[..., PyTree],
    *arrays: Numbers,
    key: PRNGKeyArray,
    num_resamples: int = 1000,
    level: float = 0.95,
    weights: Numbers | None = None,
) -> Interval:
    r"""Return a metric with its bootstrap confidence interval.

    With the quantiles $q$ of the replicates $m^*$ and their mean $\bar m^*$, the interval is
    $[m + q_{(1 - l) / 2} - \bar m^*, m + q_{(1 + l) / 2} - \bar m^*]$ at the level $l$. For a mean
    this is the percentile interval. Some metrics are biased upwards by sampling noise, above all
    calibration errors from few examples, and replicates have that bias twice: without the shift
    their interval may not contain the value. The interval is for the expectation of the metric with
    that many examples; to test a calibration error against zero, use `squared_calibration_error`,
    which is not biased.

    Parameters
    ----------
    metric
        Called as `metric(*arrays, weights=weights)`.
    arrays
        Arguments of the metric; the last has one row for each example.
    key
        The same key draws the same examples for every metric of the same number of examples.
    num_resamples
        Number of replicates R.
    level
        Nominal coverage of the interval.
    weights
        Weights of the examples, `(N,)`; one each by default. They are resampled together.

    Returns
    -------
    interval
        Replicates that are NaN, such as an AUROC without one of the classes, are left out. For a
        single example the ends are NaN.
        Cost: R evaluations of the metric; a sort that does not depend on the weights is done once.

    Raises
    ------
    ValueError
        If there are fewer than two resamples or the level is not between 0 and 1. Errors of the
        metric are passed on.

    References
    ----------
    Efron (1979), "Bootstrap methods: another look at the jackknife"; Efron and Tibshirani (1993),
    "An introduction to the bootstrap".
    """
    statistic = _OneSample(_hashable(metric))
    arrays, weights = _read("arrays", arrays), _read("weights", (weights,))
    return _bootstrap(statistic, arrays, arrays[-1:], weights, key, num_resamples, level)


def bootstrap_two_sample(
    metric: Callable[..., PyTree],
    in_scores: Numbers,
    out_scores: Numbers,
    *,
    key: PRNGKeyArray,
    num_resamples: int = 1000,
    level: float = 0.95,
    in_weights: Numbers | None = None,
    out_weights: Numbers | None = None,
) -> Interval:
    """Return a metric of two samples with its confidence interval; both are resampled separately.

    Parameters
    ----------
    metric
        Called as `metric(in_scores, out_scores, in_weights=..., out_weights=...)`, as `auroc` is.
    in_scores, out_scores
        Scores `(N,)` and `(M,)`.
    key, num_resamples, level
        As for `bootstrap`, with the same errors.
    in_weights, out_weights
        Weights of the samples, `(N,)` and `(M,)`; one each by default.
    """
    samples = _read("scores", (in_scores, out_scores))
    weights = _read("weights", (in_weights, out_weights))
    statistic = _TwoSamples(_hashable(metric))
    return _bootstrap(statistic, samples, samples, weights, key, num_resamples, level)


# --- statistics: functions of arrays and one weight vector per sample ------------------------


@dataclass(frozen=True)
class _Metric:
    """A function with options; unlike `functools.partial`, it compares by value."""

    function: Callable[..., PyTree]
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    def as_partial(self) -> partial:
        return partial(self.function, *self.args, **dict(self.options))


def _hashable(metric: Callable[..., PyTree]) -> _Metric:
    if not isinstance(metric, partial):
        return _Metric(metric, (), ())
    return _Metric(metric.func, metric.args, tuple(sorted(metric.keywords.items())))


@dataclass(frozen=True)
class _OneSample:
    metric: _Metric

    def __call__(self, arrays, weights):
        return self.metric.as_partial()(*arrays, weights=weights[0])


@dataclass(frozen=True)
class _TwoSamples:
    metric: _Metric

    def __call__(self, arrays, weights):
        metric = self.metric.as_partial()
        return metric(*arrays, in_weights=weights[0], out_weights=weights[1])


def _read(name: str, arrays: Sequence[Any]) -> tuple[ArrayLike | None, ...]:
    return tuple(as_numbers(name, array) for array in arrays)


# --- replicates ------------------------------------------------------------------------------


@in_own_precision
def _bootstrap(statistic, arrays, samples, weights, key, num_resamples, level) -> Interval:
    """Return a statistic with the interval from replicates with resampled weights."""
    check_count("num_resamples", num_resamples, "resamples", least=2)
    if not 0 < level < 1:
        raise ValueError(f"Found level={level}, expected a number between 0 and 1, such as 0.95.")
    value = statistic(arrays, weights)
    base = [
        jnp.ones(len(sample), jnp.int32) if given is None else jnp.asarray(given)
        for sample, given in zip(samples, weights, strict=True)
    ]
    leaves = jax.tree.leaves((arrays, base))
    num_chunks, chunk = _chunks(num_resamples, leaves)
    if chunk < min(_SMALL_CHUNK, num_resamples):
        num_bytes = _replicate_bytes(statistic, arrays, base)
        num_chunks, chunk = _chunks(num_resamples, leaves, num_bytes)
    replicates = _replicates(statistic, arrays, base, key, num_resamples, num_chunks, chunk)
    leaves, structure = jax.tree.flatten(value)
    parts = _intervals(leaves, jax.tree.leaves(replicates), level)
    if min(map(len, samples)) < 2:
        # Every resample of a single example is that example: the spread is unknown.
        parts = jax.tree.map(lambda end: jnp.full_like(end, jnp.nan), parts)
    return Interval(value, *map(structure.unflatten, parts))


def _replicate_bytes(statistic, arrays, weights) -> int:
    """Return a bound on the bytes of intermediate values that depend on a replicate's weights."""
    own = [jax.ShapeDtypeStruct((1, *w.shape), w.dtype) for w in weights]
    return activation_bytes(jax.vmap(statistic, (None, 0)), arrays, own)


def _chunks(
    num_resamples: int, arrays: list[ArrayLike], replicate_bytes: int | None = None
) -> tuple[int, int]:
    """Return the number of chunks and of replicates in each; the last may have too many.

    A replicate needs about as much memory as all arrays, or `replicate_bytes` if that is less.
    """
    num_bytes = 8 * sum(jnp.size(array) for array in arrays)
    num_bytes = num_bytes if replicate_bytes is None else min(num_bytes, replicate_bytes)
    num_chunks = -(-num_resamples // max(Limits().working_set() // num_bytes, 1))
    return num_chunks, -(-num_resamples // num_chunks)


@partial(jax.jit, static_argnames=("statistic", "num_resamples", "num_chunks", "chunk"))
def _replicates(
    statistic, arrays, weights, key, num_resamples: int, num_chunks: int, chunk: int
) -> PyTree:
    """Return the statistic of every replicate, along a leading axis."""

    def replicate(key):
        keys = jax.random.split(key, len(weights))
        counts = [_counts(k, w.size) for k, w in zip(keys, weights, strict=True)]
        return statistic(arrays, jax.tree.map(jnp.multiply, weights, counts))

    # The key of a replicate does not depend on the number of replicates.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_chunks * chunk))
    replicates = jax.lax.map(replicate, keys, batch_size=chunk)
    return jax.tree.map(lambda leaf: leaf[:num_resamples], replicates)


def _counts(key: PRNGKeyArray, num: int) -> Int[Array, " N"]:
    """Draw `num` of `num` examples with replacement; return how often each was drawn."""
    # int32 gives the same draws whether JAX computes in 32 or in 64 bits.
    drawn = jax.random.randint(key, (num,), 0, num, jnp.int32)
    return jnp.bincount(drawn, length=num)


@jax.jit
def _intervals(
    values: list[Array], replicates: list[Array], level: Float[Array, ""]
) -> list[list[Array]]:
    """Return the lower ends, the upper ends and the standard errors of several values."""
    tails = jnp.array([1 - level, 1 + level]) / 2
    # Concatenated, as compiling a sort for each value would take seconds.
    value = jnp.concatenate([jnp.ravel(leaf) for leaf in values])
    found = jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in replicates], axis=1)
    low, high = jnp.nanquantile(found, tails, axis=0) + value - jnp.nanmean(found, axis=0)
    ends = np.cumsum([leaf.size for leaf in values])[:-1]
    return [
        [part.reshape(leaf.shape) for part, leaf in zip(jnp.split(each, ends), values, strict=True)]
        for each in (low, high, jnp.nanstd(found, axis=0, ddof=1))
    ]
