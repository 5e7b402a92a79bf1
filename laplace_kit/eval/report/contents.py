"""Validated arrays of a prediction file; errors name the file, the array and the position."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laplace_kit.eval.report.checks import (
    INFORMATION_TOLERANCE,
    PART_TOLERANCE,
    SUM_TOLERANCE,
    are_logarithms,
)


@dataclass(frozen=True)
class Contents:
    """The arrays of a file by name; for tables, also the line number of each example."""

    path: Path
    arrays: Mapping[str, np.ndarray]
    lines: tuple[int, ...] | None = None

    def at(self, name: str, index: tuple[int, ...]) -> str:
        """Return the position of an entry or a row in the terms of the file, for messages."""
        if self.lines is None:
            return f"{name}[{', '.join(map(str, index))}]"
        row, *column = index
        if name == "probs":
            classes = self.arrays.get("class_names")
            shown = column if classes is None else (classes[k] for k in column)
            name = "p" if self.arrays[name].ndim == 1 else "_".join(["p", *map(str, shown)])
        return f"{name} in line {self.lines[row]}"

    def refused(self, found: str, expected: str, remedy: str) -> ValueError:
        """Return the error for this file; see the function `refused`."""
        return refused(self.path, found, expected, remedy)


def refused(path: Path, found: str, expected: str, remedy: str) -> ValueError:
    """Return the error that names the file, what was found and expected, and the remedy."""
    return ValueError(f"{path}: found {found}, expected {expected}; {remedy}.")


def numbers(contents: Contents, name: str) -> np.ndarray:
    """Return the array `name`, which must hold finite real numbers, at least one."""
    array = contents.arrays[name]
    if array.dtype.kind not in "fiub":
        raise contents.refused(
            f"{name} of dtype {array.dtype}",
            "real numbers",
            "convert them with .astype('float32'), or number the classes from 0",
        )
    if array.ndim == 0 or array.size == 0:
        raise contents.refused(
            f"{name} of shape {array.shape}", "one example at least", "save one row for each"
        )
    bad = ~np.isfinite(array)
    if index := first_index(bad):
        others = f" and {bad.sum() - 1} more such values" if bad.sum() > 1 else ""
        raise contents.refused(
            f"{array[index]} at {contents.at(name, index)}{others}",
            "finite numbers",
            "drop these examples, or find where the numbers overflow",
        )
    return array


def inputs(contents: Contents, name: str) -> np.ndarray:
    """Return inputs, whose leading axis must have the length of that of `y`."""
    values, num = numbers(contents, name), np.shape(contents.arrays["y"])[:1]
    if values.shape[:1] != num:
        raise contents.refused(
            f"{name} of shape {values.shape}",
            f"inputs with the leading axis {num} of y",
            "save both for the same examples",
        )
    return values


def texts(contents: Contents, name: str) -> list[str]:
    """Return names: one text, or several along one axis."""
    array = contents.arrays[name]
    if array.dtype.kind != "U" or array.ndim > 1:
        raise contents.refused(
            f"{name} of dtype {array.dtype} and shape {array.shape}",
            "one text, or several along one axis",
            "save a list of names",
        )
    return [str(value) for value in np.atleast_1d(array)]


def weights_of_examples(contents: Contents, name: str, owner: str) -> np.ndarray:
    """Return weights of examples, one for each row of the array `owner`, not all zero."""
    values = _floating(contents, name)
    _check_shape(contents, name, values, np.shape(contents.arrays[owner])[:1])
    _check_not_negative(contents, name, values)
    if not values.any():
        raise contents.refused(
            f"{name} that are all zero", "a positive weight for some example", "drop the array"
        )
    return values


# --- classification ----------------------------------------------------------------------------


def probabilities(contents: Contents, name: str) -> np.ndarray:
    """Return probabilities `(N, C)` from those or logits; `(N,)` is the second of two classes."""
    values = _floating(contents, name)
    if values.ndim > 2 or (values.ndim == 2 and values.shape[1] == 1):
        raise contents.refused(
            f"{name} of shape {values.shape}",
            "(N, C), or (N,) for two classes",
            "drop the last axis" if values.shape[-1] == 1 else "reshape to (-1, C)",
        )
    if name.rpartition("/")[2] == "logits":
        _check_logits(contents, name, values)
        return np.exp(_log_softmax(_two_columns(values)))
    if values.ndim == 2:
        _check_distributions(contents, name, values)
        return values
    if index := first_index((values < 0) | (values > 1)):
        raise contents.refused(
            f"{values[index]:.4g} at {contents.at(name, index)}",
            "p(y = 1), from 0 to 1",
            "apply the sigmoid to logits, or divide percentages by 100",
        )
    return np.stack([1 - values, values], axis=1)


def log_probabilities(contents: Contents, name: str, probs: np.ndarray) -> np.ndarray:
    """Return log probabilities `(N, C)`, from an array of them or of logits."""
    values = _floating(contents, name)
    if name.rpartition("/")[2] == "logits":
        return _log_softmax(_two_columns(values))
    _check_shape(contents, name, values, probs.shape)
    if index := first_index(~are_logarithms(values, probs)):
        raise contents.refused(
            f"{values[index]:.4g} at {contents.at(name, index)} where the probability is "
            f"{probs[index]:.4g}",
            "the logarithm of probs",
            "save log_probs of the same predictions, or drop them",
        )
    return values


def labels(contents: Contents, name: str, probs: np.ndarray) -> np.ndarray:
    """Return integer labels `(N,)`, or distributions over classes `(N, C)`, that fit `probs`."""
    y = numbers(contents, name)
    if y.shape == probs.shape:
        _check_distributions(contents, name, y)
        return y
    if y.shape != probs.shape[:1]:
        raise contents.refused(
            f"{name} of shape {y.shape} for probabilities of shape {probs.shape}",
            f"labels {probs.shape[:1]}, or one-hot labels {probs.shape}",
            "save both for the same examples, without further axes",
        )
    # Numbers in a table have no dtype.
    if y.dtype.kind == "f" and contents.lines is None:
        raise contents.refused(
            f"{name} of dtype {y.dtype} and shape {y.shape}",
            "integer labels",
            "convert them with .astype(int), or save soft labels as (N, C)",
        )
    if index := first_index(~np.isin(y, np.arange(probs.shape[1]))):
        raise contents.refused(
            f"the label {y[index]} at {contents.at(name, index)}",
            f"integers from 0 to {probs.shape[1] - 1}",
            "number the classes from 0, and drop examples without a label",
        )
    return y.astype(int)


def information(contents: Contents, name: str, probs: np.ndarray) -> np.ndarray:
    """Return a part `(N,)` of the entropy of labels with probabilities `probs`."""
    values, largest = _floating(contents, name), np.log(probs.shape[1])
    _check_shape(contents, name, values, probs.shape[:1])
    _check_not_negative(contents, name, values, INFORMATION_TOLERANCE)
    if index := first_index(values > largest + INFORMATION_TOLERANCE):
        raise contents.refused(
            f"{values[index]:.4g} at {contents.at(name, index)}",
            f"at most {largest:.4g} nats, the entropy of {probs.shape[1]} equal probabilities",
            "multiply bits by log(2)",
        )
    return values


# --- regression --------------------------------------------------------------------------------


def targets(contents: Contents, name: str) -> np.ndarray:
    """Return targets `(N, C)`."""
    values = _floating(contents, name)
    if values.ndim > 2:
        raise contents.refused(
            f"{name} of shape {values.shape}", "(N,) or (N, C)", "reshape it to (N, -1)"
        )
    return values.reshape(len(values), -1)


def means(contents: Contents, name: str, y: np.ndarray) -> np.ndarray:
    """Return means of the shape of the targets."""
    values = targets(contents, name)
    _check_shape(contents, name, values, y.shape)
    return values


def log_probs_of_examples(contents: Contents, name: str, y: np.ndarray) -> np.ndarray:
    """Return one number for each example."""
    values = _floating(contents, name)
    _check_shape(contents, name, values, y.shape[:1])
    return values


def deviations(contents: Contents, name: str, y: np.ndarray, *, positive: bool) -> np.ndarray:
    """Return standard deviations of the shape of the targets, positive or non-negative."""
    values = means(contents, name, y)
    _check_not_negative(contents, name, values)
    if positive and (index := first_index(values == 0)):
        raise contents.refused(
            f"0 at {contents.at(name, index)}",
            "positive standard deviations",
            "include the observation noise",
        )
    return values


def epistemic_parts(contents: Contents, name: str, std: np.ndarray) -> np.ndarray:
    """Return the epistemic standard deviations, none of which exceeds `std`."""
    values = deviations(contents, name, std, positive=False)
    if index := first_index(values > std * (1 + PART_TOLERANCE)):
        raise contents.refused(
            f"{values[index]:.4g} at {contents.at(name, index)} where std is {std[index]:.4g}",
            "at most std",
            "include the noise in std, std**2 = epistemic_std**2 + noise_std**2",
        )
    return values


# --- shared parts ------------------------------------------------------------------------------


def first_index(bad: np.ndarray) -> tuple[int, ...]:
    """Return the index of the first true entry, an empty one if there is none."""
    return tuple(map(int, next(iter(np.argwhere(bad)), ())))


def _floating(contents: Contents, name: str) -> np.ndarray:
    array = numbers(contents, name)
    return array if array.dtype.kind == "f" else array.astype(float)


def _two_columns(logits: np.ndarray) -> np.ndarray:
    """Return logits `(N, C)`; for logits `(N,)` of the second of two classes, add zeros."""
    return logits if logits.ndim == 2 else np.stack([0 * logits, logits], axis=1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _check_distributions(contents: Contents, name: str, rows: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        sums, smallest = rows.sum(axis=1, dtype=float), rows.min(axis=1)
    valid = _sums_to_one(rows, axis=1)
    if index := first_index(~valid):
        raise contents.refused(
            f"{contents.at(name, index)} with the sum {sums[index]:.4g} and the smallest entry "
            f"{smallest[index]:.4g}",
            "numbers from 0 to 1 that sum to one",
            "transpose it, so that each example is a row"
            if _sums_to_one(rows, axis=0).all()
            else "apply the softmax to logits, or divide by the sum",
        )


def _check_logits(contents: Contents, name: str, values: np.ndarray) -> None:
    """Raise a `ValueError` for probabilities saved as logits."""
    if values.ndim == 2 and _sums_to_one(values, axis=1).all():
        raise contents.refused(
            f"{name} whose rows all sum to one",
            "values before the softmax",
            "save probabilities as probs",
        )


def _sums_to_one(values: np.ndarray, axis: int) -> np.ndarray:
    """Return whether each row, or column, is a distribution."""
    with np.errstate(over="ignore"):
        sums = values.sum(axis=axis, dtype=float)
    return (abs(sums - 1) <= SUM_TOLERANCE) & (values.min(axis=axis) >= -SUM_TOLERANCE)


def _check_shape(contents: Contents, name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise contents.refused(
            f"{name} of shape {contents.arrays[name].shape}",
            f"{shape} as the other arrays",
            "save all arrays for the same examples",
        )


def _check_not_negative(
    contents: Contents, name: str, values: np.ndarray, tolerance: float = 0.0
) -> None:
    if index := first_index(values < -tolerance):
        raise contents.refused(
            f"{values[index]:.4g} at {contents.at(name, index)}",
            "no negative numbers",
            "find where the sign is lost",
        )
