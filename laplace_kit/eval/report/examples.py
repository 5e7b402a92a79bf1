"""Selected examples: the most uncertain ones, and those with the worst predictions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Int, Num, PyTree

from laplace_kit.eval.report.names import NO_NAMES, Names
from laplace_kit.eval.report.pictures import Picture, pixels
from laplace_kit.eval.report.table import display_name, rounded, with_error
from laplace_kit.eval.statistics.weighting import checked

NUM_SHOWN = 12
_NUM_VALUES = 5
_SMALLEST_SIDE = 8
# Neighbouring pixels of an image are similar: upper limits of the RMS step between neighbours over
# that between any two pixels, in the rougher of the two directions and on average.
_ROUGHEST, _ROUGH = 0.9, 0.8


@dataclass(frozen=True)
class Example:
    """An example: its target, the predictions, and the input as a picture or values."""

    index: int
    truth: str
    says: tuple[str, ...]
    values: tuple[str, ...]
    image: Picture | None


@dataclass(frozen=True)
class Gallery:
    """Examples selected by one rule; `features` are the names of the leading input values."""

    title: str
    note: str
    truth: str
    predictors: tuple[str, ...]
    features: tuple[str, ...]
    examples: tuple[Example, ...]


def classification_galleries(
    probs: Mapping[str, Float[ArrayLike, "N C"]],
    labels: Int[np.ndarray, " N"],
    subject: str,
    x: PyTree = None,
    weights: Float[ArrayLike, " N"] | None = None,
    names: Names = NO_NAMES,
) -> tuple[Gallery, ...]:
    """Return the subject's most uncertain, and its most confidently wrong, predictions."""
    probs = {name: np.asarray(values, float) for name, values in probs.items()}
    chosen = probs[subject]
    confidence, counted = chosen.max(axis=1), checked(weights, len(labels)) > 0
    wrong = (chosen.argmax(axis=1) != labels) & counted
    entropy = -(chosen * np.log(np.maximum(chosen, 1e-30))).sum(axis=1)
    num_wrong, name = int(wrong.sum()), display_name(subject)

    def says(values: np.ndarray, index: int) -> str:
        return f"{names.of_class(int(values[index].argmax()))} ({values[index].max():.0%})"

    def truth(index: int) -> str:
        return names.of_class(int(labels[index]))

    worst = np.argsort(-np.where(wrong, confidence, -1.0), kind="stable")[:num_wrong]
    what = names.of_target(default="Label")
    gallery = _galleries(probs, says, what, truth, x, counted, names.features)
    return (
        gallery(
            "Most uncertain examples",
            f"The examples with the largest predictive entropy of {name}.",
            np.argsort(-entropy, kind="stable"),
        ),
        gallery(
            "Most confidently wrong",
            f"Wrong predictions of {name} with the highest confidence, of {num_wrong} in total. "
            "Check the labels too."
            if num_wrong
            else f"No prediction of {name} on the test set is wrong.",
            worst,
        ),
    )


def regression_galleries(
    mean: Mapping[str, Float[np.ndarray, "N C"]],
    std: Mapping[str, Float[np.ndarray, "N C"]],
    y: Num[np.ndarray, "N C"],
    subject: str,
    x: PyTree = None,
    weights: Float[ArrayLike, " N"] | None = None,
    names: Names = NO_NAMES,
) -> tuple[Gallery, ...]:
    """Return the subject's largest standard deviations, and its largest standardised errors."""
    moments = {name: (mean[name], std[name]) for name in mean}
    errors = np.abs(y - mean[subject]) / std[subject]
    output, name = errors.argmax(axis=1), display_name(subject)

    def says(values: tuple[np.ndarray, np.ndarray], index: int) -> str:
        centre, spread = (part[index, output[index]] for part in values)
        return with_error(float(centre), float(spread))

    def truth(index: int) -> str:
        where = ""
        if y.shape[1] > 1:
            several = len(names.targets) == y.shape[1]
            where = ", " + (names.targets[output[index]] if several else f"output {output[index]}")
        place = (index, output[index])
        return rounded(float(y[place]), float(std[subject][place])) + where

    what = names.of_target(default="Target") if len(names.targets) < 2 else "Target"
    counted = checked(weights, len(y)) > 0
    gallery = _galleries(moments, says, what, truth, x, counted, names.features)
    return (
        gallery(
            "Most uncertain examples",
            f"The examples with the largest predictive standard deviation of {name}.",
            np.argsort(-std[subject].max(axis=1), kind="stable"),
        ),
        gallery(
            "Largest standardised errors",
            f"The targets furthest from the mean of {name} in predictive standard deviations.",
            np.argsort(-errors.max(axis=1), kind="stable"),
        ),
    )


