"""What a report refuses before it measures; the rest is tested where reports are written."""

import os

import numpy as np
import pytest

from laplace_kit.eval.report import checks
from laplace_kit.eval.report.predictions import ClassPredictions


def test_the_subject_is_laplace_or_the_last():
    assert checks.subject_of(["map", "laplace", "other"], None) == "laplace"
    assert checks.subject_of(["map", "other"], None) == "other"
    assert checks.subject_of(["map", "other"], "map") == "map"


def test_a_new_directory_is_not_made_yet(tmp_path):
    assert checks.usable_directory(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()


def test_a_directory_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    message = r"Found the directory .*, which may not be written to, expected one"
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


@pytest.mark.parametrize("name", ["deep ensemble", "a/b", "", 1, "taken"])
def test_names_that_cannot_be_part_of_a_file_name(name):
    with pytest.raises(ValueError, match=r"Found the name .*expected letters.*choose another"):
        checks.check_names([name], ("taken",))


def test_errors_keep_their_words_and_gain_a_note():
    with pytest.raises(ValueError, match="as it was") as caught, checks.about("map", "rotated"):
        raise ValueError("as it was")
    assert caught.value.__notes__ == ["This is about the predictor 'map' on 'rotated'."]
