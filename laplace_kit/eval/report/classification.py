"""Calibration reports of classifiers: from probabilities and labels to a page."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
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
from laplace_kit.eval.report.look import Look, PictureFormat
from laplace_kit.eval.report.many_classes import many_classes
from laplace_kit.eval.report.material import Classified, MakeClassSections, hard_labels
from laplace_kit.eval.report.measures import measure_classification
from laplace_kit.eval.report.names import check_fit, named, names_of, with_codes
from laplace_kit.eval.report.page import Content, PosteriorCard, Report
from laplace_kit.eval.report.pictures import TEST
from laplace_kit.eval.report.predictions import ClassPredictions
from laplace_kit.eval.report.recalibrated import recalibrated_classes
from laplace_kit.eval.report.risk_sections import with_guarantees
from laplace_kit.eval.report.scores import scores
from laplace_kit.eval.report.section import Section
from laplace_kit.eval.report.stages import OnStage, ignore
from laplace_kit.eval.report.two_classes import two_classes
from laplace_kit.eval.statistics.classification import entropy, one_minus_largest
from laplace_kit.eval.statistics.confidence import risk_curve
from laplace_kit.eval.statistics.detection import detection_scores, detection_sums, roc_curve
from laplace_kit.eval.statistics.weighting import checked, ranked


def classification_report(
    predictions: Mapping[str, ClassPredictions],
    y: PyTree,
    directory: str | Path,
    *,
    shifted_labels: Mapping[str, ArrayLike] | None = None,
    weights: ArrayLike | None = None,
    shifted_weights: Mapping[str, ArrayLike] | None = None,
    x: PyTree = None,
    subject: str | None = None,
    class_names: Sequence[Any] | None = None,
    feature_names: Sequence[Any] | None = None,
    target_name: str | Sequence[Any] | None = None,
    title: str = "Calibration report",
    data_name: str = "",
    date: datetime.date | str | None = None,
    picture_format: PictureFormat = "png",
    costs: tuple[float, float] = (1.0, 1.0),
    card: PosteriorCard | Mapping[str, str] | None = None,
    groups: Any = None,
    seed: int = 0,
    on_stage: OnStage | None = None,
    shared: bool = False,
) -> Report:
    """Write a calibration report that compares classifiers on the same examples.

    Parameters
    ----------
    predictions
        The predictions of each predictor by name, such as "map" and "laplace". The first is the
        reference that the others are compared with. A predictor may lack some of the sets.
    y
        Test labels, `(N,)`, or one-hot or soft labels, `(N, C)`. A categorical Series has the
        numbers of its categories.
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
    class_names, feature_names, target_name
        The names of the classes, of the columns of `x`, and of the label. By default those that a
        DataFrame `x` and a categorical Series `y` have; otherwise classes are numbered.
    title, data_name, date
        The heading of the page, what the test set is, and a date to show (a `datetime.date`, or
        text); none by default, so that every run writes the same bytes.
    picture_format
        `"png"` or `"svg"`.
    costs
        The costs of a false positive and of a false negative, for the thresholds of two classes.
    card
        Facts about the posterior.
    groups
        The group of each test example, `(N,)`, or several groupings by name, for a section of every
        metric by group; see `laplace_kit.eval.by_group`.
    seed
        The seed of the bootstrap's resamples.
    on_stage
        Called with the name of each stage before it begins, to show progress.
    shared
        Whether all processes of a program make this report together: then process 0 writes it. By
        default each process writes its own.

    Returns
    -------
    Report
        The metrics, and the files written. Cost: 1,000 bootstrap resamples of all metrics in NumPy,
        about $10^4 (N + M)$ operations for each predictor, and $10^3 N C$ for the class-wise
        calibration error; nothing is compiled. The files are bytewise the same on every run.

    Raises
    ------
    ValueError
        If probabilities, labels, weights or names are not valid, a shifted set has no labels, an
        option is unknown, a name cannot be part of a file name, or `directory` is a file.
    """
    directory, shifts = checks.usable_directory(directory), dict(shifted_labels or {})
    look = Look(title, data_name, date, picture_format, costs)
    checks.check_predictors(predictions)
    checks.check_names([*shifts, *(where for of in predictions.values() for where in of.ood)])
    checks.check_sets(predictions, shifts)
    checks.check_weighted(shifted_weights or {}, shifts)
    subject = checks.check_subject(predictions, subject)
    names = named(class_names, feature_names, target_name).or_else(names_of(x, y))
    x, y = with_codes(x, y)
    check_fit(names, num_classes=np.shape(next(iter(predictions.values())).probs)[1], x=x)
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
    numbers |= {"names": names.known()} if names.known() else {}
    found = recalibrated_classes(predictions, y, weights=weights, seed=seed)
    numbers |= {"recalibrated": found} if found else {}
    stage("drawing")
    all_weights = {TEST: weights, **dict.fromkeys(shifts), **(shifted_weights or {})}
    of = Classified(predictions, y, shifts, numbers, subject, all_weights, names, costs)
    content = Content(
        look,
        tuple(section for make in SECTIONS for section in make(of)),
        examples.classification_galleries(of.probs, of.labels, subject, x, weights, names),
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
        names=names,
    )
    return page.write(directory, numbers, content, write_predictions, shared=shared)


# --- sections -------------------------------------------------------------------------------------


def _reliability(of: Classified) -> Iterator[Section]:
    everyone = of.predictions.items()
    shifted = {
        where: {name: given.shifted[where] for name, given in everyone if where in given.shifted}
        for where in of.shifted_labels
    }
    yield sections.reliability(
        {TEST: of.probs, **shifted},
        {TEST: of.y, **of.shifted_labels},
        {TEST: of.measured, **of.numbers["shifted"]},
        of.weights,
    )


def _confidence(of: Classified) -> Iterator[Section]:
    yield sections.confidence(of.probs, of.y, of.measured, of.weights[TEST])


def _risk_coverage(of: Classified) -> Iterator[Section]:
    right = _right(of)
    curves = {name: _risk_curve(p, right[name], of.weights[TEST]) for name, p in of.probs.items()}
    drawn = sections.risk_coverage(curves, of.measured)
    yield with_guarantees(drawn, of.numbers["risk_control"])


def _groups(of: Classified) -> Iterator[Section]:
    yield from group_sections(of.numbers, of.measured)


def _uncertainty(of: Classified) -> Iterator[Section]:
    known = {name: given for name, given in of.predictions.items() if given.epistemic is not None}
    if known:
        parts = {name: _parts(given) for name, given in known.items()}
        yield sections.uncertainty(parts, _right(of), of.counted)


def _detection(of: Classified) -> Iterator[Section]:
    """Yield score histograms and ROC curves for each out-of-distribution set."""
    inside = {name: scores(given.probs, given.epistemic) for name, given in of.predictions.items()}
    for where, values in of.numbers["ood"].items():
        outside = {}
        for name in values:
            given = of.predictions[name]
            found = scores(given.ood[where], given.ood_epistemic.get(where))
            outside[name] = {kind: each for kind, each in found.items() if kind in inside[name]}
        yield sections.score_histograms(where, inside, outside, values, of.counted)
        curves = {
            kind: {
                name: _roc_curve(inside[name][kind], found[kind], of.counted[None])
                for name, found in outside.items()
                if kind in found
            }
            for kind in dict.fromkeys(kind for found in outside.values() for kind in found)
        }
        yield sections.roc_curves(where, curves, values, [*of.predictions])


# In the order of the page. A further section is one more function of `Classified` here.
SECTIONS: tuple[MakeClassSections, ...] = (
    _reliability,
    two_classes,
    many_classes,
    _confidence,
    _risk_coverage,
    _groups,
    _uncertainty,
    _detection,
)


def _right(of: Classified) -> dict[str, Bool[np.ndarray, " N"]]:
    """Return which predictions are correct, by predictor."""
    return {name: np.asarray(probs).argmax(axis=1) == of.labels for name, probs in of.probs.items()}


def _parts(of: ClassPredictions) -> tuple[np.ndarray, np.ndarray]:
    """Return the aleatoric and epistemic parts of the entropy."""
    epistemic = np.asarray(of.epistemic, float)
    aleatoric = entropy(of.probs) - epistemic if of.aleatoric is None else of.aleatoric
    return np.asarray(aleatoric, float), epistemic


def _risk_curve(
    probs: ArrayLike, right: Bool[np.ndarray, " N"], weights: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage and error rate at decreasing confidence."""
    uncertainty = ranked(one_minus_largest(floating(probs)))
    curve = risk_curve(uncertainty, 1.0 - right, checked(weights, len(right))[None])
    return curve.coverage[0], curve.risk[0]


def _roc_curve(
    inside: np.ndarray, outside: np.ndarray, weights: Float[np.ndarray, "1 N"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates at decreasing thresholds."""
    ranking = detection_scores(inside, outside)
    return roc_curve(detection_sums(ranking, weights, np.ones((1, len(outside)))))
