"""Calibration reports of classifiers: from probabilities and labels to a page."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike, PyTree

from laplace_kit.eval import metrics
from laplace_kit.eval.report import checks, examples, files, page
from laplace_kit.eval.report import classification_sections as sections
from laplace_kit.eval.report.measures import hard_labels, measure_classification
from laplace_kit.eval.report.page import Content, PosteriorCard, Report
from laplace_kit.eval.report.pictures import TEST, Section
from laplace_kit.eval.report.predictions import ClassPredictions
from laplace_kit.eval.report.scores import scores


def classification_report(
    predictions: Mapping[str, ClassPredictions],
    y: ArrayLike,
    directory: str | Path,
    *,
    shifted_labels: Mapping[str, ArrayLike] | None = None,
    x: PyTree = None,
    subject: str | None = None,
    title: str = "Calibration report",
    card: PosteriorCard | Mapping[str, str] | None = None,
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
    x
        Test inputs with a leading axis N, shown for selected examples: as pictures where they are
        images, `(N, H, W)` or `(N, H, W, 1 | 3)`, otherwise by their leading values.
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
        compiled program for each size of set. The files are bytewise the same on every run.

    Raises
    ------
    ValueError
        If probabilities or labels are not valid, a shifted set has no labels, a name cannot be part
        of a file name, or `directory` is a file.
    """
    directory, shifts = checks.usable_directory(directory), dict(shifted_labels or {})
    checks.check_title(title)
    checks.check_predictors(predictions)
    checks.check_names([*shifts, *(where for of in predictions.values() for where in of.ood)])
    checks.check_sets(predictions, shifts)
    subject = checks.check_subject(predictions, subject)
    numbers = measure_classification(predictions, y, shifts)
    probs = {name: of.probs for name, of in predictions.items()}
    content = Content(
        title,
        _sections(predictions, y, shifts, numbers),
        examples.classification_galleries(probs, hard_labels(y), subject, x),
        page.as_card(card),
    )
    write_predictions = partial(
        files.write_predictions, predictions=predictions, y=y, shifted_labels=shifts or None
    )
    return page.write(directory, numbers, content, write_predictions)


def _sections(
    predictions: Mapping[str, ClassPredictions],
    y: ArrayLike,
    shifts: Mapping[str, ArrayLike],
    numbers: Mapping,
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
    curves = {name: metrics.risk_coverage_curve(of, y)[:2] for name, of in probs.items()}
    return (
        sections.reliability(
            {TEST: probs, **shifted_probs},
            {TEST: y, **shifts},
            {TEST: on_test, **numbers["shifted"]},
        ),
        sections.confidence(probs, y, on_test),
        sections.risk_coverage(curves, on_test),
        *([sections.uncertainty(parts, right)] if parts else []),
        *_ood_sections(predictions, numbers["ood"]),
    )


def _parts(of: ClassPredictions) -> tuple[np.ndarray, np.ndarray]:
    """Return the aleatoric and epistemic parts of the entropy."""
    epistemic = np.asarray(of.epistemic, float)
    aleatoric = checks.entropy(of.probs) - epistemic if of.aleatoric is None else of.aleatoric
    return np.asarray(aleatoric, float), epistemic


def _ood_sections(
    predictions: Mapping[str, ClassPredictions], measured: Mapping
) -> Iterator[Section]:
    """Yield score histograms and ROC curves for each out-of-distribution set."""
    inside = {name: scores(of.probs, of.epistemic) for name, of in predictions.items()}
    for where, values in measured.items():
        outside = {}
        for name in values:
            of = predictions[name]
            found = scores(of.ood[where], of.ood_epistemic.get(where))
            outside[name] = {kind: each for kind, each in found.items() if kind in inside[name]}
        yield sections.score_histograms(where, inside, outside, values)
        curves = {
            kind: {
                name: metrics.roc_curve(inside[name][kind], of[kind])[:2]
                for name, of in outside.items()
                if kind in of
            }
            for kind in dict.fromkeys(kind for of in outside.values() for kind in of)
        }
        yield sections.roc_curves(where, curves, values, [*predictions])
