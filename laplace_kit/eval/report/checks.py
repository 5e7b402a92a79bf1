"""Validation of predictions, names and directories before a report is made."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike, Bool, Num

from laplace_kit.eval.report.predictions import ClassPredictions, RegressionPredictions
from laplace_kit.eval.report.table import RESERVED
from laplace_kit.eval.statistics.classification import entropy

# Estimates from draws may slightly violate their bounds.
INFORMATION_TOLERANCE = 1e-3
# As in the metrics: rounding to bfloat16 passes, logits do not.
SUM_TOLERANCE = 0.02
# A part may exceed the total by rounding, to bfloat16 at worst.
PART_TOLERANCE = 0.02


def usable_directory(directory: str | Path) -> Path:
    """Return `directory` as a path; a `ValueError` if it cannot be created or written to."""
    directory = Path(directory)
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(
            f"Found a file at {nearest}, expected a directory to write the report to, or no file; "
            "choose another directory or move the file away."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(
            f"Found the directory {nearest} without write permission, expected a writable one for "
            "the report; choose another directory or change its permissions."
        )
    return directory


def check_title(title: str) -> None:
    """Raise a `ValueError` for a title with bytes that the locale could not decode."""
    try:
        title.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Found the title {title!r} with undecoded bytes, expected text; pass "
            "title.encode('utf-8', 'surrogateescape').decode('utf-8')."
        ) from error


def check_mapping(argument: str, value: object) -> None:
    """Raise a `TypeError` unless predictions or sets are a mapping from names."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(
            f"Found {argument}= of type {type(value).__name__}, expected a mapping from names; "
            f"pass, for example, {argument}={{'name': ...}}."
        )


def check_predictors(names: Collection[object]) -> None:
    """Raise a `ValueError` unless there are predictors with valid names."""
    if not names:
        raise ValueError(
            "Found no predictions, expected at least one predictor; pass, for example, "
            "{'laplace': ...}."
        )
    check_names(names, RESERVED)


def check_names(names: Collection[object], reserved: Collection[str] = ()) -> None:
    """Raise a `ValueError` for names that cannot be part of a file name, or are reserved."""
    for name in names:
        if not isinstance(name, str) or name in reserved or not re.fullmatch(r"[\w.+-]+", name):
            raise ValueError(
                f"Found the name {name!r}, expected letters, digits, '_', '.', '+' or '-', since "
                f"it becomes part of a file name, and none of {list(reserved)}; choose another."
            )


def check_weighted(weights: Collection[str], sets: Collection[str]) -> None:
    """Raise a `ValueError` for weights of shifted sets that have no labels."""
    unknown = sorted(set(weights) - set(sets))
    if unknown:
        raise ValueError(
            f"Found weights for {unknown}, expected names of shifted sets, {sorted(sets)}; pass "
            "labels for these sets too."
        )


def check_subject(names: Collection[str], subject: str | None) -> str:
    """Return the predictor that selects examples, by default "laplace" or else the first."""
    if subject is None:
        return "laplace" if "laplace" in names else next(iter(names))
    if subject not in names:
        raise ValueError(
            f"Found the subject {subject!r}, expected one of the predictors {[*names]}."
        )
    return subject


def check_deviations(predictions: Mapping[str, RegressionPredictions]) -> None:
    """Raise a `ValueError` for epistemic standard deviations that exceed `std`."""
    for name, given in predictions.items():
        if given.epistemic_std is None:
            continue
        part, whole = np.asarray(given.epistemic_std), np.asarray(given.std)
        if part.shape != whole.shape:
            raise ValueError(
                f"Found epistemic_std of shape {part.shape} for {name!r}, expected {whole.shape}, "
                "the shape of std."
            )
        bad = np.argwhere(~((part >= 0) & (part <= whole * (1 + PART_TOLERANCE))))
        if len(bad):
            index = tuple(map(int, bad[0]))
            raise ValueError(
                f"Found an epistemic_std of {part[index]:.4g} for {name!r} at {index} where std is "
                f"{whole[index]:.4g}, expected a value from zero to std; include the observation "
                "noise in std, std**2 = epistemic_std**2 + noise_std**2."
            )


def check_distributions(
    predictions: Mapping[str, RegressionPredictions], y: Num[np.ndarray, "N ..."]
) -> None:
    """Raise a `ValueError` for distributions of other targets, or that are not possible."""
    for name, given in predictions.items():
        found = given.distributions
        if found is None:
            continue
        shape = (len(y), int(np.prod(y.shape[1:])))
        for field, values in vars(found).items():
            expected = shape[:1] if field == "log_prob" else shape
            if np.shape(values) != expected:
                raise ValueError(
                    f"Found {field} of shape {np.shape(values)} for {name!r}, expected {expected} "
                    "for these targets; pass distributions_of(targets, y) of the same targets."
                )
        cdf, below, content = (
            np.asarray(values, float) for values in (found.cdf, found.cdf_below, found.content)
        )
        ordered = (below <= cdf + PART_TOLERANCE) & (below >= -PART_TOLERANCE)
        for what, valid in (
            ("log_prob", ~np.isnan(np.asarray(found.log_prob, float))),
            ("cdf and cdf_below", ordered & (cdf <= 1 + PART_TOLERANCE)),
            ("content", (content >= 0) & (content <= 1 + PART_TOLERANCE)),
            ("low and high", np.asarray(found.low) <= np.asarray(found.high)),
            ("crps", np.asarray(found.crps) >= -PART_TOLERANCE),
        ):
            if len(bad := np.argwhere(~valid)):
                raise ValueError(
                    f"Found {what} of {name!r} that no distribution has, first at "
                    f"{tuple(map(int, bad[0]))}, expected probabilities from 0 to 1, with "
                    "cdf_below <= cdf, low <= high and no NaN; pass distributions_of(targets, y)."
                )


