"""Whether a predictor is over- or under-confident: what it claims against what is observed."""

import math

import numpy as np
from jaxtyping import ArrayLike, Float

from laplace_kit.eval.statistics.weighting import are_counts

# With more examples, counted by their weights, the normal approximation is as good.
_MOST_EXACT = 1 << 22


def accuracy_claim(
    probs: ArrayLike,
    y: ArrayLike,
    weights: Float[np.ndarray, " N"],
    log_probs: ArrayLike | None = None,
) -> dict[str, float]:
    """Return mean confidence, accuracy and p-value; correctness is independent given confidence.

    A soft label counts as correct by its probability of the predicted class. Added is the number of
    examples whose label was given probability zero, where log probabilities are not known.
    """
    probs, y = np.asarray(probs), np.asarray(y)
    y = y.astype(int) if y.ndim == 1 else y  # booleans would select
    predicted, everyone = probs.argmax(axis=1), np.arange(len(probs))
    right = y == predicted if y.ndim == 1 else y[everyone, predicted]
    is_zero = (probs[everyone, y] if y.ndim == 1 else np.where(y > 0, probs, 1).min(axis=1)) <= 0
    found = _claim(probs.max(axis=1).astype(float), np.average(right, weights=weights), weights)
    return found | {"impossible": int((is_zero & (weights > 0)).sum()) * (log_probs is None)}


def coverage_claim(
    contents: Float[np.ndarray, " N"], covered: float, weights: Float[np.ndarray, " N"]
) -> dict[str, float]:
    """Return the intervals' probability, coverage and p-value; an example counts as one target."""
    return _claim(contents, covered, weights)


def _claim(
    claims: Float[np.ndarray, " N"], kept: float, weights: Float[np.ndarray, " N"]
) -> dict[str, float]:
    """Return the mean claim and the two-sided p-value of the gap under the claims.

    It is exact for examples that count once or several times: the normal approximation fails for
    confident predictors, which make few errors on any number of examples. Weights that are
    proportions need that approximation.
    """
    claims, kept = np.clip(claims, 0.0, 1.0), float(kept)
    claimed = float(np.average(claims, weights=weights))
    counted, total = are_counts(weights), weights.sum()
    if counted and total <= _MOST_EXACT:
        p_value = _exact(np.repeat(claims, weights.astype(int)), round(kept * total))
    else:
        shares = weights if counted else np.square(weights)
        error = np.sqrt(np.sum(shares * claims * (1 - claims))) / total
        gap = abs(claimed - kept)
        p_value = math.erfc(gap / error / math.sqrt(2)) if error > 0 else float(gap < 1e-9)
    return {"claimed": claimed, "kept": kept, "p_value": p_value}


def _exact(claims: Float[np.ndarray, " N"], num_kept: int) -> float:
    chances = _poisson_binomial(claims)
    tail = min(chances[: num_kept + 1].sum(), chances[num_kept:].sum())
    return float(np.clip(2.0 * tail, 0.0, 1.0))


def _poisson_binomial(probs: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
    """Return the Poisson-binomial distribution of the number of events, in O(N log^2 N)."""
    found = np.stack([1.0 - probs, probs], axis=1)
    while len(found) > 1:
        if len(found) % 2:
            found = np.concatenate([found, np.eye(1, found.shape[1])])  # an impossible event
        size = 2 * found.shape[1]
        first, second = (np.fft.rfft(half, size) for half in (found[::2], found[1::2]))
        found = np.fft.irfft(first * second, size)
    return found[0]
