"""Predictions and targets as NumPy arrays that are valid, with the errors of the metrics."""

import numpy as np
from jaxtyping import ArrayLike, Float, Num, Shaped

from laplace_kit.eval.metrics import checks
from laplace_kit.host import fetch_array


def floating(values: ArrayLike) -> Float[np.ndarray, "..."]:
    """Return numbers in their own precision, float32 at least."""
    array = fetch_array(values)
    if array.dtype in (np.float32, np.float64):
        return array
    return array.astype(np.float64 if array.dtype.kind in "iub" else np.float32)


def classified(
    probs: ArrayLike, y: ArrayLike
) -> tuple[Float[np.ndarray, "N C"], Shaped[np.ndarray, "N ..."]]:
    """Return probabilities, and labels `(N,)` as integers or `(N, C)` as distributions.

    Raises
    ------
    ValueError
        If shapes are inconsistent, or probabilities or labels are not valid.
    """
    probs, y = floating(probs), fetch_array(y)
    checks.check_label_shapes(probs, y)
    check_distributions("probs", probs, checks.LOGITS)
    if y.ndim == 2:
        check_distributions("y", y, checks.SOFT_LABELS)
        return probs, floating(y)
    bad = np.flatnonzero((y < 0) | (y >= probs.shape[1]))
    if len(bad):
        raise checks.label_out_of_range(y, int(bad[0]), probs)
    return probs, y.astype(int)


def check_distributions(name: str, rows: Num[np.ndarray, "N C"], remedy: str) -> None:
    """Raise a `ValueError` unless every row is a distribution over classes."""
    sums, smallest = rows.sum(axis=1, dtype=float), rows.min(axis=1)
    bad = np.flatnonzero(~((abs(sums - 1) <= checks.TOLERANCE) & (smallest >= -checks.TOLERANCE)))
    if len(bad):
        raise checks.not_a_distribution(name, int(bad[0]), rows[bad[0]].astype(float), remedy)


def numbers(
    mean: ArrayLike, std: ArrayLike, y: ArrayLike
) -> tuple[Float[np.ndarray, "N C"], Float[np.ndarray, "N C"], Float[np.ndarray, "N C"]]:
    """Return means, standard deviations and targets in float64, as rows `(N, C)`.

    Raises
    ------
    ValueError
        If shapes are inconsistent, or a standard deviation is not positive.
    """
    mean, std, y = (fetch_array(values, float) for values in (mean, std, y))
    checks.check_target_shapes(mean, std, y, "std")
    if not (std > 0).all():
        raise ValueError("Found {}, expected {}.".format(*checks.not_positive("std")))
    rows = (np.broadcast_to(values, mean.shape) for values in (mean, std, y))
    return tuple(values.reshape(len(mean), -1) for values in rows)
