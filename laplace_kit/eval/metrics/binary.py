r"""Binary classification metrics of the probability of class 1, `p` `(N,)`, for labels 0 and 1.

Multi-class metrics take `from_binary(p)` and treat both classes alike. The functions here score
class 1 only, as scikit-learn does: their Brier score is half the multi-class one, and their bins
compare `p` with the frequency of class 1, where the multi-class bins compare $\max(p, 1 - p)$ with
the accuracy. Labels are integers or booleans, `(N,)`; soft labels are numbers from 0 to 1. The area
under the ROC curve is `auroc(p[y == 0], p[y == 1])`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from laplace_kit.eval.metrics import bins, brier, checks, weighting
from laplace_kit.eval.metrics.bins import ReliabilityBins
from laplace_kit.eval.metrics.brier import BrierDecomposition
from laplace_kit.eval.metrics.inputs import metric


@metric
def from_binary(p: ArrayLike) -> Float[Array, "N 2"]:
    """Return the probabilities of classes 0 and 1, `[1 - p, p]`, for multi-class metrics.

    Parameters
    ----------
    p
        Probability of class 1, `(N,)`; or soft labels.

    Raises
    ------
    ValueError
        If `p` is not one probability for each example.
    """
    p, _ = checks.binary(p, jnp.zeros(jnp.shape(p), int))
    return jnp.stack([1 - p, p], axis=1)


@metric
def binary_brier_score(
    p: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    r"""Return $\frac{1}{N} \sum_n (p_n - y_n)^2$, from 0 to 1.

    Parameters
    ----------
    p
        Probability of class 1, `(N,)`.
    y
        Labels `(N,)`: 0 or 1, or numbers in between.
    weights
        Weights of the examples, `(N,)`; one each by default.

    Raises
    ------
    ValueError
        If the shapes differ, or probabilities, labels or weights are not valid.
    """
    p, y = checks.binary(p, y)
    return _mean_square(p, y, weighting.checked(weights, len(p), p.dtype))


@jax.jit
def _mean_square(p, y, weights):
    return weighting.mean((p - y) ** 2, weights)


@metric
def binary_brier_decomposition(
    p: ArrayLike, y: ArrayLike, num_bins: int = 15, *, weights: ArrayLike | None = None
) -> BrierDecomposition:
    """Return the decomposition of the Brier score of class 1; see `brier_decomposition`.

    Parameters
    ----------
    p, y, weights
        As for `binary_brier_score`, with the same errors.
    num_bins
        Number of bins between 0 and 1; a `ValueError` if it is not positive.
    """
    return brier.decomposed(*_binned(p, y, num_bins, weights))


@metric
def binary_reliability_bins(
    p: ArrayLike, y: ArrayLike, num_bins: int = 15, *, weights: ArrayLike | None = None
) -> ReliabilityBins:
    """Return the mean probability and the frequency of class 1 in `num_bins` bins of equal width.

    Parameters
    ----------
    p, y, num_bins, weights
        As for `binary_brier_decomposition`, with the same errors.

    Returns
    -------
    bins
        `ReliabilityBins` of `p`: `confidence` is the mean of `p` in each bin and `accuracy` the
        frequency of class 1.
    """
    return bins.averages(*_binned(p, y, num_bins, weights))


def _binned(p, y, num_bins, weights):
    checks.check_num_bins(num_bins)
    p, y = checks.binary(p, y)
    weights = weighting.checked(weights, len(p), p.dtype)
    return p, y.astype(p.dtype), weights, bins.equal_width_edges(num_bins, p.dtype)
