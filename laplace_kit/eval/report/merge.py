"""Several files of predictions about the same examples, read as one."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from laplace_kit.eval.report.contents import first_index, refused
from laplace_kit.eval.report.files import (
    TEST,
    Predictions,
    StoredPredictions,
    as_name,
    check_alike,
    read,
)


def read_all(paths: Sequence[str | os.PathLike]) -> StoredPredictions:
    """Read files about the same examples as one, their predictors side by side.

    Parameters
    ----------
    paths
        As for `read`, one at least. Where files name their predictors alike, the names of their
        directories are put in front.

    Raises
    ------
    OSError, ValueError
        As `read`, or if the files are not about the same examples and classes.
    """
    paths = [Path(path) for path in paths]
    first, *others = stored = [read(path) for path in paths]
    shifted_labels = dict(first.shifted_labels)
    for path, of in zip(paths[1:], others, strict=True):
        if of.is_classification != first.is_classification:
            raise refused(
                path,
                "probabilities" if of.is_classification else "means and standard deviations",
                f"the other, as {paths[0]} has it",
                "give classifiers or regressors, not both",
            )
        _check_same(path, "y", of.y, first.y, str(paths[0]))
        for where, y in of.shifted_labels.items():
            _check_same(
                path, f"shifted/{where}/y", y, shifted_labels.setdefault(where, y), "another"
            )
    names = [[*of.predictions] for of in stored]
    if _repeated(names):
        fronts = [as_name(path.resolve().parent.name) for path in paths]
        names = [[f"{f}-{n}" for n in of] for f, of in zip(fronts, names, strict=True)]
    if twice := _repeated(names):
        raise refused(
            paths[-1],
            f"a second predictor named {twice[0]!r}",
            "a name of its own for each",
            "rename the file, or put files of one name into directories of different names",
        )
    predictions = {
        name: of
        for own, found in zip(names, stored, strict=True)
        for name, of in zip(own, found.predictions.values(), strict=True)
    }
    if first.is_classification:
        check_alike(paths[-1], _by_set(predictions))
    x = next((of.x for of in stored if of.x is not None), None)
    return StoredPredictions(predictions, first.y, shifted_labels, x)


def _repeated(names: Iterable[Iterable[str]]) -> list[str]:
    flat = [name for of in names for name in of]
    return [name for k, name in enumerate(flat) if name in flat[:k]]


def _check_same(path: Path, name: str, found: np.ndarray, expected: np.ndarray, whose: str) -> None:
    """Refuse another file's labels or targets that differ by more than rounding to float32."""
    if found.shape != expected.shape:
        raise refused(
            path,
            f"{name} of shape {found.shape}",
            f"{expected.shape}, as {whose} has it",
            "compare predictions for the same examples",
        )
    if index := first_index(~np.isclose(found, expected, rtol=1e-6, atol=1e-30)):
        raise refused(
            path,
            f"{found[index]} at {name}[{', '.join(map(str, index))}]",
            f"{expected[index]}, as {whose} has it",
            "compare predictions for the same examples, in the same order",
        )


def _by_set(predictions: Predictions) -> Iterator[tuple[str, np.ndarray]]:
    for of in predictions.values():
        yield TEST, of.probs
        for kind, sets in (("shifted", of.shifted), ("ood", of.ood)):
            yield from ((f"{kind}/{where}", values) for where, values in sets.items())
