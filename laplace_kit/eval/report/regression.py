"""Calibration reports of regressors: from means, standard deviations and targets to a page."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, PyTree

from laplace_kit.eval.grouping import as_groupings
from laplace_kit.eval.report import checks, examples, files, page
from laplace_kit.eval.report import regression_sections as sections
from laplace_kit.eval.report.group_measures import measure_groups
from laplace_kit.eval.report.group_sections import group_sections
from laplace_kit.eval.report.look import Look, PictureFormat
from laplace_kit.eval.report.material import MakeNumberSections, Regressed
from laplace_kit.eval.report.measures import (
    integral_transforms,
    measure_regression,
    target_scores,
)
from laplace_kit.eval.report.names import check_fit, named, names_of, with_codes
from laplace_kit.eval.report.page import Content, PosteriorCard, Report
from laplace_kit.eval.report.pictures import drawn_name
from laplace_kit.eval.report.predictions import RegressionPredictions
from laplace_kit.eval.report.recalibrated import recalibrated_numbers
from laplace_kit.eval.report.section import Section
from laplace_kit.eval.report.stages import OnStage, ignore
from laplace_kit.eval.statistics.numbers import coverage
from laplace_kit.eval.statistics.weighting import checked


def regression_report(
    predictions: Mapping[str, RegressionPredictions],
    y: PyTree,
    directory: str | Path,
    *,
    weights: ArrayLike | None = None,
    x: PyTree = None,
    subject: str | None = None,
    feature_names: Sequence[Any] | None = None,
    target_name: str | Sequence[Any] | None = None,
    target_unit: str | None = None,
    title: str = "Calibration report",
    data_name: str = "",
    date: datetime.date | str | None = None,
    picture_format: PictureFormat = "png",
    card: PosteriorCard | Mapping[str, str] | None = None,
    groups: Any = None,
    seed: int = 0,
    on_stage: OnStage | None = None,
    shared: bool = False,
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
    feature_names, target_name, target_unit
        The names of the columns of `x`, of the target or of each output, and its unit, such as
        "mm". By default those that a DataFrame `x` and a Series or DataFrame `y` have.
    title, data_name, date
        The heading of the page, what the test set is, and a date to show (a `datetime.date`, or
        text); none by default, so that every run writes the same bytes.
    picture_format
        `"png"` or `"svg"`.
    card
        Facts about the posterior.
    groups
        As for `classification_report`.
    seed
        The seed of the bootstrap's resamples, and of the probability integral transforms of counts.
    on_stage
        Called with the name of each stage before it begins, to show progress.
    shared
        Whether all processes of a program make this report together: then process 0 writes it. By
        default each process writes its own.

    Returns
    -------
    Report
        The metrics, and the files written. Cost: 1,000 bootstrap resamples of all metrics in NumPy,
        about $10^4 N$ operations for each predictor; nothing is compiled. The files are bytewise
        the same on every run.

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, a standard deviation is not positive, weights or
        names are not valid, a name cannot be part of a file name, or `directory` is a file.
    """
    directory = checks.usable_directory(directory)
    look = Look(title, data_name, date, picture_format)
    checks.check_predictors(predictions)
    checks.check_deviations(predictions)
    given = named(None, feature_names, target_name, target_unit)
    names = given.or_else(names_of(x, y))
    x, y = with_codes(x, y)
    y = checks.finite("y", y)
    checks.check_distributions(predictions, y)
    subject = checks.check_subject(predictions, subject)
    check_fit(names, num_outputs=int(np.prod(y.shape[1:])), x=x)
    stage = on_stage or ignore
    stage("resampling")
    numbers = measure_regression(predictions, y, weights=weights, seed=seed)
    if groups is not None:
        groupings = as_groupings(groups, len(y))
        numbers["groups"] = measure_groups(predictions, y, groupings, weights=weights, seed=seed)
    numbers |= {"names": names.known()} if names.known() else {}
    found = recalibrated_numbers(predictions, y, weights=weights, seed=seed)
    numbers |= {"recalibrated": found} if found else {}
    stage("drawing")
    weights = checked(weights, len(y))
    mean = {name: np.asarray(of.mean) for name, of in predictions.items()}
    std = {name: np.asarray(of.std) for name, of in predictions.items()}
    of = Regressed(predictions, y, x, numbers, subject, weights, names, seed)
    content = Content(
        look,
        tuple(section for make in SECTIONS for section in make(of)),
        examples.regression_galleries(mean, std, y, subject, x, weights, names),
        page.as_card(card),
    )
    stage("writing")
    given = None if (weights == 1).all() else weights
    write_predictions = partial(
        files.write_predictions, predictions=predictions, y=y, weights=given, names=names
    )
    return page.write(directory, numbers, content, write_predictions, shared=shared)


def _sections(of: Regressed) -> Iterator[Section]:
    everyone, measured, targets = of.predictions.items(), of.measured, np.ravel(of.y)
    mean = {name: np.ravel(given.mean) for name, given in everyone}
    std = {name: np.ravel(given.std) for name, given in everyone}
    epistemic_std = {
        name: np.ravel(given.epistemic_std)
        for name, given in everyone
        if given.epistemic_std is not None
    }
    scores = {name: target_scores(given, of.y) for name, given in everyone}
    intervals = {name: (found.low.ravel(), found.high.ravel()) for name, found in scores.items()}
    target = of.names.of_target() if len(of.names.targets) < 2 else ""
    target = drawn_name(target, "")
    if _is_one_varying_number(of.x, of.y):
        feature = drawn_name(of.names.features[0], "input") if of.names.features else "input"
        axes = feature, target or "output"
        x = np.ravel(of.x)
        yield sections.bands(x, mean, std, intervals, epistemic_std, targets, measured, axes)
    yield sections.predicted(mean, std, intervals, targets, measured, target)
    transforms = {name: integral_transforms(found, of.seed) for name, found in scores.items()}
    levels = np.linspace(0.0, 1.0, 21)[1:-1]
    covered = {
        name: coverage(found, levels, of.weights[None])[0] for name, found in transforms.items()
    }
    yield sections.coverage(levels, covered, measured)
    each = np.repeat(of.weights, targets.size // len(of.weights))
    flat = {name: np.ravel(found) for name, found in transforms.items()}
    yield sections.integral_transforms(flat, each, measured)
    curves = {name: _risk_coverage(mean[name], std[name], targets, each) for name in mean}
    yield sections.risk_coverage(curves)
    if epistemic_std:
        yield sections.uncertainty(mean, std, epistemic_std, targets, each)


def _groups(of: Regressed) -> Iterator[Section]:
    yield from group_sections(of.numbers, of.measured)


# In the order of the page. A further section is one more function of `Regressed` here.
SECTIONS: tuple[MakeNumberSections, ...] = (_sections, _groups)


def _is_one_varying_number(x: PyTree, y: np.ndarray) -> bool:
    """Return whether inputs are scalars that vary, and there is one output."""
    return (
        getattr(x, "size", 0) == len(y) == y.size
        and np.issubdtype(x.dtype, np.number)
        and np.unique(x).size > 1
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