def _galleries(
    predictions: Mapping,
    says: Callable[..., str],
    what: str,
    truth: Callable[[int], str],
    x: PyTree,
    counted: Bool[np.ndarray, " N"],
    feature_names: tuple[str, ...] = (),
) -> Callable[[str, str, np.ndarray], Gallery]:
    """Return a function that makes a gallery from a title, a note and indices.

    Examples that are not `counted` are left out.
    """
    images = as_images(x)
    features, values = ((), None) if images is not None else leading_values(x)
    features = feature_names[: len(features)] or features

    def gallery(title: str, note: str, indices: np.ndarray) -> Gallery:
        shown = tuple(
            Example(
                index,
                truth(index),
                tuple(says(given, index) for given in predictions.values()),
                () if values is None else tuple(f"{value:.4g}" for value in values[index]),
                None if images is None else _image(images, index),
            )
            for index in map(int, indices[counted[indices]][:NUM_SHOWN])
        )
        return Gallery(title, note, what, tuple(map(display_name, predictions)), features, shown)

    return gallery


def _image(images: np.ndarray, index: int) -> Picture:
    return pixels(f"example_{index}.png", f"example {index}", images[index])


def leading_values(x: PyTree) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return the names and values `(N, K)` of the first few numbers of each input."""
    leaves = jax.tree_util.tree_leaves_with_path(x)
    numeric = [(path, leaf) for path, leaf in leaves if np.issubdtype(leaf.dtype, np.number)]
    names, columns = [], []
    for path, leaf in numeric:
        rows = np.asarray(leaf).reshape(len(leaf), -1)[:, :_NUM_VALUES]
        stem = "x" + jax.tree_util.keystr(path)
        one = rows.shape[1] == 1
        names += [stem if one else f"{stem}[{number}]" for number in range(rows.shape[1])]
        columns.append(rows)
    if not columns:
        return (), None
    return tuple(names[:_NUM_VALUES]), np.concatenate(columns, axis=1)[:, :_NUM_VALUES]


def as_images(x: PyTree) -> np.ndarray | None:
    """Return inputs as images, `(N, H, W)` or `(N, H, W, 3)`, if they evidently are images.

    Images are arrays `(N, H, W, 1)` and `(N, H, W, 3)` with sides of at least eight pixels; if
    neighbouring pixels are similar in both directions, also `(N, H, W)` and flat squares
    `(N, H * H)`.
    """
    if not hasattr(x, "shape") or not np.issubdtype(x.dtype, np.number):
        return None
    shape = x.shape[1:]
    if len(shape) == 1 and math.isqrt(shape[0]) ** 2 == shape[0]:
        shape = (math.isqrt(shape[0]),) * 2
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))):
        return None
    if min(shape[:2]) < _SMALLEST_SIDE or max(shape[:2]) > 4 * min(shape[:2]):
        return None
    images = np.asarray(x).reshape(-1, *shape)
    if len(shape) == 3:
        return images[..., 0] if shape[2] == 1 else images
    return images if _neighbours_are_alike(images[:64].astype(float)) else None


def _neighbours_are_alike(images: Float[np.ndarray, "N H W"]) -> bool:
    """Return whether neighbouring pixels differ less than any two pixels."""
    typical = np.sqrt(2.0) * images.std(axis=(1, 2)).mean()
    steps = [np.sqrt(np.square(np.diff(images, axis=axis)).mean()) for axis in (1, 2)]
    return bool(max(steps) < _ROUGHEST * typical and sum(steps) < 2 * _ROUGH * typical)


def pictures(galleries: Sequence[Gallery]) -> tuple[Picture, ...]:
    """Return the pictures of all examples, without duplicates."""
    found = {
        example.image.file: example.image
        for gallery in galleries
        for example in gallery.examples
        if example.image is not None
    }
    return tuple(found.values())
