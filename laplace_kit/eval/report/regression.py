"""Calibration reports of regressors: from means, standard deviations and targets to a page."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike, PyTree

from laplace_kit.eval import metrics
from laplace_kit.eval.report import checks, examples, files, page
from laplace_kit.eval.report import regression_sections as sections
from laplace_kit.eval.report.measures import measure_regression
from laplace_kit.eval.report.page import Content, PosteriorCard, Report
from laplace_kit.eval.report.pictures import Section
from laplace_kit.eval.report.predictions import RegressionPredictions


def regression_report(
    predictions: Mapping[str, RegressionPredictions],
    y: ArrayLike,
    directory: str | Path,
    *,
    x: PyTree = None,
    subject: str | None = None,
    title: str = "Calibration report",
    card: PosteriorCard | Mapping[str, str] | None = None,
) -> Report:
    """Write a calibration report that compares regressors on the same examples.

    Parameters
    ----------
    predictions
        The predictions of each predictor by name, such as "map" and "laplace". The first is the
        reference that the others are compared with.
    y
        Targets, `(N, C)`.
    directory
        Output directory; created if it does not exist.
    x
        Inputs with a leading axis N. If they are scalars that vary, `(N,)` or `(N, 1)`, and there
        is one output, the predictive band is drawn over them. They are shown for selected examples,
        as in `classification_report`.
    subject
        The predictor that selects these examples; by default "laplace", or the first.
    title
        The heading of the page.
    card
        Facts about the posterior.

    Returns
    -------
    Report
        The metrics, and the files written. Cost: 1,000 bootstrap resamples of all metrics, in one
        compiled program. The files are bytewise the same on every run.

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, a standard deviation is not positive, a name
        cannot be part of a file name, or `directory` is a file.
    """
    directory = checks.usable_directory(directory)
    checks.check_title(title)
    checks.check_predictors(predictions)
    checks.check_deviations(predictions)
    y = checks.finite("y", y)
    subject = checks.check_subject(predictions, subject)
    numbers = measure_regression(predictions, y)
    mean = {name: np.asarray(of.mean) for name, of in predictions.items()}
    std = {name: np.asarray(of.std) for name, of in predictions.items()}
    content = Content(
        title,
        _sections(predictions, y, x, numbers),
        examples.regression_galleries(mean, std, y, subject, x),
        page.as_card(card),
    )
    return page.write(
        directory, numbers, content, partial(files.write_predictions, predictions=predictions, y=y)
    )


def _sections(
    predictions: Mapping[str, RegressionPredictions], y: np.ndarray, x: PyTree, numbers: Mapping
) -> tuple[Section, ...]:
    everyone, measured = predictions.items(), {name: numbers[name] for name in predictions}
    mean = {name: np.ravel(of.mean) for name, of in everyone}
    std = {name: np.ravel(of.std) for name, of in everyone}
    epistemic_std = {
        name: np.ravel(of.epistemic_std) for name, of in everyone if of.epistemic_std is not None
    }
    targets = np.ravel(y)
    pit = {name: np.asarray(metrics.pit_gaussian(mean[name], std[name], targets)) for name in mean}
    curves = {name: _risk_coverage(mean[name], std[name], targets) for name in mean}
    over_x = (
        getattr(x, "size", 0) == len(y) == y.size
        and np.issubdtype(x.dtype, np.number)
        and np.unique(x).size > 1
    )
    return (
        *(
            [sections.bands(np.ravel(x), mean, std, epistemic_std, targets, measured)]
            if over_x
            else []
        ),
        sections.predicted(mean, std, targets, measured),
        sections.coverage(mean, std, targets, measured),
        sections.integral_transforms(pit, measured),
        sections.risk_coverage(curves),
        *([sections.uncertainty(mean, std, epistemic_std, targets)] if epistemic_std else []),
    )


def _risk_coverage(
    mean: np.ndarray, std: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage, in the order of the standard deviations, and the mean squared error."""
    kept = np.arange(1, len(y) + 1)
    with np.errstate(over="ignore"):
        squared = np.square(y - mean)[np.argsort(std, kind="stable")]
        return kept / len(y), np.cumsum(squared) / kept
