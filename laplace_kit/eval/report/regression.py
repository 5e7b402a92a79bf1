"""Calibration reports of regressors: from means, standard deviations and targets to a page."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float, PyTree

from laplace_kit.eval.grouping import as_groupings
from laplace_kit.eval.report import checks, examples, files, page
from laplace_kit.eval.report import regression_sections as sections
from laplace_kit.eval.report.group_measures import measure_groups
from laplace_kit.eval.report.group_sections import group_sections
from laplace_kit.eval.report.measures import (
    integral_transforms,
    measure_regression,
    target_scores,
)
from laplace_kit.eval.report.page import Content, PosteriorCard, Report
from laplace_kit.eval.report.pictures import Section
from laplace_kit.eval.report.predictions import RegressionPredictions
from laplace_kit.eval.report.stages import OnStage, ignore
from laplace_kit.eval.statistics.numbers import coverage
from laplace_kit.eval.statistics.weighting import checked


def regression_report(
    predictions: Mapping[str, RegressionPredictions],
    y: ArrayLike,
    directory: str | Path,
    *,
    weights: ArrayLike | None = None,
    x: PyTree = None,
    subject: str | None = None,
    title: str = "Calibration report",
    card: PosteriorCard | Mapping[str, str] | None = None,
    groups: Any = None,
    seed: int = 0,
    on_stage: OnStage | None = None,
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
    weights
        The weights of the examples, `(N,)`: whole numbers repeat an example, all others are
        proportions. One each by default.
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
    groups
        As for `classification_report`.
    seed
        The seed of the bootstrap's resamples, and of the probability integral transforms of counts.
    on_stage
        Called with the name of each stage before it begins, to show progress.

    Returns
    -------
    Report
        The metrics, and the files written. Cost: 1,000 bootstrap resamples of all metrics in NumPy,
        about $10^4 N$ operations for each predictor; nothing is compiled. The files are bytewise
        the same on every run.

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, a standard deviation is not positive, weights are
        not valid, a name cannot be part of a file name, or `directory` is a file.
    """
    directory = checks.usable_directory(directory)
    checks.check_title(title)
    checks.check_predictors(predictions)
    checks.check_deviations(predictions)
    y = checks.finite("y", y)
    checks.check_distributions(predictions, y)
    subject = checks.check_subject(predictions, subject)
    stage = on_stage or ignore
    stage("resampling")
    numbers = measure_regression(predictions, y, weights=weights, seed=seed)
    if groups is not None:
        groupings = as_groupings(groups, len(y))
        numbers["groups"] = measure_groups(predictions, y, groupings, weights=weights, seed=seed)
    stage("drawing")
    weights = checked(weights, len(y))
    mean = {name: np.asarray(of.mean) for name, of in predictions.items()}
    std = {name: np.asarray(of.std) for name, of in predictions.items()}
    content = Content(
        title,
        _sections(predictions, y, x, numbers, weights, seed),
        examples.regression_galleries(mean, std, y, subject, x, weights),
        page.as_card(card),
    )
    stage("writing")
    given = None if (weights == 1).all() else weights
    write_predictions = partial(
        files.write_predictions, predictions=predictions, y=y, weights=given
    )
    return page.write(directory, numbers, content, write_predictions)


def _sections(
    predictions: Mapping[str, RegressionPredictions],
    y: np.ndarray,
    x: PyTree,
    numbers: Mapping,
    weights: Float[np.ndarray, " N"],
    seed: int,
) -> tuple[Section, ...]:
    everyone, measured = predictions.items(), {name: numbers[name] for name in predictions}
    mean = {name: np.ravel(of.mean) for name, of in everyone}
    std = {name: np.ravel(of.std) for name, of in everyone}
    epistemic_std = {
        name: np.ravel(of.epistemic_std) for name, of in everyone if of.epistemic_std is not None
    }
    targets = np.ravel(y)
    scores = {name: target_scores(of, y) for name, of in everyone}
    intervals = {name: (of.low.ravel(), of.high.ravel()) for name, of in scores.items()}
    transforms = {name: integral_transforms(of, seed) for name, of in scores.items()}
    levels = np.linspace(0.0, 1.0, 21)[1:-1]
    covered = {name: coverage(of, levels, weights[None])[0] for name, of in transforms.items()}
    each = np.repeat(weights, targets.size // len(weights))
    curves = {name: _risk_coverage(mean[name], std[name], targets, each) for name in mean}
    over_x = (
        getattr(x, "size", 0) == len(y) == y.size
        and np.issubdtype(x.dtype, np.number)
        and np.unique(x).size > 1
    )
    return (
        *(
            [sections.bands(np.ravel(x), mean, std, intervals, epistemic_std, targets, measured)]
            if over_x
            else []
        ),
        sections.predicted(mean, std, intervals, targets, measured),
        sections.coverage(levels, covered, measured),
        sections.integral_transforms(
            {name: np.ravel(of) for name, of in transforms.items()}, each, measured
        ),
        sections.risk_coverage(curves),
        *group_sections(numbers, measured),
        *([sections.uncertainty(mean, std, epistemic_std, targets, each)] if epistemic_std else []),
    )


def _risk_coverage(
    mean: np.ndarray, std: np.ndarray, y: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage, in the order of the standard deviations, and the mean squared error."""
    order = np.argsort(std, kind="stable")
    kept = np.cumsum(weights[order])
    first = np.searchsorted(kept, 0, side="right")  # leading examples of weight zero
    with np.errstate(over="ignore", invalid="ignore"):
        lost = np.cumsum((weights * np.square(y - mean))[order])
        return kept[first:] / kept[-1], lost[first:] / kept[first:]
