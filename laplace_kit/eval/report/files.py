r"""Predictions in files, of any model: `.npz` archives, and `.csv` tables of one predictor.

An archive holds `y` and, for one predictor, `probs` or `logits`, or `mean` and `std`. With several
predictors, the name of each stands in front of its arrays, as in `map/probs`.

| array | shape | what it is |
| --- | --- | --- |
| `y` | `(N,)` or `(N, C)` | integer labels, or one-hot or soft ones; or targets |
| `probs` | `(N, C)` or `(N,)` | class probabilities, or $p(y = 1)$ |
| `logits` | `(N, C)` or `(N,)` | in place of them: before the softmax, or the sigmoid |
| `log_probs` | `(N, C)` | the logarithms of `probs`, if known where these round to zero |
| `epistemic` | `(N,)` | mutual information of label and weights in nats, if known |
| `aleatoric` | `(N,)` | expected entropy under the same weights, if not the rest of the entropy |
| `mean`, `std` | `(N, C)` or `(N,)` | Gaussian predictions, noise included |
| `epistemic_std` | as `std` | the part of it that is uncertainty about the weights, if known |
| `x` | `(N, ...)` | the inputs, to show or to draw predictions over, if wanted |
| `shifted/<set>/y` | as `y` | the labels of a shifted set |
| `shifted/<set>/probs` or `logits` | as `probs` | predictions on it; and `log_probs`, if known |
| `ood/<set>/probs` or `logits` | as `probs` | predictions on inputs without labels |
| `ood/<set>/epistemic` | `(M,)` | the mutual information there, if known |

A table has a header and the columns `y` and `p_0` ... `p_{C-1}`, or `y` and `p` for $p(y = 1)$, and
`epistemic` and `aleatoric` if known; or `y`, `mean`, `std`, and `epistemic_std` if known. Nothing
is unpickled.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike

from laplace_kit.eval.report.archive import (
    REGRESSION,
    SHARED,
    Key,
    Keys,
    Place,
    keys_of,
    one_of,
    parse,
    read_npz,
)
from laplace_kit.eval.report.contents import (
    Contents,
    deviations,
    epistemic_parts,
    information,
    inputs,
    labels,
    log_probabilities,
    means,
    probabilities,
    refused,
    targets,
)
from laplace_kit.eval.report.csv_table import read_csv
from laplace_kit.eval.report.predictions import ClassPredictions, RegressionPredictions

Predictions = Mapping[str, ClassPredictions | RegressionPredictions]
TEST = "the test set"
_READERS = {".npz": read_npz, ".csv": read_csv}


@dataclass(frozen=True)
class StoredPredictions:
    """What files of predictions say: the arguments of a report.

    Parameters
    ----------
    predictions
        Of each predictor, by name; one without a name has that of its file.
    y
        Labels `(N,)` or `(N, C)`, or targets `(N, C)`.
    shifted_labels
        The labels of each shifted set, by name.
    x
        The inputs, with a leading axis N, if known.
    """

    predictions: Predictions
    y: np.ndarray
    shifted_labels: Mapping[str, np.ndarray]
    x: np.ndarray | None = None

    @property
    def is_classification(self) -> bool:
        """Whether these are probabilities, not means and standard deviations."""
        return all(isinstance(of, ClassPredictions) for of in self.predictions.values())


# --- writing -----------------------------------------------------------------------------------


def write(
    path: str | os.PathLike,
    predictions: Predictions,
    y: ArrayLike,
    shifted_labels: Mapping[str, ArrayLike] | None = None,
) -> None:
    """Write predictions to an `.npz` archive, whole or not at all; equal ones make equal bytes.

    Parameters
    ----------
    path
        Where to; an existing file is replaced.
    predictions
        What each predictor says, by name.
    y
        Labels `(N,)` or `(N, C)`, or targets `(N, C)`.
    shifted_labels
        The labels of each shifted set, by name.

    Raises
    ------
    ValueError
        If `path` does not end in `.npz`, or `read` would not understand a name.
    """
    path = Path(path)
    arrays = {"y": y, **_named("shifted", "y", shifted_labels or {})}
    for name, of in predictions.items():
        arrays |= {f"{name}/{field}": values for field, values in _arrays(of).items()}
    odd = [name for name in arrays if parse(name) is None]
    if odd or path.suffix != ".npz":
        raise refused(
            path,
            f"the name {odd[0]!r}" if odd else f"the ending {path.suffix!r}",
            "letters, digits, '_', '.', '+' or '-' in names, and a file that ends in .npz",
            "choose another",
        )
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as file:
            np.savez_compressed(file, **{name: _plain(values) for name, values in arrays.items()})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _arrays(of: ClassPredictions | RegressionPredictions) -> dict[str, ArrayLike]:
    """Return what one predictor says by the names that it has in a file."""
    if isinstance(of, RegressionPredictions):
        found = {"mean": of.mean, "std": of.std, "epistemic_std": of.epistemic_std}
    else:
        found = {
            "probs": of.probs,
            "log_probs": of.log_probs,
            "epistemic": of.epistemic,
            "aleatoric": of.aleatoric,
            **_named("shifted", "probs", of.shifted),
            **_named("shifted", "log_probs", of.shifted_log_probs),
            **_named("ood", "probs", of.ood),
            **_named("ood", "epistemic", of.ood_epistemic),
        }
    return {field: values for field, values in found.items() if values is not None}


def _named(kind: str, field: str, sets: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    return {f"{kind}/{where}/{field}": values for where, values in sets.items()}


def _plain(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind in "fiub":
        return array
    return array.astype(np.float32)  # bfloat16 and its like, which NumPy's format does not know


# --- reading -----------------------------------------------------------------------------------


def read(path: str | os.PathLike) -> StoredPredictions:
    """Read predictions from an archive or a table, and look at every value.

    Parameters
    ----------
    path
        A file that ends in `.npz` or `.csv`, as described above.

    Returns
    -------
    StoredPredictions
        Probabilities are `(N, C)` and means `(N, C)`, whatever form the file has.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is damaged, foreign or incomplete, its arrays do not go together, or a value is not
        what its name says: in one line, with the file, the place and the remedy.
    """
    path = Path(path)
    if path.is_dir():
        raise refused(
            path,
            "a directory",
            "a file that ends in .npz or .csv",
            f"name the file in it, as {path / 'predictions.npz'} is of a report",
        )
    if path.suffix.lower() not in _READERS:
        raise refused(
            path,
            f"the ending {path.suffix!r}",
            ".npz or .csv",
            "save the arrays with numpy.savez('predictions.npz', y=..., probs=...)",
        )
    contents = _READERS[path.suffix.lower()](path)
    keys = keys_of(contents)
    names = dict.fromkeys(key.place.predictor for key in keys if key.field not in SHARED)
    own = {name: name or as_name(path.stem) for name in names}
    x = inputs(contents, "x") if "x" in contents.arrays else None
    if any(key.field in REGRESSION for key in keys):
        y = targets(contents, "y")
        regressors = {own[name]: _regressor(contents, keys, name, y) for name in names}
        return StoredPredictions(regressors, y, {}, x)
    places = [Place(name) for name in names] + [
        key.place for key in keys if key.field not in SHARED
    ]
    probs = {
        place: probabilities(contents, one_of(contents, keys, place, "probs", "logits"))
        for place in dict.fromkeys(places)
    }
    check_alike(
        path,
        (("/".join(place[1:]) if place.kind else TEST, values) for place, values in probs.items()),
    )
    y, shifted_labels = _labels(contents, keys, probs)
    classifiers = {own[name]: _classifier(contents, keys, probs, name) for name in names}
    return StoredPredictions(classifiers, y, shifted_labels, x)


def _classifier(
    contents: Contents, keys: Keys, probs: Mapping[Place, np.ndarray], name: str | None
) -> ClassPredictions:
    own = {place: values for place, values in probs.items() if place.predictor == name}

    def known(field: str, of: Callable) -> dict[Place, np.ndarray]:
        return {
            place: of(contents, keys[key], values)
            for place, values in own.items()
            if (key := Key(place, field)) in keys
        }

    epistemic, aleatoric = known("epistemic", information), known("aleatoric", information)
    test = Place(name)
    if test in aleatoric and test not in epistemic:
        one_of(contents, keys, test, "epistemic")
    logs = known("logits", log_probabilities) | known("log_probs", log_probabilities)

    def sets(values: Mapping[Place, np.ndarray], kind: str) -> dict[str, np.ndarray]:
        return {place.set: array for place, array in values.items() if place.kind == kind}

    return ClassPredictions(
        probs=own[test],
        shifted=sets(own, "shifted"),
        ood=sets(own, "ood"),
        epistemic=epistemic.get(test),
        ood_epistemic=sets(epistemic, "ood"),
        aleatoric=aleatoric.get(test),
        log_probs=logs.get(test),
        shifted_log_probs=sets(logs, "shifted"),
    )


def _regressor(
    contents: Contents, keys: Keys, name: str | None, y: np.ndarray
) -> RegressionPredictions:
    mean, std = (one_of(contents, keys, Place(name), field) for field in ("mean", "std"))
    part = keys.get(Key(Place(name), "epistemic_std"))
    centre, spread = means(contents, mean, y), deviations(contents, std, y, positive=True)
    epistemic_std = None if part is None else epistemic_parts(contents, part, spread)
    return RegressionPredictions(centre, spread, epistemic_std)


def _labels(
    contents: Contents, keys: Keys, probs: Mapping[Place, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the labels of the test set and of the shifted sets, which fit every predictor."""
    labelled = [key.place.set for key in keys if key.field == "y" and key.place.set]
    predicted = {place.set for place in probs if place.kind == "shifted"}
    if predicted != {*labelled}:
        raise contents.refused(
            f"the shifted sets {sorted(predicted)}",
            f"{sorted(labelled)}, as there are labels for",
            "save labels, as in shifted/<set>/y, and probabilities for each",
        )
    y = [labels(contents, "y", of) for place, of in probs.items() if place.kind is None]
    shifted = {
        place.set: labels(contents, f"shifted/{place.set}/y", of)
        for place, of in probs.items()
        if place.kind == "shifted"
    }
    return y[0], {where: shifted[where] for where in labelled}


def as_name(text: str) -> str:
    """Return a file's name, which the locale may have hidden, as the name of a predictor."""
    known = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return re.sub(r"[^\w.+-]+", "-", known) or "predictions"


def check_alike(path: Path, probs: Iterable[tuple[str, np.ndarray]]) -> None:
    """Refuse probabilities, by set, of different classes, or of different inputs in one set."""
    sizes, num_classes = {}, None
    for where, values in probs:
        num_classes = num_classes or values.shape[1]
        expected = (sizes.setdefault(where, len(values)), num_classes)
        if values.shape != expected:
            raise refused(
                path,
                f"probabilities of shape {values.shape} on {where}",
                f"{expected}, to go with the others",
                "save those of the same inputs, and of all classes",
            )
