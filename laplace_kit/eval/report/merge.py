"""Merging of several prediction files for the same examples."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from laplace_kit.eval.report.contents import first_index, refused
from laplace_kit.eval.report.files import (
    TEST,
    Predictions,
    StoredPredictions,
    as_name,
    check_alike,
    read_predictions,
)
from laplace_kit.eval.report.names import Names, check_fit


def read_all(paths: Sequence[str | os.PathLike]) -> StoredPredictions:
    """Return the predictions of all predictors in several files for the same examples.

    Parameters
    ----------
    paths
        As for `read_predictions`, at least one. If predictor names repeat, they are prefixed with
        the names of the directories of their files.

    Raises
    ------
    OSError, ValueError
        As for `read_predictions`, or if the files are not for the same examples and classes.
    """
    paths = [Path(path) for path in paths]
    first, *others = stored = [read_predictions(path) for path in paths]
    shifted_labels, shifted_weights = dict(first.shifted_labels), dict(first.shifted_weights)
    for path, other in zip(paths[1:], others, strict=True):
        if other.is_classification != first.is_classification:
            kinds = ("means and standard deviations", "probabilities")
            raise refused(
                path,
                kinds[other.is_classification],
                f"{kinds[first.is_classification]}, as in {paths[0]}",
                "pass classifiers or regressors, not both",
            )
        _check_same(path, "y", other.y, first.y, str(paths[0]))
        ones = np.ones(len(first.y))
        theirs, ours = (ones if of.weights is None else of.weights for of in (other, first))
        _check_same(path, "weights", theirs, ours, str(paths[0]))
        for where, y in other.shifted_labels.items():
            if where not in shifted_labels:
                shifted_labels[where] = y
                if where in other.shifted_weights:
                    shifted_weights[where] = other.shifted_weights[where]
                continue
            _check_same(path, f"shifted/{where}/y", y, shifted_labels[where], "another file")
            ones = np.ones(len(y))
            theirs, ours = (of.get(where, ones) for of in (other.shifted_weights, shifted_weights))
            _check_same(path, f"shifted/{where}/weights", theirs, ours, "another file")
    names = [[*file.predictions] for file in stored]
    if _repeated(names):
        prefixes = [as_name(path.resolve().parent.name) for path in paths]
        names = [[f"{p}-{name}" for name in own] for p, own in zip(prefixes, names, strict=True)]
    if twice := _repeated(names):
        raise refused(
            paths[-1],
            f"a second predictor named {twice[0]!r}",
            "unique names",
            "rename the file, or put files of the same name into directories of different names",
        )
    predictions = {
        name: given
        for own, found in zip(names, stored, strict=True)
        for name, given in zip(own, found.predictions.values(), strict=True)
    }
    if first.is_classification:
        check_alike(paths[-1], _by_set(predictions))
    x = next((file.x for file in stored if file.x is not None), None)
    return StoredPredictions(
        predictions,
        first.y,
        shifted_labels,
        x,
        first.weights,
        shifted_weights,
        _merged_names(paths, [file.names for file in stored]),
    )


def with_names(stored: StoredPredictions, names: Names) -> StoredPredictions:
    """Return predictions with other names where any are given; a `ValueError` if they do not fit.

    Parameters
    ----------
    stored
        Predictions from files.
    names
        The names that come before those in the files.
    """
    both = names.or_else(stored.names)
    first = next(iter(stored.predictions.values()))
    if stored.is_classification:
        check_fit(both, num_classes=np.shape(first.probs)[1], x=stored.x)
    else:
        check_fit(both, num_outputs=np.shape(first.mean)[1], x=stored.x)
    return replace(stored, names=both)


def _merged_names(paths: Sequence[Path], given: Sequence[Names]) -> Names:
    """Return the names in any of the files, which must agree where there are several."""
    found = {}
    for path, names in zip(paths, given, strict=True):
        for kind, value in vars(names).items():
            if value and found.setdefault(kind, value) != value:
                raise refused(
                    path,
                    f"the names {value!r} of {kind}",
                    f"{found[kind]!r}, as in another file",
                    "use the same names, in the same order",
                )
    return Names(**found)


def _repeated(names: Iterable[Iterable[str]]) -> list[str]:
    flat = [name for own in names for name in own]
    return [name for k, name in enumerate(flat) if name in flat[:k]]


def _check_same(path: Path, name: str, found: np.ndarray, expected: np.ndarray, whose: str) -> None:
    """Raise a `ValueError` for labels or targets that differ by more than float32 rounding."""
    if found.shape != expected.shape:
        raise refused(
            path,
            f"{name} of shape {found.shape}",
            f"{expected.shape}, as in {whose}",
            "compare predictions for the same examples",
        )
    if index := first_index(~np.isclose(found, expected, rtol=1e-6, atol=1e-30)):
        raise refused(
            path,
            f"{found[index]} at {name}[{', '.join(map(str, index))}]",
            f"{expected[index]}, as in {whose}",
            "compare predictions for the same examples, in the same order",
        )


def _by_set(predictions: Predictions) -> Iterator[tuple[str, np.ndarray]]:
    for given in predictions.values():
        yield TEST, given.probs
        for kind, sets in (("shifted", given.shifted), ("ood", given.ood)):
            yield from ((f"{kind}/{where}", values) for where, values in sets.items())
