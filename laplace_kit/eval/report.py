"""Calibration reports: predictions and targets go in; a page, plots and `metrics.json` come out.

A report knows nothing of posteriors: it sees what one or several named predictors, such as "map"
and "laplace", say about the same examples. Every number it shows is one of `metrics.json`.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from laplace_kit.eval import figures, metrics, page, summary
from laplace_kit.eval.figures import TEST
from laplace_kit.eval.page import Report as Report

SCHEMA = 1


@dataclass(frozen=True)
class ClassPredictions:
    """One classifier's probabilities, each row summing to one.

    Parameters
    ----------
    probs
        On the test set, `(N, C)`.
    shifted
        On shifted sets, whose labels are known, by name, `(M, C)` each.
    ood
        On out-of-distribution inputs, which have no labels, by name, `(M, C)` each.
    """

    probs: Float[ArrayLike, "N C"]
    shifted: Mapping[str, Float[ArrayLike, "_ C"]] = field(default_factory=dict)
    ood: Mapping[str, Float[ArrayLike, "_ C"]] = field(default_factory=dict)


@dataclass(frozen=True)
class RegressionPredictions:
    """One regressor's Gaussian predictions on the test set.

    Parameters
    ----------
    mean
        Predictive mean, `(N, C)`.
    std
        Predictive standard deviation, noise included, `(N, C)`.
    epistemic_std
        The part of it that is uncertainty about the weights, `(N, C)`, if known.
    """

    mean: Float[ArrayLike, "N C"]
    std: Float[ArrayLike, "N C"]
    epistemic_std: Float[ArrayLike, "N C"] | None = None


def classification_metrics(probs: Float[ArrayLike, "N C"], y: ArrayLike) -> dict[str, float]:
    """Return accuracy, mean confidence, NLL, ECE, MCE, ACE and Brier score of a classifier.

    Parameters
    ----------
    probs
        Probabilities, `(N, C)`.
    y
        Labels, `(N,)`, or one-hot or soft labels, `(N, C)`.

    Returns
    -------
    dict
        `accuracy`, `confidence` (the mean of the largest probability), `nll` (nats), `ece`, `mce`,
        `ace` and `brier`.

    Raises
    ------
    ValueError
        If the shapes do not go together, or the values are not probabilities or labels.
    """
    return {
        "accuracy": float(metrics.accuracy(probs, y)),
        "confidence": float(np.asarray(probs, float).max(axis=1).mean()),
        "nll": float(metrics.negative_log_likelihood(probs, y)),
        "ece": float(metrics.expected_calibration_error(probs, y)),
        "mce": float(metrics.maximum_calibration_error(probs, y)),
        "ace": float(metrics.adaptive_calibration_error(probs, y)),
        "brier": float(metrics.brier_score(probs, y)),
    }


def regression_metrics(
    mean: Float[ArrayLike, "N C"], std: Float[ArrayLike, "N C"], y: ArrayLike
) -> dict[str, float]:
    """Return RMSE, NLL, CRPS, coverage of the central 90% intervals and chi-squared.

    Parameters
    ----------
    mean, std, y
        Predictive mean, predictive standard deviation (noise included) and targets, `(N, C)` each.

    Returns
    -------
    dict
        `rmse` and `crps` (units of `y`), `nll` (nats, summed over outputs), `coverage_90` (a
        share) and `chi_squared` (1 where the variances are right on average).

    Raises
    ------
    ValueError
        If the shapes differ or a standard deviation is not positive.
    """
    var = jnp.square(jnp.asarray(std))
    return {
        "rmse": float(metrics.rmse(mean, y)),
        "nll": float(metrics.gaussian_nll(mean, var, y)),
        "crps": float(metrics.crps_gaussian(mean, std, y)),
        "coverage_90": float(metrics.interval_coverage(mean, std, y, 0.9)),
        "chi_squared": float(metrics.chi_squared(mean, var, y)),
    }


def out_of_distribution_score(probs: Float[ArrayLike, "N C"]) -> Float[Array, " N"]:
    r"""Return $1 - \max_c p_c$ of each input: the less sure the classifier, the higher.

    Parameters
    ----------
    probs
        Probabilities, `(N, C)`.

    References
    ----------
    Hendrycks and Gimpel (2017), "A baseline for detecting misclassified and out-of-distribution
    examples in neural networks".
    """
    return 1.0 - jnp.max(jnp.asarray(probs), axis=1)


def classification_report(
    predictions: Mapping[str, ClassPredictions],
    y: ArrayLike,
    directory: str | Path,
    *,
    shifted_labels: Mapping[str, ArrayLike] | None = None,
    title: str = "Calibration report",
    card: Mapping[str, str] | None = None,
) -> Report:
    """Measure classifiers on the same examples and write a report.

    Parameters
    ----------
    predictions
        What each predictor says, by its name, such as "map" and "laplace".
    y
        Test labels, `(N,)`, or one-hot or soft labels, `(N, C)`.
    directory
        Where to write; made if it is missing.
    shifted_labels
        The labels of each shifted set, by the set's name.
    title
        The heading of the page.
    card
        Facts about the posterior, by name, shown as a table.

    Returns
    -------
    Report
        The numbers, and the files written.

    Raises
    ------
    ValueError
        If the predictors do not share their sets, shapes or values are not those of probabilities
        and labels, a name cannot be part of a file name, or `directory` is a file.
    """
    directory, shifts = page.usable_directory(directory), shifted_labels or {}
    _check_predictors(predictions)
    foreign = next(iter(predictions.values())).ood
    _check_names([*shifts, *foreign])
    for name, of in predictions.items():
        _check_sets(f"the shifted sets of {name!r}", of.shifted, "`shifted_labels`", shifts)
        _check_sets(f"the ood sets of {name!r}", of.ood, "the first predictor", foreign)

    everyone = predictions.items()
    labels = {TEST: y, **shifts}
    probs = {
        TEST: {name: of.probs for name, of in everyone},
        **{shift: {name: of.shifted[shift] for name, of in everyone} for shift in shifts},
    }
    measured = {
        where: {
            name: _measure(name, where, of_name, labels[where]) for name, of_name in by_name.items()
        }
        for where, by_name in probs.items()
    }
    in_scores = {name: out_of_distribution_score(of.probs) for name, of in everyone}
    out_scores = {
        where: {name: out_of_distribution_score(of.ood[where]) for name, of in everyone}
        for where in foreign
    }
    separated = {
        where: {
            name: _separate(name, where, in_scores[name], scores)
            for name, scores in by_name.items()
        }
        for where, by_name in out_scores.items()
    }
    numbers = {
        "schema": SCHEMA,
        "task": "classification",
        "num_examples": np.shape(y)[0],
        **measured[TEST],
        "shifted": {shift: measured[shift] for shift in shifts},
        "ood": separated,
    }
    sections = [
        figures.reliability(probs, labels, measured),
        figures.confidence(probs[TEST], y, measured[TEST]),
        *([figures.scores(in_scores, out_scores, separated)] if foreign else []),
    ]
    return page.write(directory, title, numbers, sections, card or {})


def regression_report(
    predictions: Mapping[str, RegressionPredictions],
    y: ArrayLike,
    directory: str | Path,
    *,
    x: ArrayLike | None = None,
    title: str = "Calibration report",
    card: Mapping[str, str] | None = None,
) -> Report:
    """Measure regressors on the same examples and write a report.

    Parameters
    ----------
    predictions
        What each predictor says, by its name, such as "map" and "laplace".
    y
        Targets, `(N, C)`.
    directory
        Where to write; made if it is missing.
    x
        Inputs. Where they are numbers, `(N,)` or `(N, 1)`, and there is one output, the predictive
        band is drawn over them.
    title
        The heading of the page.
    card
        Facts about the posterior, by name, shown as a table.

    Returns
    -------
    Report
        The numbers, and the files written.

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, a standard deviation is not positive, a name
        cannot be part of a file name, or `directory` is a file.
    """
    directory = page.usable_directory(directory)
    _check_predictors(predictions)
    y = _finite_array("y", y)
    measured = {name: _measure_regression(name, of, y) for name, of in predictions.items()}
    numbers = {"schema": SCHEMA, "task": "regression", "num_examples": len(y), **measured}

    mean = {name: np.ravel(of.mean) for name, of in predictions.items()}
    std = {name: np.ravel(of.std) for name, of in predictions.items()}
    sections = [
        figures.predicted(mean, std, np.ravel(y), measured),
        figures.coverage(mean, std, np.ravel(y)),
    ]
    if x is not None and np.size(x) == len(y) == np.size(y):
        epistemic_std = {
            name: None if of.epistemic_std is None else np.ravel(of.epistemic_std)
            for name, of in predictions.items()
        }
        band = figures.bands(np.ravel(x), mean, std, epistemic_std, np.ravel(y), measured)
        sections = [band, *sections]
    return page.write(directory, title, numbers, sections, card or {})


# --- numbers -----------------------------------------------------------------------------------


def _measure(name: str, where: str, probs: ArrayLike, y: ArrayLike) -> dict[str, float | None]:
    with _about(name, where):
        return _without_infinities(classification_metrics(probs, y))


def _separate(
    name: str, where: str, in_scores: Float[Array, " N"], out_scores: Float[Array, " M"]
) -> dict[str, float]:
    with _about(name, where):
        return {"auroc": float(metrics.auroc(in_scores, out_scores))}


def _measure_regression(
    name: str, of: RegressionPredictions, y: np.ndarray
) -> dict[str, float | None]:
    with _about(name, TEST):
        mean, std = _finite_array("mean", of.mean), _finite_array("std", of.std)
        return _without_infinities(regression_metrics(mean, std, y))


def _without_infinities(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no infinity, which overflow makes of finite predictions."""
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


