r"""Files of predictions of any model: `.npz` archives, and `.csv` tables of one predictor.

An archive holds `y` and, for one predictor, `probs` or `logits`, or `mean` and `std`. With several
predictors, the names of the arrays are prefixed with that of the predictor, as in `map/probs`.

| array | shape | meaning |
| --- | --- | --- |
| `y` | `(N,)` or `(N, C)` | integer labels, or one-hot or soft ones; or targets |
| `probs` | `(N, C)` or `(N,)` | class probabilities, or $p(y = 1)$ |
| `logits` | `(N, C)` or `(N,)` | instead of `probs`: before the softmax, or the sigmoid |
| `log_probs` | `(N, C)` | the logarithms of `probs`, if known where these round to zero |
| `epistemic` | `(N,)` | mutual information of label and weights in nats, if known |
| `aleatoric` | `(N,)` | expected entropy given the weights, by default entropy minus `epistemic` |
| `mean`, `std` | `(N, C)` or `(N,)` | means and standard deviations, noise included |
| `epistemic_std` | as `std` | the part due to uncertainty in the weights, if known |
| `log_prob` | `(N,)` | for distributions that are not normal, $\log p(y)$ of each example |
| `cdf`, `cdf_below` | as `mean` | and $P(Y \le y)$, $P(Y < y)$ of each target |
| `low`, `high`, `content` | as `mean` | and ends and probability of the central 90% interval |
| `crps` | as `mean` | and the continuous ranked probability score |
| `weights` | `(N,)` | optional weights of the examples |
| `x` | `(N, ...)` | the inputs, optional, to show examples and draw predictions |
| `class_names` | `(C,)` | the names of the classes, optional, as text |
| `feature_names` | `(D,)` | the names of the columns of `x`, optional, as text |
| `target_name`, `target_unit` | `()` or `(C,)` | name and unit of the targets, optional, as text |
| `shifted/<set>/y` | as `y` | the labels of a shifted set; and `weights`, if not equal |
| `shifted/<set>/probs` or `logits` | as `probs` | predictions on it; and `log_probs`, if known |
| `ood/<set>/probs` or `logits` | as `probs` | predictions on inputs without labels |
| `ood/<set>/epistemic` | `(M,)` | the mutual information on them, if known |

A table has a header and the columns `y` and `p_0` ... `p_{C-1}`, or `y` and `p` for $p(y = 1)$, or
`y` and `p_<name>` for classes with names, and `epistemic` and `aleatoric` if known; or `y`, `mean`,
`std`, and `epistemic_std` if known; and `weights`. Without `log_prob` and the arrays after it,
means and standard deviations are those of normal distributions. Nothing is unpickled.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike

from laplace_kit.eval.report.archive import (
    DISTRIBUTIONS,
    NAMES,
    REGRESSION,
    SHARED,
    Key,
    Keys,
    Place,
    one_of,
    parse,
    parse_names,
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
    log_probs_of_examples,
    means,
    probabilities,
    refused,
    targets,
    texts,
    weights_of_examples,
)
from laplace_kit.eval.report.csv_table import read_csv
from laplace_kit.eval.report.names import NO_NAMES, Names, check_fit, named
from laplace_kit.eval.report.predictions import (
    ClassPredictions,
    Distributions,
    RegressionPredictions,
)

Predictions = Mapping[str, ClassPredictions | RegressionPredictions]
TEST = "the test set"
_READERS = {".npz": read_npz, ".csv": read_csv}


@dataclass(frozen=True)
class StoredPredictions:
    """Predictions read from files: the arguments of a report.

    Parameters
    ----------
    predictions
        The predictions of each predictor, by name; an unnamed predictor has the name of its file.
    y
        Labels `(N,)` or `(N, C)`, or targets `(N, C)`.
    shifted_labels
        The labels of each shifted set, by name.
    x
        The inputs, with a leading axis N, if known.
    weights
        The weights of the examples, `(N,)`; `None` for one each.
    shifted_weights
        The weights of shifted sets, by name, where known.
    names
        The names of classes, features and targets, where known.
    """

    predictions: Predictions
    y: np.ndarray
    shifted_labels: Mapping[str, np.ndarray]
    x: np.ndarray | None = None
    weights: np.ndarray | None = None
    shifted_weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    names: Names = NO_NAMES

    @property
    def is_classification(self) -> bool:
        """Whether the predictions are probabilities, not means and standard deviations."""
        return all(isinstance(given, ClassPredictions) for given in self.predictions.values())


# --- writing -----------------------------------------------------------------------------------


def write_predictions(
    path: str | os.PathLike,
    predictions: Predictions,
    y: ArrayLike,
    shifted_labels: Mapping[str, ArrayLike] | None = None,
    weights: ArrayLike | None = None,
    shifted_weights: Mapping[str, ArrayLike] | None = None,
    names: Names = NO_NAMES,
) -> None:
    """Write predictions to an `.npz` archive, atomically; equal predictions give equal bytes.

    Parameters
    ----------
    path
        The file; an existing one is replaced.
    predictions
        The predictions of each predictor, by name.
    y
        Labels `(N,)` or `(N, C)`, or targets `(N, C)`.
    shifted_labels
        The labels of each shifted set, by name.
    weights, shifted_weights
        The weights of the examples, and those of shifted sets, by name.
    names
        The names of classes, features and targets.

    Raises
    ------
    ValueError
        If `path` does not end in `.npz`, or a name is not valid.
    """
    path = Path(path)
    arrays = {"y": y, **_named("shifted", "y", shifted_labels or {})}
    if weights is not None:
        arrays["weights"] = weights
    arrays |= _named("shifted", "weights", shifted_weights or {})
    shown = (names.classes, names.features, names.targets, names.unit)
    arrays |= {name: np.array(of) for name, of in zip(NAMES, shown, strict=True) if of}
    for name, given in predictions.items():
        arrays |= {f"{name}/{part}": values for part, values in _arrays(given).items()}
    odd = [name for name in arrays if parse(name) is None]
    if odd or path.suffix != ".npz":
        raise refused(
            path,
            f"the name {odd[0]!r}" if odd else f"the suffix {path.suffix!r}",
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


def _arrays(given: ClassPredictions | RegressionPredictions) -> dict[str, ArrayLike]:
    """Return the arrays of one predictor by their names in a file."""
    if isinstance(given, RegressionPredictions):
        found = {"mean": given.mean, "std": given.std, "epistemic_std": given.epistemic_std}
        found |= {} if given.distributions is None else vars(given.distributions)
    else:
        found = {
            "probs": given.probs,
            "log_probs": given.log_probs,
            "epistemic": given.epistemic,
            "aleatoric": given.aleatoric,
            **_named("shifted", "probs", given.shifted),
            **_named("shifted", "log_probs", given.shifted_log_probs),
            **_named("ood", "probs", given.ood),
            **_named("ood", "epistemic", given.ood_epistemic),
        }
    return {part: values for part, values in found.items() if values is not None}


def _named(kind: str, part: str, sets: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    return {f"{kind}/{where}/{part}": values for where, values in sets.items()}


def _plain(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind in "fiubU":
        return array
    return array.astype(np.float32)  # bfloat16 and others that the NumPy format does not support


# --- reading -----------------------------------------------------------------------------------


def read_predictions(path: str | os.PathLike) -> StoredPredictions:
    """Return predictions from an archive or a table, after checking every value.

    Parameters
    ----------
    path
        A file that ends in `.npz` or `.csv`, as described at the top of this module.

    Returns
    -------
    StoredPredictions
        Probabilities are `(N, C)` and means `(N, C)`, whatever their form in the file.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If the file is damaged, incomplete or of another kind, its arrays are inconsistent, or a
        value is not valid. The message is one line with the file, the position and the remedy.
    """
    path = Path(path)
    if path.is_dir():
        raise refused(
            path,
            "a directory",
            "a file that ends in .npz or .csv",
            f"pass a file in it, such as {path / 'predictions.npz'} of a report",
        )
    if path.suffix.lower() not in _READERS:
        raise refused(
            path,
            f"the suffix {path.suffix!r}",
            ".npz or .csv",
            "save the arrays with numpy.savez('predictions.npz', y=..., probs=...)",
        )
    contents = _READERS[path.suffix.lower()](path)
    keys = parse_names(contents)
    names = dict.fromkeys(key.place.predictor for key in keys if key.field not in SHARED)
    own = {name: name or as_name(path.stem) for name in names}
    x = inputs(contents, "x") if "x" in contents.arrays else None
    counted = (
        weights_of_examples(contents, "weights", "y") if "weights" in contents.arrays else None
    )
    if any(key.field in REGRESSION for key in keys):
        y = targets(contents, "y")
        regressors = {own[name]: _regressor(contents, keys, name, y) for name in names}
        names = _names(contents, num_outputs=y.shape[1], x=x)
        return StoredPredictions(regressors, y, {}, x, counted, names=names)
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
    shifted_weights = {
        where: weights_of_examples(contents, f"shifted/{where}/weights", f"shifted/{where}/y")
        for where in shifted_labels
        if f"shifted/{where}/weights" in contents.arrays
    }
    names = _names(contents, num_classes=next(iter(probs.values())).shape[1], x=x)
    return StoredPredictions(classifiers, y, shifted_labels, x, counted, shifted_weights, names)


def _names(
    contents: Contents,
    *,
    num_classes: int | None = None,
    num_outputs: int | None = None,
    x: np.ndarray | None = None,
) -> Names:
    """Return the names in a file, one for each class, feature or output."""
    given = [texts(contents, name) if name in contents.arrays else None for name in NAMES]
    try:
        *several, unit = given
        names = named(*several, None if unit is None else unit[0])
        check_fit(names, num_classes=num_classes, num_outputs=num_outputs, x=x)
    except ValueError as error:
        raise ValueError(f"{contents.path}: {error}") from error
    return names


def _classifier(
    contents: Contents, keys: Keys, probs: Mapping[Place, np.ndarray], name: str | None
) -> ClassPredictions:
    own = {place: values for place, values in probs.items() if place.predictor == name}

    def known(part: str, read_array: Callable) -> dict[Place, np.ndarray]:
        return {
            place: read_array(contents, keys[key], values)
            for place, values in own.items()
            if (key := Key(place, part)) in keys
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
    mean, std = (one_of(contents, keys, Place(name), part) for part in ("mean", "std"))
    part = keys.get(Key(Place(name), "epistemic_std"))
    centre, spread = means(contents, mean, y), deviations(contents, std, y, positive=True)
    epistemic_std = None if part is None else epistemic_parts(contents, part, spread)
    distributions = None
    if any(Key(Place(name), part) in keys for part in DISTRIBUTIONS):
        arrays = (one_of(contents, keys, Place(name), part) for part in DISTRIBUTIONS)
        distributions = Distributions(
            *(
                log_probs_of_examples(contents, array, y) if k == 0 else means(contents, array, y)
                for k, array in enumerate(arrays)
            )
        )
    return RegressionPredictions(centre, spread, epistemic_std, distributions)


def _labels(
    contents: Contents, keys: Keys, probs: Mapping[Place, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the labels of the test set and of the shifted sets; they must fit all predictors."""
    labelled = [key.place.set for key in keys if key.field == "y" and key.place.set]
    predicted = {place.set for place in probs if place.kind == "shifted"}
    if predicted != {*labelled}:
        raise contents.refused(
            f"the shifted sets {sorted(predicted)}",
            f"{sorted(labelled)}, the sets with labels",
            "save labels, as shifted/<set>/y, and probabilities for each set",
        )
    y = [labels(contents, "y", values) for place, values in probs.items() if place.kind is None]
    shifted = {
        place.set: labels(contents, f"shifted/{place.set}/y", values)
        for place, values in probs.items()
        if place.kind == "shifted"
    }
    return y[0], {where: shifted[where] for where in labelled}


def as_name(text: str) -> str:
    """Return a file name, which may hold undecoded bytes, as a valid predictor name."""
    known = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return re.sub(r"[^\w.+-]+", "-", known) or "predictions"


def check_alike(path: Path, probs: Iterable[tuple[str, np.ndarray]]) -> None:
    """Raise a `ValueError` unless all probabilities, by set, have consistent shapes."""
    sizes, num_classes = {}, None
    for where, values in probs:
        num_classes = num_classes or values.shape[1]
        expected = (sizes.setdefault(where, len(values)), num_classes)
        if values.shape != expected:
            raise refused(
                path,
                f"probabilities of shape {values.shape} on {where}",
                f"{expected} as the others",
                "save probabilities for the same inputs, and for all classes",
            )
