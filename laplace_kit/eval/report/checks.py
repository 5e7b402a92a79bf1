"""What predictions must satisfy before a report is made of them."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from laplace_kit.eval.report.predictions import ClassPredictions, RegressionPredictions
from laplace_kit.eval.report.table import RESERVED

# What is estimated from draws may miss its bounds a little.
INFORMATION_TOLERANCE = 1e-3
# As in the metrics: rounding of bfloat16 passes, logits do not.
SUM_TOLERANCE = 0.02
# A part may exceed the whole by rounding, to bfloat16 at worst.
PART_TOLERANCE = 0.02


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


def check_title(title: str) -> None:
    """Refuse a title that no file can hold, as of an argument that the locale could not decode."""
    try:
        title.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Found the title {title!r}, which holds bytes that were not decoded, expected text; "
            "pass title.encode('utf-8', 'surrogateescape').decode('utf-8')."
        ) from error


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
    """Return the predictor whose examples are shown: "laplace", or else the reference."""
    if subject is None:
        return "laplace" if "laplace" in names else next(iter(names))
    if subject not in names:
        raise ValueError(
            f"Found the subject {subject!r}, expected one of the predictors, {[*names]}."
        )
    return subject


def check_deviations(predictions: Mapping[str, RegressionPredictions]) -> None:
    """Refuse epistemic deviations that are no part of the whole."""
    for name, of in predictions.items():
        if of.epistemic_std is None:
            continue
        part, whole = np.asarray(of.epistemic_std), np.asarray(of.std)
        if part.shape != whole.shape:
            raise ValueError(
                f"Found an epistemic deviation of shape {part.shape} of {name!r}, expected "
                f"{whole.shape}, as std has it."
            )
        bad = np.argwhere(~((part >= 0) & (part <= whole * (1 + PART_TOLERANCE))))
        if len(bad):
            index = tuple(map(int, bad[0]))
            raise ValueError(
                f"Found an epistemic deviation of {part[index]:.4g} of {name!r} at {index} where "
                f"std is {whole[index]:.4g}, expected a part of it, from zero; add the observation "
                "noise to std, in variances."
            )


def check_sets(
    predictions: Mapping[str, ClassPredictions], shifted_labels: Mapping[str, ArrayLike]
) -> None:
    """Refuse shifted sets without labels, and what is said of them that does not go together."""
    predicted = dict.fromkeys(where for of in predictions.values() for where in of.shifted)
    if set(predicted) != set(shifted_labels):
        raise ValueError(
            f"Found {sorted(predicted)} as shifted sets, expected {sorted(shifted_labels)}, as "
            "`shifted_labels` has them; give labels to every set, and predictions to all labels."
        )
    for name, of in predictions.items():
        for what, known, kind in (
            ("epistemic parts", of.ood_epistemic, "ood"),
            ("log probabilities", of.shifted_log_probs, "shifted"),
        ):
            unknown = sorted(set(known) - set(getattr(of, kind)))
            if unknown:
                raise ValueError(
                    f"Found {unknown} among the {what} of {name!r}, expected sets of its "
                    f"`{kind}`, {sorted(getattr(of, kind))}; give the probabilities of those "
                    "inputs too."
                )
        _check_parts(f"{name!r} on 'test set'", of)
        for where, part in of.ood_epistemic.items():
            _check_information("epistemic", f"{name!r} on {where!r}", part, of.ood[where])
        with about(name, "test set"):
            _check_log_probs(of.probs, of.log_probs)
        for where, logs in of.shifted_log_probs.items():
            with about(name, where):
                _check_log_probs(of.shifted[where], logs)


def _check_parts(whose: str, of: ClassPredictions) -> None:
    """Refuse parts of the uncertainty that are not those of one whole."""
    if of.epistemic is None:
        if of.aleatoric is not None:
            raise ValueError(
                f"Found an aleatoric part of {whose} without an epistemic one, expected both parts "
                "of the entropy; give the mutual information of labels and weights too."
            )
        return
    _check_information("epistemic", whose, of.epistemic, of.probs)
    if of.aleatoric is not None:
        _check_information("aleatoric", whose, of.aleatoric, of.probs)
        both = np.add(of.epistemic, of.aleatoric)
        _check_information("epistemic and aleatoric", whose, both, of.probs)
        return
    whole, part = entropy(of.probs), np.asarray(of.epistemic)
    bad = np.flatnonzero(part > whole + INFORMATION_TOLERANCE)
    if len(bad):
        raise ValueError(
            f"Found an epistemic part of {part[bad[0]]:.4g} of {whose}, example {bad[0]}, where "
            f"the entropy of its probabilities is {whole[bad[0]]:.4g}, and {len(bad) - 1} more "
            "such examples, expected a part of it; where these probabilities are not the average "
            "that it was computed from, give aleatoric, the expected entropy of the same draws, "
            "too."
        )


def _check_information(what: str, whose: str, part: ArrayLike, probs: ArrayLike) -> None:
    """Refuse what cannot be a part of the entropy of labels with these probabilities."""
    part, (num, num_classes) = np.asarray(part), np.shape(probs)
    if part.shape != (num,):
        raise ValueError(
            f"Found an {what} part of shape {part.shape} of {whose}, expected {(num,)}, one number "
            "for each row of probabilities."
        )
    largest = np.log(num_classes)
    for bad, expected, remedy in (
        (~np.isfinite(part), "finite numbers", "find where the numbers overflow"),
        (part < -INFORMATION_TOLERANCE, "no negative numbers", "find where the sign is lost"),
        (
            part > largest + INFORMATION_TOLERANCE,
            f"at most {largest:.4g} nats, the entropy of equal probabilities",
            "multiply bits by log(2)",
        ),
    ):
        if bad.any():
            raise ValueError(
                f"Found an {what} part of {part[bad][0]:.4g} of {whose}, expected {expected}; "
                f"{remedy}."
            )


def _check_log_probs(probs: ArrayLike, log_probs: ArrayLike | None) -> None:
    """Refuse logarithms that are not those of the probabilities."""
    if log_probs is None:
        return
    if np.shape(log_probs) != np.shape(probs):
        raise ValueError(
            f"Found log_probs of shape {np.shape(log_probs)} for probs of shape {np.shape(probs)}, "
            "expected the same shape; give both for the same examples and classes."
        )
    bad = np.argwhere(~are_logarithms(log_probs, probs))
    if len(bad):
        index = tuple(map(int, bad[0]))
        raise ValueError(
            f"Found log_probs of {np.asarray(log_probs)[index]:.4g} at {index} where probs are "
            f"{np.asarray(probs)[index]:.4g}, expected finite logarithms of these; give "
            "jax.nn.log_softmax(logits), or leave them out."
        )


def are_logarithms(log_probs: ArrayLike, probs: ArrayLike) -> Bool[np.ndarray, "N C"]:
    """Return where finite numbers are the logarithms of probabilities, rounding apart."""
    logs = np.asarray(log_probs, float)
    close = abs(np.exp(np.minimum(logs, 1.0)) - np.asarray(probs, float)) <= SUM_TOLERANCE
    return close & np.isfinite(logs)


def entropy(probs: ArrayLike) -> Float[np.ndarray, " N"]:
    """Return the entropy of each row of probabilities in nats."""
    probs = np.asarray(probs, float)
    return -np.sum(probs * np.log(np.where(probs > 0, probs, 1.0)), axis=1)


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
