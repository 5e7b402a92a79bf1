r"""Bootstrap weightings of examples, and intervals from the values of a metric for them.

The interval is that of `laplace_kit.eval.metrics.bootstrap`: with the quantiles $q$ of the
replicates $m^*$ and their mean, $[m + q_{(1 - l) / 2} - \bar m^*, m + q_{(1 + l) / 2} - \bar m^*]$.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from laplace_kit.eval.statistics.weighting import Weightings, are_counts

# Weightings are made in chunks that fit in a processor's cache: few passes over memory.
_CHUNK = 1 << 17
# With more examples, counted by their weights, numbers of draws are drawn instead of examples.
_MOST_DRAWN = 1 << 22


def weightings(
    samples: Sequence[Float[np.ndarray, " _"]], num_resamples: int, seed: int
) -> Iterator[tuple[Weightings, ...]]:
    """Yield weightings of the resampled examples of each sample, a chunk of rows at a time.

    Parameters
    ----------
    samples
        The weights of the examples of one sample or several, which are resampled separately. Counts
        repeat an example: as many of the repeated examples are drawn as there are. Proportions
        multiply the numbers of times that the examples were drawn; those of zero are not drawn.
    num_resamples
        The number of rows in all chunks together.
    seed
        The same seed draws the same resamples of as many examples.
    """
    seeds = np.random.SeedSequence(seed).spawn(len(samples))
    draws = [
        _draw(weights, np.random.default_rng(of))
        for weights, of in zip(samples, seeds, strict=True)
    ]
    largest = max(min(int(of.sum()), _MOST_DRAWN) + len(of) for of in samples)
    rows = min(max(_CHUNK // largest, 1), num_resamples)
    for start in range(0, num_resamples, rows):
        yield tuple(draw(min(rows, num_resamples - start)) for draw in draws)


def _draw(
    weights: Float[np.ndarray, " N"], rng: np.random.Generator
) -> Callable[[int], Weightings]:
    """Return a function from a number of rows to that many further weightings."""
    num, counted = len(weights), are_counts(weights)
    used = np.flatnonzero(weights)
    total = int(weights.sum()) if counted else len(used)
    if total > _MOST_DRAWN:
        shares = weights / weights.sum() if counted else (weights > 0) / total
        factors = 1.0 if counted else weights
        return lambda rows: rng.multinomial(total, shares, rows) * factors
    owners = np.repeat(np.arange(num), weights.astype(int)) if counted else used

    def draw(rows: int) -> Weightings:
        drawn = owners[rng.integers(0, total, (rows, total), np.int32)]
        places = drawn + num * np.arange(rows)[:, None]
        times = np.bincount(places.ravel(), minlength=rows * num).reshape(rows, num)
        return times.astype(float) if counted else times * weights

    return draw


def interval(
    value: float, replicates: Float[np.ndarray, " R"], level: float
) -> tuple[float, float]:
    """Return both ends of the interval; NaN if a replicate is infinite or all are unknown.

    Replicates that are NaN, such as an AUROC without one of the classes, are left out.
    """
    known = replicates[~np.isnan(replicates)]
    if not len(known) or not np.isfinite(known).all():
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    centre = known.mean()
    return float(value + low - centre), float(value + high - centre)
