"""Reports of classifiers: what is written, what is said, and what is refused."""

import numpy as np
import pytest

from laplace_kit.eval import report
from laplace_kit.eval.report import ClassPredictions

HALVES = np.full((4, 2), 0.5, np.float32)
LABELS = np.array([0, 1, 0, 1])


def test_files(classified):
    *_, written = classified
    examples = {path.name for path in written.files if path.name.startswith("example_")}
    assert 12 <= len(examples) <= 24
    names = ("map", "laplace", "ensemble")
    assert {path.name for path in written.files} - examples == {
        *("index.html", "report.md", "metrics.json", "predictions.npz", "risk_coverage.png"),
        *(f"class_{number}.png" for number in range(3)),
        *("uncertainty_laplace.png", "uncertainty_ensemble.png"),
        *(f"roc_{kind}@noise.png" for kind in ("max_probability", "entropy", "epistemic")),
        *(
            f"{kind}_{name}{where}.png"
            for name in names
            for kind, where in (
                ("confusion", ""),
                ("reliability", ""),
                ("reliability", "@rotated"),
                ("confidence", ""),
                ("ood", "@noise"),
            )
        ),
    }


def test_verdict_tells_the_calibrated_predictor_from_the_over_confident(classified):
    *_, written = classified
    use, against, _, of_map, of_laplace, *_ = written.verdict
    assert use.startswith("Use Laplace: its NLL, a proper score, is significantly lower (")
    assert against.startswith("Against MAP, Laplace has a significantly lower NLL")
    assert "and a significantly lower ECE" in against
    assert of_map.startswith("MAP is over-confident by")
    assert of_laplace.startswith("Laplace is neither over- nor under-confident")
    gap = written.metrics["map"]["confidence"] - written.metrics["map"]["accuracy"]
    assert f"over-confident by {100 * gap:.1f} points" in of_map


@pytest.mark.slow
def test_what_a_predictor_lacks_is_left_out_for_it(tmp_path, classified):
    predictions, y, whole = classified
    some = {"map": predictions["map"], "given": ClassPredictions(predictions["laplace"].probs)}
    written = report.classification_report(some, y, tmp_path, shifted_labels={"rotated": y})
    assert set(written.metrics["shifted"]["rotated"]) == {"map"}
    assert set(written.metrics["ood"]["noise"]) == {"map"}
    found = written.metrics["given"]
    assert found == pytest.approx(whole.metrics["laplace"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({}, "Found no predictions, expected"),
        ({"ood": ClassPredictions(HALVES)}, "Found the name 'ood', expected .*choose another"),
        ({"../map": ClassPredictions(HALVES)}, "Found the name '../map', expected letters"),
        (
            {"map": ClassPredictions(HALVES, ood={"a b": HALVES})},
            "Found the name 'a b', expected letters",
        ),
        (
            {"map": ClassPredictions(HALVES, shifted={"rotated": HALVES})},
            r"Found \['rotated'\] as shifted sets, expected \[\].*`shifted_labels`",
        ),
        (
            {"map": ClassPredictions(HALVES, epistemic=np.zeros(3))},
            r"an epistemic part of shape \(3,\) for 'map' on 'test set', expected \(4,\)",
        ),
        (
            {"map": ClassPredictions(HALVES, ood_epistemic={"noise": np.zeros(4)})},
            r"\['noise'\] among the epistemic parts of 'map', expected sets of its `ood`",
        ),
        ({"map": ClassPredictions(HALVES[:3])}, r"Found y of shape \(4,\).*expected"),
    ],
)
def test_predictions_that_do_not_fit_together(tmp_path, predictions, message):
    with pytest.raises(ValueError, match=message):
        report.classification_report(predictions, LABELS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_subject(tmp_path):
    with pytest.raises(ValueError, match=r"subject 'laplce', expected one of the .*\['map'\]"):
        report.classification_report(
            {"map": ClassPredictions(HALVES)}, LABELS, tmp_path, subject="laplce"
        )


def test_errors_say_which_predictor_and_set_they_are_about(tmp_path):
    predictions = {
        "map": ClassPredictions(HALVES, shifted={"rotated": HALVES}),
        "laplace": ClassPredictions(HALVES, shifted={"rotated": 2 * HALVES}),
    }
    with pytest.raises(ValueError, match="that sum to one") as caught:
        report.classification_report(
            predictions, LABELS, tmp_path, shifted_labels={"rotated": LABELS}
        )
    assert caught.value.__notes__ == ["This is about the predictor 'laplace' on 'rotated'."]
