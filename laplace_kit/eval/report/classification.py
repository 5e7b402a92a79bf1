"""Calibration reports of classifiers: from probabilities and labels to a page."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Bool, Float, PyTree

from laplace_kit.eval.grouping import as_groupings
from laplace_kit.eval.report import checks, examples, files, page, risk_sections
from laplace_kit.eval.report import classification_sections as sections
from laplace_kit.eval.report.group_measures import measure_groups
from laplace_kit.eval.report.group_sections import group_sections
from laplace_kit.eval.report.inputs import floating
from laplace_kit.eval.report.measures import hard_labels, measure_classification
from laplace_kit.eval.report.page import Content, PosteriorCard, Report
from laplace_kit.eval.report.pictures import TEST, Section
from laplace_kit.eval.report.predictions import ClassPredictions
from laplace_kit.eval.report.risk_sections import with_guarantees
from laplace_kit.eval.report.scores import scores
from laplace_kit.eval.report.stages import OnStage, ignore
from laplace_kit.eval.statistics.classification import entropy, one_minus_largest
from laplace_kit.eval.statistics.confidence import risk_curve
from laplace_kit.eval.statistics.detection import detection_scores, detection_sums, roc_curve
from laplace_kit.eval.statistics.weighting import checked, ranked


def classification_report(
    predictions: Mapping[str, ClassPredictions],
    y: ArrayLike,
    directory: str | Path,
    *,
    shifted_labels: Mapping[str, ArrayLike] | None = None,
    weights: ArrayLike | None = None,
    shifted_weights: Mapping[str, ArrayLike] | None = None,
    x: PyTree = None,
    subject: str | None = None,
    title: str = "Calibration report",
    card: PosteriorCard | Mapping[str, str] | None = None,
    groups: Any = None,
    seed: int = 0,
    on_stage: OnStage | None = None,
) -> Report:
    """Write a calibration report that compares classifiers on the same examples.

    Parameters
    ----------
    predictions
        The predictions of each predictor by name, such as "map" and "laplace". The first is the
        reference that the others are compared with. A predictor may lack some of the sets.
    y
        Test labels, `(N,)`, or one-hot or soft labels, `(N, C)`.
    directory
        Output directory; created if it does not exist.
    shifted_labels
        The labels of each shifted set, by name.
    weights, shifted_weights
        The weights of the test examples, `(N,)`, and those of shifted sets, by name: whole numbers
        repeat an example, all others are proportions. One each by default.
    x
        Test inputs with a leading axis N, shown for selected examples: as pictures where they are
        images, `(N, H, W)` or `(N, H, W, 1 | 3)`, otherwise by their leading values.
    subject
        The predictor that selects these examples; by default "laplace", or the first.
    title
        The heading of the page.
    card
        Facts about the posterior.
    groups
        The group of each test example, `(N,)`, or several groupings by name, for a section of every
        metric by group; see `laplace_kit.eval.by_group`.
    seed
        The seed of the bootstrap's resamples.
    on_stage
        Called with the name of each stage before it begins, to show progress.

    Returns
    -------
    Report
        The metrics, and the files written. Cost: 1,000 bootstrap resamples of all metrics in NumPy,
        about $10^4 (N + M)$ operations for each predictor, and $10^3 N C$ for the class-wise
        calibration error; nothing is compiled. The files are bytewise the same on every run.

    Raises
    ------
    ValueError
        If probabilities, labels or weights are not valid, a shifted set has no labels, a name
        cannot be part of a file name, or `directory` is a file.
    """
    directory, shifts = checks.usable_directory(directory), dict(shifted_labels or {})
    checks.check_title(title)
    checks.check_predictors(predictions)
    checks.check_names([*shifts, *(where for of in predictions.values() for where in of.ood)])
    checks.check_sets(predictions, shifts)
    checks.check_weighted(shifted_weights or {}, shifts)
    subject = checks.check_subject(predictions, subject)
    stage = on_stage or ignore
    stage("resampling")
    numbers = measure_classification(
        predictions, y, shifts, weights=weights, shifted_weights=shifted_weights, seed=seed
    )
    numbers["risk_control"] = risk_sections.controlled_errors(
        {name: of.probs for name, of in predictions.items()}, y, weights
    )
    if groups is not None:
        groupings = as_groupings(groups, len(hard_labels(y)))
        numbers["groups"] = measure_groups(predictions, y, groupings, weights=weights, seed=seed)
    stage("drawing")
    probs = {name: of.probs for name, of in predictions.items()}
    all_weights = {TEST: weights, **dict.fromkeys(shifts), **(shifted_weights or {})}
    content = Content(
        title,
        _sections(predictions, y, shifts, numbers, all_weights),
        examples.classification_galleries(probs, hard_labels(y), subject, x, weights),
        page.as_card(card),
    )
    stage("writing")
    write_predictions = partial(
        files.write_predictions,
        predictions=predictions,
        y=y,
        shifted_labels=shifts or None,
        weights=weights,
        shifted_weights=shifted_weights,
    )
    return page.write(directory, numbers, content, write_predictions)


def _sections(
    predictions: Mapping[str, ClassPredictions],
    y: ArrayLike,
    shifts: Mapping[str, ArrayLike],
    numbers: Mapping,
    weights: Mapping[str, ArrayLike | None],
) -> tuple[Section, ...]:
    everyone = predictions.items()
    on_test = {name: numbers[name] for name in predictions}
    probs = {name: of.probs for name, of in everyone}
    shifted_probs = {
        where: {name: of.shifted[where] for name, of in everyone if where in of.shifted}
        for where in shifts
    }
    right = {name: np.asarray(of).argmax(axis=1) == hard_labels(y) for name, of in probs.items()}
    parts = {name: _parts(of) for name, of in everyone if of.epistemic is not None}
    curves = {name: _risk_curve(of, right[name], weights[TEST]) for name, of in probs.items()}
    counted = checked(weights[TEST], len(hard_labels(y)))
    return (
        sections.reliability(
            {TEST: probs, **shifted_probs},
            {TEST: y, **shifts},
            {TEST: on_test, **numbers["shifted"]},
            weights,
        ),
        sections.confidence(probs, y, on_test, weights[TEST]),
        with_guarantees(sections.risk_coverage(curves, on_test), numbers["risk_control"]),
        *group_sections(numbers, on_test),
        *([sections.uncertainty(parts, right, counted)] if parts else []),
        *_ood_sections(predictions, numbers["ood"], weights[TEST]),
    )


def _parts(of: ClassPredictions) -> tuple[np.ndarray, np.ndarray]:
    """Return the aleatoric and epistemic parts of the entropy."""
    epistemic = np.asarray(of.epistemic, float)
    aleatoric = entropy(of.probs) - epistemic if of.aleatoric is None else of.aleatoric
    return np.asarray(aleatoric, float), epistemic


def _risk_curve(
    probs: ArrayLike, right: Bool[np.ndarray, " N"], weights: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage and error rate at decreasing confidence."""
    doubt = ranked(one_minus_largest(floating(probs)))
    curve = risk_curve(doubt, 1.0 - right, checked(weights, len(right))[None])
    return curve.coverage[0], curve.risk[0]


