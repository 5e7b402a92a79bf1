r"""The class-wise calibration error for many weightings, classes and examples.

With $d_{nc} = y_{nc} - p_{nc}$ it is $\frac{1}{C} \sum_c \sum_b |\sum_{n \in b} w_n d_{nc}| /
\sum_n w_n$, and the sum over a bin is linear in the weights. Few probabilities of a row lie above
the lowest bin, as it sums to one: these are a sparse matrix, and the lowest bins of all classes a
dense one of the size of the probabilities.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num
from scipy import sparse

from laplace_kit.eval.statistics.weighting import Weightings

_BLOCK = 4096  # examples that can be summed in float32 without harmful rounding


class ClassGaps(NamedTuple):
    """Labels minus probabilities.

    Attributes
    ----------
    lowest
        The gaps whose probability is in the lowest bin, zero elsewhere.
    others
        The other gaps, with a row for each occupied bin of a class and a column for each example.
    """

    lowest: Float[np.ndarray, "N C"]
    others: sparse.csr_array


def class_gaps(
    probs: Float[np.ndarray, "N C"], y: Num[np.ndarray, "N ..."], num_bins: int
) -> ClassGaps:
    """Return the gaps between labels and probabilities by bins of equal width.

    Parameters
    ----------
    probs
        Probabilities; the lowest bins keep their precision.
    y
        Labels `(N,)` or `(N, C)`.
    num_bins
        The number of bins for each class.
    """
    edges = np.linspace(0, 1, num_bins + 1)[1:-1].astype(probs.dtype)
    lowest = -probs if y.ndim == 1 else (y - probs).astype(probs.dtype)
    if y.ndim == 1:
        lowest[np.arange(len(y)), y] += 1
    rows, classes = np.nonzero(probs > edges[0]) if len(edges) else (np.empty(0, int),) * 2
    values = lowest[rows, classes].astype(float)
    lowest[rows, classes] = 0
    places = classes * num_bins + np.searchsorted(edges, probs[rows, classes])
    occupied, places = np.unique(places, return_inverse=True)
    shape = (len(occupied), len(probs))
    return ClassGaps(lowest, sparse.csr_array((values, (places, rows)), shape=shape))


def mean_class_gap(gaps: ClassGaps, weights: Weightings) -> Float[np.ndarray, " R"]:
    """Return the error for each weighting."""
    num, num_classes = gaps.lowest.shape
    sums = np.zeros((len(weights), num_classes))
    for start in range(0, num, _BLOCK):
        block = slice(start, start + _BLOCK)
        sums += weights[:, block].astype(gaps.lowest.dtype) @ gaps.lowest[block]
    total = np.abs(sums).sum(axis=1) + np.abs(gaps.others @ weights.T).sum(axis=0)
    return total / (num_classes * weights.sum(axis=1))
