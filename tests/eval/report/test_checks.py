"""What a report refuses before it measures; the rest is tested where reports are written."""

import numpy as np
import pytest

from laplace_kit.eval.report import checks


def test_the_subject_is_laplace_or_the_last():
    assert checks.subject_of(["map", "laplace", "other"], None) == "laplace"
    assert checks.subject_of(["map", "other"], None) == "other"
    assert checks.subject_of(["map", "other"], "map") == "map"


def test_a_new_directory_is_not_made_yet(tmp_path):
    assert checks.usable_directory(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()


def test_the_first_number_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match=r"Found nan in y at \(1, 0\) and 1 more such values"):
        checks.finite("y", np.array([[0.0], [np.nan], [np.inf]]))


def test_errors_keep_their_words_and_gain_a_note():
    with pytest.raises(ValueError, match="as it was") as caught, checks.about("map", "rotated"):
        raise ValueError("as it was")
    assert caught.value.__notes__ == ["This is about the predictor 'map' on 'rotated'."]
