"""Words for what a picture shows, for readers who do not see it."""

import numpy as np
from jaxtyping import ArrayLike, Float

from laplace_kit.eval.statistics.weighting import ratio

_CLOSE = 0.02  # of probabilities and frequencies that look the same


def of_bins(
    claimed: Float[np.ndarray, " B"],
    observed: Float[np.ndarray, " B"],
    counts: Float[np.ndarray, " B"],
    what: str = "accuracy",
) -> str:
    """Return in how many bins a frequency lies below and above what is claimed, and where most."""
    used = np.flatnonzero(counts > 0)
    gaps = (claimed - observed)[used]
    below, above = int((gaps > _CLOSE).sum()), int((gaps < -_CLOSE).sum())
    most = used[np.abs(gaps).argmax()]
    side = "below" if claimed[most] > observed[most] else "above"
    return (
        f"The {what} lies below the dashed line in {below} and above it in {above} of {len(used)} "
        f"bins; most, by {100 * abs(claimed[most] - observed[most]):.0f} points {side}, at "
        f"{claimed[most]:.2f}."
    )


def of_levels(levels: Float[np.ndarray, " L"], observed: Float[np.ndarray, " L"]) -> str:
    """Return on which side of the dashed line a coverage curve runs."""
    below = int((observed < levels - _CLOSE).sum())
    above = int((observed > levels + _CLOSE).sum())
    if below == above == 0:
        return "along the dashed line"
    return f"below the dashed line at {below} and above it at {above} of {len(levels)} levels"


def of_risk(coverage: ArrayLike, risk: ArrayLike, percent: bool) -> str:
    """Return the risk of all predictions and of the most confident half."""
    coverage, risk = np.asarray(coverage, float), np.asarray(risk, float)
    half = risk[min(int(np.searchsorted(coverage, 0.5)), len(risk) - 1)]
    whole, part = (f"{of:.1%}" if percent else f"{of:.3g}" for of in (risk[-1], half))
    return f"{whole} of all, {part} of the most confident half"


def of_transforms(pit: Float[np.ndarray, " N"], weights: Float[np.ndarray, " N"]) -> str:
    """Return how dense a histogram of transforms is at its ends and in its middle."""
    outer = [(pit <= 0.1), (pit > 0.4) & (pit <= 0.6), (pit > 0.9)]
    shares = [float(weights @ inside / weights.sum()) for inside in outer]
    low, middle, high = (f"{of:.2g}" for of in (shares[0] / 0.1, shares[1] / 0.2, shares[2] / 0.1))
    return f"Density {low} at the left end, {middle} in the middle, {high} at the right."


def of_confidence(
    confidence: Float[np.ndarray, " N"], right: np.ndarray, weights: Float[np.ndarray, " N"]
) -> str:
    """Return the mean confidence of correct and of wrong predictions."""
    means = [
        float(ratio(np.array(weights[of] @ confidence[of]), np.array(weights[of].sum())))
        for of in (right, ~right)
    ]
    return f"Mean confidence {means[0]:.2f} where correct, {means[1]:.2f} where wrong."
