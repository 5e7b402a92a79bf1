r"""Jackknife+ and CV+: intervals from folds, each predicted by a fit to all others.

No data are held out. With $R_i = |y_i - \mu_{-k(i)}(x_i)|$, where $\mu_{-k}$ is fitted without fold
k, the interval at x ends at order statistics of $\mu_{-k(i)}(x) - R_i$ and $\mu_{-k(i)}(x) + R_i$
over all examples i. Its coverage is at least $1 - 2 \alpha$ (less $\sqrt{2 / N}$ with few, large
folds), whatever the model, and about $1 - \alpha$ where fits without a fold predict alike.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from laplace_kit.arrays import on_host
from laplace_kit.targets.inversion import check_levels

_BLOCK = 1 << 22  # numbers held at a time


def cross_conformal_intervals(
    held_out: Any, y: Any, fold: Any, new: Any, *, level: float = 0.9
) -> tuple[Float[np.ndarray, "M *target"], Float[np.ndarray, "M *target"]]:
    r"""Return the ends of the CV+ interval of each new target; with N folds it is the jackknife+.

    Parameters
    ----------
    held_out
        The prediction of each example by the fit without its fold: means `(N, *target)`, or a pair
        of means and standard deviations, by which residuals are divided.
    y
        The targets of the examples, `(N, *target)`.
    fold
        The fold of each example, `(N,)`, from 0 to K - 1.
    new
        The predictions at M new inputs by each of the K fits, `(K, M, *target)`, of the same kind.
    level
        $1 - \alpha$.

    Returns
    -------
    low, high
        Both ends. Cost: N numbers for each new target, sorted.

    Raises
    ------
    ValueError
        If the shapes do not fit, a fold has no fit, or there are too few examples for the level.

    References
    ----------
    Barber, Candès, Ramdas and Tibshirani (2021), Predictive inference with the jackknife+.
    """
    check_levels("level", level)
    (mean, std), (new_mean, new_std) = _moments(held_out), _moments(new)
    y, fold = on_host(y, "targets").astype(float), on_host(fold, "folds")
    if y.shape != mean.shape or fold.shape != mean.shape[:1]:
        raise ValueError(
            f"Found targets of shape {y.shape} and folds of shape {fold.shape} for predictions of "
            f"shape {mean.shape}, expected {mean.shape} and {mean.shape[:1]}."
        )
    if new_mean.ndim != mean.ndim + 1 or new_mean.shape[2:] != mean.shape[1:]:
        raise ValueError(
            f"Found new predictions of shape {new_mean.shape}, expected (K, M, *target) with the "
            f"target's shape {mean.shape[1:]}, one row for each of the K fits."
        )
    if fold.dtype.kind not in "iu" or fold.min() < 0 or fold.max() >= len(new_mean):
        raise ValueError(
            f"Found folds from {fold.min()} to {fold.max()} for {len(new_mean)} fits, expected "
            f"whole numbers from 0 to {len(new_mean) - 1}."
        )
    num = len(y)
    rank = math.ceil((num + 1) * level - 1e-9)
    if rank > num:
        raise ValueError(
            f"Found {num} examples for level={level}, expected at least "
            f"{math.ceil(level / (1 - level) - 1e-9)}; take more, or a lower level."
        )
    residuals = (np.abs(y - mean) / std).reshape(num, 1, -1)
    shape = new_mean.shape[1:]
    centres, scales = (of.reshape(*of.shape[:2], -1) for of in (new_mean, new_std))
    step, ends = max(_BLOCK // residuals.size, 1), []
    for start in range(0, shape[0], step):
        block = slice(start, start + step)
        centre, reach = centres[fold, block], residuals * scales[fold, block]
        high = np.partition(centre + reach, rank - 1, axis=0)[rank - 1]
        low = -np.partition(reach - centre, rank - 1, axis=0)[rank - 1]
        ends.append((low, high))
    low, high = (np.concatenate(of).reshape(shape) for of in zip(*ends, strict=True))
    return low, high


def _moments(predictions: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return means, and standard deviations or ones."""
    if isinstance(predictions, tuple):
        mean, std = (of.astype(float) for of in on_host(predictions, "predictions"))
        return mean, std
    mean = on_host(predictions, "predictions").astype(float)
    return mean, np.ones(mean.shape)
