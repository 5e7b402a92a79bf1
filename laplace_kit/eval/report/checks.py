"""What predictions must satisfy before a report is made of them."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike

from laplace_kit.eval.report.predictions import ClassPredictions
from laplace_kit.eval.report.table import RESERVED

# What is estimated from draws may miss its bounds a little.
INFORMATION_TOLERANCE = 1e-3


def usable_directory(directory: str | Path) -> Path:
    """Return `directory` as a path, after a look at whether it can be one.

    Raises
    ------
    ValueError
        If it, or one of its parents, is a file, or may not be written to.
    """
    directory = Path(directory)
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(
            f"Found a file at {nearest}, expected a directory to write the report to, or nothing "
            "yet; choose another directory or move the file away."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(
            f"Found the directory {nearest}, which may not be written to, expected one for the "
            "report that may; choose another directory or change its permissions."
        )
    return directory


def check_mapping(argument: str, value: object) -> None:
    """Refuse predictions, or sets, that have no names."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(
            f"Found {argument}= of type {type(value).__name__}, expected a mapping from names; "
            f"pass, for example, {argument}={{'name': ...}}."
        )


def check_predictors(names: Collection[object]) -> None:
    """Refuse a report of nothing, and names that cannot be part of a file's."""
    if not names:
        raise ValueError(
            "Found no predictions, expected those of one predictor at least; pass, for example, "
            "{'laplace': ...}."
        )
    check_names(names, RESERVED)


def check_names(names: Collection[object], reserved: Collection[str] = ()) -> None:
    """Refuse names that cannot be part of a file's name, or that mean something else."""
    for name in names:
        if not isinstance(name, str) or name in reserved or not re.fullmatch(r"[\w.+-]+", name):
            raise ValueError(
                f"Found the name {name!r}, expected letters, digits, '_', '.', '+' or '-', as it "
                f"becomes part of a file's name, and none of {list(reserved)}; choose another."
            )


def subject_of(names: Collection[str], subject: str | None) -> str:
    """Return the predictor that the report is about."""
    if subject is None:
        return "laplace" if "laplace" in names else [*names][-1]
    if subject not in names:
        raise ValueError(
            f"Found the subject {subject!r}, expected one of the predictors, {[*names]}."
        )
    return subject


def check_sets(
    predictions: Mapping[str, ClassPredictions], shifted_labels: Mapping[str, ArrayLike]
) -> None:
    """Refuse shifted sets without labels, labels without predictions, and sizes that differ."""
    predicted = dict.fromkeys(where for of in predictions.values() for where in of.shifted)
    if set(predicted) != set(shifted_labels):
        raise ValueError(
            f"Found {sorted(predicted)} as shifted sets, expected {sorted(shifted_labels)}, as "
            "`shifted_labels` has them; give labels to every set, and predictions to all labels."
        )
    for name, of in predictions.items():
        unknown = sorted(set(of.ood_epistemic) - set(of.ood))
        if unknown:
            raise ValueError(
                f"Found {unknown} among the epistemic parts of {name!r}, expected sets of its "
                f"`ood`, {sorted(of.ood)}; give the probabilities of those inputs too."
            )
        pairs = [("test set", of.probs, of.epistemic)]
        pairs += [(where, of.ood[where], part) for where, part in of.ood_epistemic.items()]
        for where, probs, epistemic in pairs:
            if epistemic is not None and np.shape(epistemic) != np.shape(probs)[:1]:
                raise ValueError(
                    f"Found an epistemic part of shape {np.shape(epistemic)} of {name!r} on "
                    f"{where!r}, expected {np.shape(probs)[:1]}, one number for each row of "
                    "probabilities."
                )
            largest = np.log(np.shape(probs)[1])
            if epistemic is not None and np.max(epistemic) > largest + INFORMATION_TOLERANCE:
                raise ValueError(
                    f"Found an epistemic part of {np.max(epistemic):.4g} of {name!r} on {where!r}, "
                    f"expected at most {largest:.4g} nats, the entropy of equal probabilities; "
                    "multiply bits by log(2)."
                )


def finite(name: str, values: ArrayLike) -> np.ndarray:
    """Return an array of numbers, none of which is infinite or missing."""
    array = np.asarray(values)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise ValueError(
            f"Found {array[tuple(bad[0])]} in {name} at {tuple(map(int, bad[0]))} and "
            f"{len(bad) - 1} more such values, expected finite numbers; drop those examples or "
            "find where the numbers overflow."
        )
    return array


@contextmanager
def about(name: str, where: str) -> Iterator[None]:
    """Add to an error the predictor and the set it is about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.add_note(f"This is about the predictor {name!r} on {where!r}.")
        raise
