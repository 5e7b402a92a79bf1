r"""Isotonic regression of outcomes on probabilities, and of each new example with both labels.

Pooling adjacent violators gives the same blocks in any order. So those of all examples below a
place and of all above it, found once for every place, need only be pooled with a new example there.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression

from laplace_kit.host import fetch
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class IsotonicPairs:
    """Isotonic regressions with a new example of the label 0, and of the label 1.

    Attributes
    ----------
    scores
        The distinct scores of the examples, in increasing order.
    low, high
        The values at the new example: below the first score, at it, between it and the second, and
        so on.
    """

    scores: Float[np.ndarray, " G"]
    low: Float[np.ndarray, " P"]
    high: Float[np.ndarray, " P"]

    def __call__(
        self, p: Float[np.ndarray, " M"]
    ) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
        """Return both values for new scores."""
        scores, low, high = fetch((self.scores, self.low, self.high))
        places = np.searchsorted(scores, p, side="left") + np.searchsorted(scores, p, side="right")
        return low[places], high[places]


def isotonic_steps(
    p: Float[np.ndarray, " N"], outcomes: Float[np.ndarray, " N"], weights: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
    """Return the distinct probabilities, and the isotonic regression at each."""
    scores, sums, counts = _grouped(p, outcomes, weights)
    return scores, isotonic_regression(sums / counts, weights=counts).x


def isotonic_pairs(
    p: Float[np.ndarray, " N"], outcomes: Float[np.ndarray, " N"], weights: Float[np.ndarray, " N"]
) -> IsotonicPairs:
    """Return the isotonic regressions with every new example, whose weight is one."""
    scores, sums, counts = _grouped(p, outcomes, weights)
    below = _stacks(sums.tolist(), counts.tolist())
    above = _stacks((-sums[::-1]).tolist(), counts[::-1].tolist())
    num, values = len(scores), np.empty((2, 2 * len(scores) + 1))
    for label in (0, 1):
        for place in range(2 * num + 1):
            first, is_tied = place // 2, place % 2
            total, count = float(label), 1.0
            if is_tied:
                total, count = total + sums[first], count + counts[first]
            rest = num - first - is_tied
            values[label, place] = _pooled(total, count, below, first, above, rest)
    return IsotonicPairs(scores, *values)


def _grouped(p, outcomes, weights):
    used = weights > 0
    scores, group = np.unique(p[used], return_inverse=True)
    sums = np.bincount(group, weights[used] * outcomes[used])
    return scores, sums, np.bincount(group, weights[used])


def _stacks(sums: Sequence[float], counts: Sequence[float]) -> tuple[list, list]:
    """Return blocks `(sum, count, block before)`, and the last block of each number of groups."""
    blocks, last = [], [-1]
    for total, count in zip(sums, counts, strict=True):
        before = last[-1]
        while before >= 0 and blocks[before][0] * count >= total * blocks[before][1]:
            more, number, earlier = blocks[before]
            total, count, before = total + more, count + number, earlier
        blocks.append((total, count, before))
        last.append(len(blocks) - 1)
    return blocks, last


def _pooled(total, count, below, num_below, above, num_above) -> float:
    """Return the mean of a new block, pooled with the violators next to it."""
    (low_blocks, low_last), (high_blocks, high_last) = below, above
    low, high = low_last[num_below], high_last[num_above]
    while True:
        if low >= 0 and low_blocks[low][0] * count >= total * low_blocks[low][1]:
            more, number, low = low_blocks[low]
        elif high >= 0 and -high_blocks[high][0] * count <= total * high_blocks[high][1]:
            more, number, high = high_blocks[high]
            more = -more
        else:
            return total / count
        total, count = total + more, count + number
