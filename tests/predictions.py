"""Predictions to be scored: made by numpy, calibrated unless said otherwise, in either dtype."""

import numpy as np

DTYPES = ("float32", "float64")


def tolerance(dtype: str, slack: float = 100.0) -> float:
    """Return the rounding to allow for numbers near one."""
    return slack * float(np.finfo(dtype).eps)


def classification(num_examples=200, num_classes=4, seed=0, dtype="float64"):
    """Return probabilities `(N, C)`, and labels that were drawn from them."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(0.5 * np.ones(num_classes), size=num_examples)
    labels = (probs.cumsum(axis=1) < rng.uniform(size=(num_examples, 1))).sum(axis=1)
    return probs.astype(dtype), np.minimum(labels, num_classes - 1)


def regression(shape=(50, 3), seed=0, dtype="float64", spread=1.3):
    """Return means, standard deviations and targets `spread` of these away."""
    rng = np.random.default_rng(seed)
    mean, std = rng.normal(size=shape), rng.uniform(0.5, 2, size=shape)
    return tuple(a.astype(dtype) for a in (mean, std, mean + spread * std * rng.normal(size=shape)))
