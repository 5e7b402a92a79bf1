"""Regions of the inputs where predictions are over-confident, found on one half and confirmed.

A shallow tree splits the inputs of one half of the examples by how far claims exceed what happened.
Its regions are tested on the other half, which the tree has not seen, so that the tests are valid.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Bool, Float, PyTree

from laplace_kit.arrays import on_host
from laplace_kit.errors import check_count
from laplace_kit.eval.given import Predictions, event_rows, is_of_numbers, numbers_given
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.report.claims import coverage_claim
from laplace_kit.eval.report.measures import target_scores
from laplace_kit.eval.statistics.weighting import as_columns

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Slice:
    """A region of the inputs in which predictions are over-confident.

    Parameters
    ----------
    rule
        The region in words, such as "age > 61.5 and site <= 2".
    bounds
        For each feature that matters, its index and its least and largest value, `(low, high]`.
    share
        The share of the confirming half that lies in the region.
    found, gap
        The claim minus what was observed, on the half where the region was found, which is
        optimistic, and on the other half. The claim is the mean confidence; for numbers the
        probability of the central 90% interval, which for counts is at least 0.9.
    p_value
        The p-value of over-confidence on the other half, adjusted for all regions by Holm's method.
    """

    rule: str
    bounds: tuple[tuple[int, float, float], ...]
    share: float
    found: float
    gap: float
    p_value: float

    @property
    def is_confirmed(self) -> bool:
        """Whether the region is over-confident beyond chance, with 95% confidence for all."""
        return self.p_value <= _SIGNIFICANT

    def contains(self, features: ArrayLike) -> Bool[np.ndarray, " N"]:
        """Return whether each example lies in the region.

        Parameters
        ----------
        features
            As for `find_slices`, `(N, F)`.
        """
        return _inside(on_host(features, "features"), self.bounds)


def find_slices(
    predictions: Predictions,
    y: PyTree,
    features: Any,
    *,
    feature_names: Sequence[str] | None = None,
    max_depth: int = 2,
    min_examples: int = 30,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> tuple[Slice, ...]:
    """Return regions where predictions claim too much, the largest gap first.

    Parameters
    ----------
    predictions
        A `Predictive`; probabilities `(N, C)`, or of class 1 `(N,)`; or a pair of means and
        standard deviations of normal distributions: one label or row of targets an example.
    y
        Labels or targets.
    features
        Inputs, or features of them, `(N, F)`: numbers, also as a DataFrame.
    feature_names
        The names of the features; by default those of a DataFrame's columns, or x0, x1, ...
    max_depth
        The depth of the tree: how many conditions a region has at most.
    min_examples
        The smallest number of examples of a region, on the half where it is found.
    weights
        Weights of the examples, `(N,)`.
    seed
        Splits the examples into halves.

    Returns
    -------
    slices
        The regions with a positive gap where they were found. Only those with `is_confirmed` are
        findings. Needs scikit-learn, which fits the tree.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    ValueError
        If predictions, targets or weights are not valid, features are not numbers `(N, F)`, or
        there are fewer than `2 * min_examples` examples.

    References
    ----------
    Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    try:
        from sklearn.tree import DecisionTreeRegressor
    except ImportError as error:
        raise ImportError(
            "Found no scikit-learn, expected it to fit the tree; pip install scikit-learn."
        ) from error
    check_count("max_depth", max_depth, "levels")
    check_count("min_examples", min_examples, "examples")
    claims, kept, weights = _claims(predictions, y, weights)
    names = feature_names if feature_names is not None else getattr(features, "columns", None)
    features = on_host(features, "features")
    if features.ndim != 2 or len(features) != len(claims):
        raise ValueError(
            f"Found features of shape {features.shape} for {len(claims)} examples, expected "
            f"({len(claims)}, F); reshape inputs to rows, features.reshape(len(features), -1)."
        )
    if not np.isfinite(features).all():
        raise ValueError("Found features that are not finite, expected numbers; fill in the gaps.")
    names = [f"x{j}" for j in range(features.shape[1])] if names is None else [*map(str, names)]
    if len(names) != features.shape[1]:
        raise ValueError(
            f"Found {len(names)} names of {features.shape[1]} features, expected one each."
        )
    used = np.flatnonzero(weights)
    if len(used) < 2 * min_examples:
        raise ValueError(
            f"Found {len(used)} examples, expected at least {2 * min_examples}, "
            f"min_examples={min_examples} in each half; take more examples, or lower it."
        )
    order = np.random.default_rng(seed).permutation(used)
    first, second = np.array_split(order, 2)
    tree = DecisionTreeRegressor(max_depth=max_depth, min_samples_leaf=min_examples, random_state=0)
    tree.fit(features[first], (claims - kept)[first], sample_weight=weights[first])
    slices = []
    for bounds in _regions(tree.tree_):
        in_first = first[_inside(features[first], bounds)]
        in_second = second[_inside(features[second], bounds)]
        found = np.average((claims - kept)[in_first], weights=weights[in_first])
        if found <= 0 or not len(in_second):
            continue
        observed = np.average(kept[in_second], weights=weights[in_second])
        one = coverage_claim(claims[in_second], observed, weights[in_second])
        gap = one["claimed"] - one["kept"]
        p_value = one["p_value"] / 2 if gap > 0 else 1 - one["p_value"] / 2
        share = weights[in_second].sum() / weights[second].sum()
        slices.append(Slice(_rule(bounds, names), bounds, share, float(found), gap, p_value))
    adjusted = holm([of.p_value for of in slices])
    slices = [Slice(*_fields(of), p) for of, p in zip(slices, adjusted, strict=True)]
    return tuple(sorted(slices, key=lambda of: -of.gap))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for all of them, by Holm's method."""
    order, largest, adjusted = np.argsort(p_values), 0.0, [1.0] * len(p_values)
    for rank, index in enumerate(order):
        largest = max(largest, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = float(largest)
    return adjusted


def _fields(of: Slice) -> tuple:
    return of.rule, of.bounds, of.share, of.found, of.gap


def _claims(predictions, y, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what is claimed of each example, whether it was kept, and the weights."""
    if isinstance(y, tuple):
        raise _missing("a mask")
    if is_of_numbers(predictions):
        found, rows = numbers_given(predictions, y, weights)
        scores = target_scores(found, rows.y)
        kept = as_columns((scores.low <= rows.y) & (rows.y <= scores.high))
        return scores.content.mean(axis=1), kept, rows.weights
    event, rows = event_rows(predictions, y, weights)
    if isinstance(predictions, Predictive) and len(event.p) != _num_labels(predictions):
        raise _missing("ignored labels")
    if rows.probs.shape[1] == 2 and (event.p < 0.5).any():
        # From one probability: what is claimed of the more probable class.
        is_one = event.p >= 0.5
        kept = np.where(is_one, event.outcomes, 1 - event.outcomes)
        return np.where(is_one, event.p, 1 - event.p), kept, event.weights
    return event.p, event.outcomes, event.weights


def _num_labels(predictive: Predictive) -> int:
    return math.prod(predictive.targets.class_probabilities.shape[:-1])


def _missing(what: str) -> ValueError:
    return ValueError(
        f"Found targets with {what}, expected one label or row of targets for each example; leave "
        "out the missing ones."
    )


def _regions(tree: Any) -> Iterator[tuple[tuple[int, float, float], ...]]:
    """Yield the bounds of each leaf of a fitted tree with more than one."""

    def below(node: int, limits: dict[int, tuple[float, float]]):
        feature = int(tree.feature[node])
        if feature < 0:
            if limits:
                yield tuple((j, *ends) for j, ends in sorted(limits.items()))
            return
        low, high = limits.get(feature, (-np.inf, np.inf))
        split = float(tree.threshold[node])
        yield from below(int(tree.children_left[node]), {**limits, feature: (low, split)})
        yield from below(int(tree.children_right[node]), {**limits, feature: (split, high)})

    return below(0, {})


def _inside(
    features: Float[np.ndarray, "N F"], bounds: Sequence[tuple[int, float, float]]
) -> Bool[np.ndarray, " N"]:
    # The tree compares features in float32.
    columns = ((features[:, j].astype(np.float32), low, high) for j, low, high in bounds)
    return np.all([(of > low) & (of <= high) for of, low, high in columns], axis=0)


def _rule(bounds: Sequence[tuple[int, float, float]], names: Sequence[str]) -> str:
    words = []
    for j, low, high in bounds:
        if np.isfinite(low):
            words.append(f"{names[j]} > {low:.4g}")
        if np.isfinite(high):
            words.append(f"{names[j]} <= {high:.4g}")
    return " and ".join(words)