@contextmanager
def _about(name: str, where: str) -> Iterator[None]:
    """Add to an error the predictor and the set it is about."""
    try:
        yield
    except ValueError as error:
        error.add_note(f"This is about the predictor {name!r} on {where!r}.")
        raise


# --- checks ------------------------------------------------------------------------------------


def _check_predictors(names: Collection[str]) -> None:
    if not names:
        raise ValueError(
            "Found no predictions, expected those of one predictor at least; pass, for example, "
            "{'laplace': ...}."
        )
    _check_names(names, summary.RESERVED)


def _check_names(names: Collection[str], reserved: Collection[str] = ()) -> None:
    for name in names:
        if name in reserved or not re.fullmatch(r"[\w.+-]+", name):
            raise ValueError(
                f"Found the name {name!r}, expected letters, digits, '_', '.', '+' or '-', as it "
                f"becomes part of a file's name, and none of {list(reserved)}; choose another."
            )


def _check_sets(what: str, found: Collection[str], whose: str, expected: Collection[str]) -> None:
    if set(found) != set(expected):
        raise ValueError(
            f"Found {sorted(found)} as {what}, expected {sorted(expected)}, as {whose} has them; "
            "give every predictor the same sets."
        )


def _finite_array(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise ValueError(
            f"Found {array[tuple(bad[0])]} in {name} at {tuple(map(int, bad[0]))} and "
            f"{len(bad) - 1} more such values, expected finite numbers; drop those examples or "
            "find where the numbers overflow."
        )
    return array
