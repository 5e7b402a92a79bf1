r"""The smooth calibration error: residuals averaged by a Gaussian kernel of their own bandwidth.

With outcomes $o_n$ of probabilities $p_n$ and the Gaussian kernel $K_\sigma$ on [0, 1], reflected
at both ends,

$$
\mathrm{smECE}_\sigma = \int_0^1 \Big| \frac{1}{N} \sum_n K_\sigma(t, p_n) (o_n - p_n) \Big| dt
$$

falls as $\sigma$ grows, and the error is its value where it equals $\sigma$ (Blasiok and Nakkiran,
2024). The reflected kernel multiplies the cosine $\cos(\pi k t)$ by $e^{-(\pi k \sigma)^2 / 2}$,
so that on a grid a discrete cosine transform applies it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import fft, sparse

from laplace_kit.eval.statistics.weighting import Weightings, ratio

NUM_POINTS = 512
_HALVINGS = 18


def on_grid(
    p: Float[np.ndarray, " N"], values: Float[np.ndarray, " N"], num_points: int = NUM_POINTS
) -> sparse.csr_array:
    """Return a matrix from weights of examples to the sums of weighted values at grid points.

    Parameters
    ----------
    p
        Where each value is, between 0 and 1. It is shared out between both neighbours on the grid
        of midpoints $(j + 1/2) / G$, which keeps its place on average.
    values
        The values.
    num_points
        The number G of points.
    """
    places = np.clip(p.astype(float) * num_points - 0.5, 0, num_points - 1)
    low = np.minimum(places.astype(int), num_points - 2)
    share, everyone = places - low, np.arange(len(p))
    entries = np.concatenate([(1 - share) * values, share * values])
    rows = np.concatenate([low, low + 1])
    shape = (num_points, len(p))
    return sparse.csr_array((entries, (rows, np.tile(everyone, 2))), shape=shape)


def smoothed(
    values: Float[np.ndarray, "R G"], bandwidth: Float[np.ndarray, " R"]
) -> Float[np.ndarray, "R G"]:
    """Return sums at grid points, smoothed by the reflected kernel; each row keeps its sum."""
    waves = fft.dct(values, axis=1, norm="ortho")
    return fft.idct(waves * _decay(values.shape[1], bandwidth), axis=1, norm="ortho")


def smooth_errors(gaps: sparse.csr_array, weights: Weightings) -> Float[np.ndarray, " R"]:
    """Return the smooth calibration error for each weighting.

    Parameters
    ----------
    gaps
        `on_grid` of outcomes minus probabilities.
    weights
        The weightings.
    """
    sums = (gaps @ weights.T).T / weights.sum(axis=1, keepdims=True)
    waves = fft.dct(sums, axis=1, norm="ortho")
    low, high = np.zeros(len(sums)), np.ones(len(sums))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        averaged = fft.idct(waves * _decay(sums.shape[1], middle), axis=1, norm="ortho")
        is_larger = np.abs(averaged).sum(axis=1) > middle
        low, high = np.where(is_larger, middle, low), np.where(is_larger, high, middle)
    return (low + high) / 2


def _decay(num_points: int, bandwidth: Float[np.ndarray, " R"]) -> Float[np.ndarray, "R G"]:
    return np.exp(-0.5 * np.square(np.pi * bandwidth[:, None] * np.arange(num_points)))


class SmoothReliability(NamedTuple):
    """The frequency of the event as a smooth function of its probability.

    Attributes
    ----------
    error
        The smooth calibration error, which is the bandwidth of the kernel.
    probability
        The points of a grid.
    frequency
        The mean outcome near each point; zero where no prediction is near.
    density
        The density of the predictions there, which integrates to one.
    """

    error: float
    probability: Float[np.ndarray, " G"]
    frequency: Float[np.ndarray, " G"]
    density: Float[np.ndarray, " G"]


def smooth_reliability(
    p: Float[np.ndarray, " N"], outcomes: Float[np.ndarray, " N"], weights: Float[np.ndarray, " N"]
) -> SmoothReliability:
    """Return the smooth reliability curve of valid probabilities of one event."""
    rows = weights[None]
    error = smooth_errors(on_grid(p, outcomes - p), rows)
    hits, counts = (
        smoothed((on_grid(p, values) @ rows.T).T / weights.sum(), error)[0]
        for values in (outcomes, np.ones(len(p)))
    )
    counts = np.maximum(counts, 0)
    known = np.where(counts > 1e-9, counts, 0.0)
    points = (np.arange(NUM_POINTS) + 0.5) / NUM_POINTS
    frequency = np.clip(ratio(hits, known), 0, 1)
    return SmoothReliability(float(error[0]), points, frequency, counts * NUM_POINTS)