def _roc_curve(
    inside: np.ndarray, outside: np.ndarray, weights: Float[np.ndarray, "1 N"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates at decreasing thresholds."""
    ranking = detection_scores(inside, outside)
    return roc_curve(detection_sums(ranking, weights, np.ones((1, len(outside)))))


def _ood_sections(
    predictions: Mapping[str, ClassPredictions], measured: Mapping, weights: ArrayLike | None
) -> Iterator[Section]:
    """Yield score histograms and ROC curves for each out-of-distribution set."""
    weights = checked(weights, len(next(iter(predictions.values())).probs))[None]
    inside = {name: scores(of.probs, of.epistemic) for name, of in predictions.items()}
    for where, values in measured.items():
        outside = {}
        for name in values:
            of = predictions[name]
            found = scores(of.ood[where], of.ood_epistemic.get(where))
            outside[name] = {kind: each for kind, each in found.items() if kind in inside[name]}
        yield sections.score_histograms(where, inside, outside, values, weights[0])
        curves = {
            kind: {
                name: _roc_curve(inside[name][kind], of[kind], weights)
                for name, of in outside.items()
                if kind in of
            }
            for kind in dict.fromkeys(kind for of in outside.values() for kind in of)
        }
        yield sections.roc_curves(where, curves, values, [*predictions])