def check_sets(
    predictions: Mapping[str, ClassPredictions], shifted_labels: Mapping[str, ArrayLike]
) -> None:
    """Raise a `ValueError` for shifted sets without labels, and for inconsistent predictions."""
    predicted = dict.fromkeys(where for given in predictions.values() for where in given.shifted)
    if set(predicted) != set(shifted_labels):
        raise ValueError(
            f"Found {sorted(predicted)} as shifted sets, expected {sorted(shifted_labels)} as in "
            "`shifted_labels`; pass labels for every set, and predictions for all labels."
        )
    for name, given in predictions.items():
        for what, known, kind in (
            ("epistemic parts", given.ood_epistemic, "ood"),
            ("log probabilities", given.shifted_log_probs, "shifted"),
        ):
            unknown = sorted(set(known) - set(getattr(given, kind)))
            if unknown:
                raise ValueError(
                    f"Found {unknown} among the {what} of {name!r}, expected sets of its "
                    f"`{kind}`, {sorted(getattr(given, kind))}; pass the probabilities for those "
                    "inputs too."
                )
        _check_parts(f"{name!r} on 'test set'", given)
        for where, part in given.ood_epistemic.items():
            _check_information("epistemic", f"{name!r} on {where!r}", part, given.ood[where])
        with about(name, "test set"):
            _check_log_probs(given.probs, given.log_probs)
        for where, logs in given.shifted_log_probs.items():
            with about(name, where):
                _check_log_probs(given.shifted[where], logs)


def _check_parts(whose: str, given: ClassPredictions) -> None:
    """Raise a `ValueError` for parts of the uncertainty that do not add up to one entropy."""
    if given.epistemic is None:
        if given.aleatoric is not None:
            raise ValueError(
                f"Found an aleatoric part for {whose} without an epistemic one, expected both "
                "parts of the entropy; pass the mutual information of labels and weights too."
            )
        return
    _check_information("epistemic", whose, given.epistemic, given.probs)
    if given.aleatoric is not None:
        _check_information("aleatoric", whose, given.aleatoric, given.probs)
        both = np.add(given.epistemic, given.aleatoric)
        _check_information("epistemic and aleatoric", whose, both, given.probs)
        return
    whole, part = entropy(given.probs), np.asarray(given.epistemic)
    bad = np.flatnonzero(part > whole + INFORMATION_TOLERANCE)
    if len(bad):
        raise ValueError(
            f"Found an epistemic part of {part[bad[0]]:.4g} for {whose}, example {bad[0]}, where "
            f"the entropy of its probabilities is {whole[bad[0]]:.4g}, and {len(bad) - 1} more "
            "such examples, expected at most the entropy; if the probabilities are not the average "
            "over the draws that the epistemic part was computed from, pass aleatoric, the "
            "expected entropy of the same draws, too."
        )


def _check_information(what: str, whose: str, part: ArrayLike, probs: ArrayLike) -> None:
    """Raise a `ValueError` unless `part` can be a part of the entropy of labels."""
    part, (num, num_classes) = np.asarray(part), np.shape(probs)
    if part.shape != (num,):
        raise ValueError(
            f"Found an {what} part of shape {part.shape} for {whose}, expected {(num,)}, one "
            "number for each row of probabilities."
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
                f"Found an {what} part of {part[bad][0]:.4g} for {whose}, expected {expected}; "
                f"{remedy}."
            )


def _check_log_probs(probs: ArrayLike, log_probs: ArrayLike | None) -> None:
    """Raise a `ValueError` unless `log_probs` are the logarithms of `probs`."""
    if log_probs is None:
        return
    if np.shape(log_probs) != np.shape(probs):
        raise ValueError(
            f"Found log_probs of shape {np.shape(log_probs)} for probs of shape {np.shape(probs)}, "
            "expected the same shape; pass both for the same examples and classes."
        )
    bad = np.argwhere(~are_logarithms(log_probs, probs))
    if len(bad):
        index = tuple(map(int, bad[0]))
        raise ValueError(
            f"Found log_probs of {np.asarray(log_probs)[index]:.4g} at {index} where probs are "
            f"{np.asarray(probs)[index]:.4g}, expected finite logarithms of probs; pass "
            "jax.nn.log_softmax(logits), or leave them out."
        )


def are_logarithms(log_probs: ArrayLike, probs: ArrayLike) -> Bool[np.ndarray, "N C"]:
    """Return where `log_probs` are finite logarithms of `probs`, up to rounding."""
    logs = np.asarray(log_probs, float)
    close = abs(np.exp(np.minimum(logs, 1.0)) - np.asarray(probs, float)) <= SUM_TOLERANCE
    return close & np.isfinite(logs)


def finite(name: str, values: ArrayLike) -> np.ndarray:
    """Return values as an array; a `ValueError` if one is NaN or infinite."""
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
    """Add a note to errors that names the predictor and the set."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.add_note(f"This is about the predictor {name!r} on {where!r}.")
        raise
