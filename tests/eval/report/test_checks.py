"""What a report refuses before it measures; the rest is tested where reports are written."""

import os
import re

import numpy as np
import pytest

from laplace_kit.eval.report import checks
from laplace_kit.eval.report.predictions import ClassPredictions, RegressionPredictions


def test_the_subject_is_laplace_or_the_reference():
    assert checks.check_subject(["map", "laplace", "other"], None) == "laplace"
    assert checks.check_subject(["map", "other"], None) == "map"
    assert checks.check_subject(["map", "other"], "other") == "other"


def test_a_new_directory_is_not_made_yet(tmp_path):
    assert checks.usable_directory(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()


def test_a_directory_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    message = rf"Found the directory {re.escape(str(tmp_path))} .*permission"
    for directory in (tmp_path, tmp_path / "a" / "b"):
        with pytest.raises(ValueError, match=message):
            checks.usable_directory(directory)
    (tmp_path / "a").mkdir()
    assert checks.usable_directory(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_the_first_number_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match=r"Found nan in y at \(1, 0\) and 1 more such values"):
        checks.finite("y", np.array([[0.0], [np.nan], [np.inf]]))


@pytest.mark.parametrize("compare", [[np.ones(3)], np.ones(3), "ensemble.npz"])
def test_predictions_to_compare_with_have_names(compare):
    with pytest.raises(TypeError, match=r"Found compare= of type .*, expected a mapping"):
        checks.check_mapping("compare", compare)
    checks.check_mapping("compare", None)
    checks.check_mapping("compare", {"ensemble": compare})


def test_information_in_bits_is_refused():
    bits = np.array([0.1, 0.9])
    predictions = {"laplace": ClassPredictions(np.full((2, 2), 0.5), epistemic=bits)}
    with pytest.raises(ValueError, match=r"at most 0\.6931 nats.*multiply bits by log\(2\)"):
        checks.check_sets(predictions, {})
    in_nats = {"laplace": ClassPredictions(np.full((2, 2), 0.5), epistemic=bits * np.log(2))}
    checks.check_sets(in_nats, {})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"epistemic": [0.2, 0.5]},
            r"part of 0\.5 for 'map' on 'test set', example 1, .*entropy .*0\.3251, and 0 more",
        ),
        ({"epistemic": [0.2, np.nan]}, r"epistemic part of nan .*finite numbers"),
        ({"epistemic": [-0.2, 0.1]}, r"epistemic part of -0\.2 .*no negative numbers"),
        ({"aleatoric": [0.2, 0.1]}, "aleatoric part .*'map' on 'test set' without an epistemic"),
        ({"epistemic": [0.2, 0.1], "aleatoric": [0.6, 0.1]}, r"0\.8 .*'map' .*at most 0\.6931"),
        ({"epistemic": [0.2, 0.1], "aleatoric": [0.6]}, r"aleatoric .*shape \(1,\) .*'map'.*\(2,"),
    ],
)
def test_parts_of_the_entropy_are_those_of_one_whole(parts, message):
    probs = np.array([[0.5, 0.5], [0.9, 0.1]])
    given = {part: np.array(values) for part, values in parts.items()}
    with pytest.raises(ValueError, match=message):
        checks.check_sets({"map": ClassPredictions(probs, **given)}, {})


def test_parts_of_one_whole_may_exceed_the_entropy_of_a_link():
    probs = np.array([[0.5, 0.5], [0.9, 0.1]])  # of which the second entropy is 0.325
    parts = {"epistemic": np.array([0.2, 0.3]), "aleatoric": np.array([0.4, 0.3])}
    checks.check_sets({"map": ClassPredictions(probs, **parts)}, {})


def test_as_many_log_probabilities_as_probabilities():
    predictions = ClassPredictions(np.full((2, 2), 0.5))
    # As where annotations are not checked.
    object.__setattr__(predictions, "log_probs", np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"log_probs of shape \(1, 2\) for probs of .*\(2, 2\)"):
        checks.check_sets({"map": predictions}, {})


def test_log_probabilities_are_those_of_the_probabilities():
    probs = np.array([[1.0, 0.0], [0.25, 0.75]], np.float32)
    logs = np.array([[0.0, -300.0], [np.log(0.25), np.log(0.75)]], np.float32)
    checks.check_sets({"map": ClassPredictions(probs, log_probs=logs)}, {})
    infinite = np.where(probs > 0, logs, -np.inf)
    others = r"-1\.386 at \(0, 0\) where probs are 1,"
    for wrong, message in ((logs[::-1], others), (infinite, "of -inf at")):
        with pytest.raises(ValueError, match=message):
            checks.check_sets({"map": ClassPredictions(probs, log_probs=wrong)}, {})
    predictions = {"map": ClassPredictions(probs, shifted_log_probs={"dark": logs})}
    with pytest.raises(ValueError, match=r"\['dark'\] among the log probabilities of 'map'"):
        checks.check_sets(predictions, {})


@pytest.mark.parametrize("name", ["deep ensemble", "a/b", "", 1, "taken"])
def test_names_that_cannot_be_part_of_a_file_name(name):
    with pytest.raises(ValueError, match=r"Found the name .*expected letters.*choose another"):
        checks.check_names([name], ("taken",))


def test_errors_keep_their_words_and_gain_a_note():
    with pytest.raises(ValueError, match="as it was") as caught, checks.about("map", "rotated"):
        raise ValueError("as it was")
    assert caught.value.__notes__ == ["This is about the predictor 'map' on 'rotated'."]


def test_a_title_of_undecoded_bytes_is_refused():
    with pytest.raises(ValueError, match=r"title 'G\\udcfcte' .*bytes, expected text"):
        checks.check_title("G\udcfcte")
    checks.check_title("Güte \u56fe")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            [[0.1], [0.6]],
            r"epistemic_std of 0\.6 .*'map' at \(1, 0\) where std is 0\.5",
        ),
        ([[-0.1], [0.1]], r"epistemic_std of -0\.1 .*'map' at \(0, 0\)"),
        ([[np.nan], [0.1]], r"epistemic_std of nan .*'map' at \(0, 0\)"),
    ],
)
def test_epistemic_deviations_are_parts_of_the_whole(part, message):
    mean, std = np.zeros((2, 1)), np.full((2, 1), 0.5)
    with pytest.raises(ValueError, match=message):
        checks.check_deviations({"map": RegressionPredictions(mean, std, np.array(part))})
    checks.check_deviations({"map": RegressionPredictions(mean, std, std)})
