r"""The bootstrap: how far a metric would be from itself on other examples of the same kind.

To draw $N$ of $N$ examples with replacement is to give each the number of times that it was drawn
as its weight, and every metric takes weights. So a replicate is an evaluation with random counts;
they are made and evaluated in chunks, of a size that fits the memory, by one compiled program for
each metric and shape of arrays.

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

# Where no more replicates than these fit, what one of them holds is counted with care.
_FEW = 16


class Interval(NamedTuple):
    """A metric with its confidence interval; each field has the metric's own structure.

    Attributes
    ----------
    value
        The metric of the examples as they are.
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
    that is the percentile interval. Some metrics chance alone makes larger, calibration errors of
    few examples above all, and replicates have that bias twice: without the shift their interval
    may lie beside the value. It speaks of the metric's expectation for that many examples, so to
    tell a calibration error from zero use `squared_calibration_error`, which has no bias.

    Parameters
    ----------
    metric
        Called as `metric(*arrays, weights=weights)`.
    arrays
        What the metric reads, the last of them with one row for each example.
    key
        Decides which examples are drawn: the same key draws the same ones for every metric of the
        same number of examples.
    num_resamples
        Number of replicates R.
    level
        Share of data sets whose interval shall hold the truth.
    weights
        Of the examples, `(N,)`; one each by default. They are drawn with their examples.

    Returns
    -------
    interval
        Replicates without a value, such as an AUROC without one of the classes, are left out. Of
        a single example the ends are NaN.
        Cost: R evaluations of the metric, whose sorting is done once where it does not depend on
        the weights.

    Raises
    ------
    ValueError
        If there are fewer than two resamples or the level is not between 0 and 1, and whatever the
        metric raises.

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
    """Return a metric of two samples with its confidence interval, both resampled apart.

    Parameters
    ----------
    metric
        Such as `auroc`, called as `metric(in_scores, out_scores, in_weights=..., out_weights=...)`.
    in_scores, out_scores
        Scores `(N,)` and `(M,)`.
    key, num_resamples, level
        As for `bootstrap`, with the same errors.
    in_weights, out_weights
        Of either sample, `(N,)` and `(M,)`; one each by default.
    """
    samples = _read("scores", (in_scores, out_scores))
    weights = _read("weights", (in_weights, out_weights))
    statistic = _TwoSamples(_hashable(metric))
    return _bootstrap(statistic, samples, samples, weights, key, num_resamples, level)


# --- statistics of arrays, and of one vector of weights for each sample ----------------------


@dataclass(frozen=True)
class _Metric:
    """A function with options; unlike a `functools.partial`, equal to another of the same two."""

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
    """Evaluate a statistic as it is, and with resampled weights of each sample."""
    check_count("num_resamples", num_resamples, "resamples", least=2)
    if not 0 < level < 1:
        raise ValueError(f"Found level={level}, expected a number between 0 and 1, such as 0.95.")
    value = statistic(arrays, weights)
    base = [
        jnp.ones(len(sample), jnp.int32) if of_sample is None else jnp.asarray(of_sample)
        for sample, of_sample in zip(samples, weights, strict=True)
    ]
    leaves = jax.tree.leaves((arrays, base))
    num_chunks, chunk = _chunks(num_resamples, leaves)
    if chunk < min(_FEW, num_resamples):
        decided = _decided_bytes(statistic, arrays, base)
        num_chunks, chunk = _chunks(num_resamples, leaves, decided)
    replicates = _replicates(statistic, arrays, base, key, num_resamples, num_chunks, chunk)
    leaves, structure = jax.tree.flatten(value)
    parts = _intervals(leaves, jax.tree.leaves(replicates), level)
    if min(map(len, samples)) < 2:
        # Every resample of one example is that example: nothing is known of others.
        parts = jax.tree.map(lambda end: jnp.full_like(end, jnp.nan), parts)
    return Interval(value, *map(structure.unflatten, parts))


def _decided_bytes(statistic, arrays, weights) -> int:
    """Bound the bytes of all intermediate values that the weights of one replicate decide."""
    own = [jax.ShapeDtypeStruct((1, *w.shape), w.dtype) for w in weights]
    return activation_bytes(jax.vmap(statistic, (None, 0)), arrays, own)


def _chunks(
    num_resamples: int, arrays: list[ArrayLike], decided: int | None = None
) -> tuple[int, int]:
    """Return how many chunks of how many replicates there are; the last may have some too many.

    A replicate holds about as much as all arrays, or less where its weights decide less.
    """
    num_bytes = 8 * sum(jnp.size(array) for array in arrays)
    num_bytes = num_bytes if decided is None else min(num_bytes, decided)
    num_chunks = -(-num_resamples // max(Limits().working_set() // num_bytes, 1))
    return num_chunks, -(-num_resamples // num_chunks)


@partial(jax.jit, static_argnames=("statistic", "num_resamples", "num_chunks", "chunk"))
def _replicates(
    statistic, arrays, weights, key, num_resamples: int, num_chunks: int, chunk: int
) -> PyTree:
    """Return the statistic for weights times random counts, along a leading axis."""

    def replicate(key):
        keys = jax.random.split(key, len(weights))
        counts = [_counts(k, w.size) for k, w in zip(keys, weights, strict=True)]
        return statistic(arrays, jax.tree.map(jnp.multiply, weights, counts))

    # However many replicates there are, each has the same key.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_chunks * chunk))
    replicates = jax.lax.map(replicate, keys, batch_size=chunk)
    return jax.tree.map(lambda leaf: leaf[:num_resamples], replicates)


def _counts(key: PRNGKeyArray, num: int) -> Int[Array, " N"]:
    """Draw `num` of as many examples with replacement; return how often each was drawn."""
    # The same draws whether JAX computes in 32 or in 64 bits.
    drawn = jax.random.randint(key, (num,), 0, num, jnp.int32)
    return jnp.bincount(drawn, length=num)


@jax.jit
def _intervals(
    values: list[Array], replicates: list[Array], level: Float[Array, ""]
) -> list[list[Array]]:
    """Return the lower ends of the intervals around some values, the upper ends, the deviations."""
    tails = jnp.array([1 - level, 1 + level]) / 2
    # Side by side: to compile a sort for each takes seconds.
    value = jnp.concatenate([jnp.ravel(of) for of in values])
    found = jnp.concatenate([of.reshape(len(of), -1) for of in replicates], axis=1)
    low, high = jnp.nanquantile(found, tails, axis=0) + value - jnp.nanmean(found, axis=0)
    ends = np.cumsum([of.size for of in values])[:-1]
    return [
        [part.reshape(of.shape) for part, of in zip(jnp.split(each, ends), values, strict=True)]
        for each in (low, high, jnp.nanstd(found, axis=0, ddof=1))
    ]
