"""Names of arrays mean one thing each, and together make predictions or are refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laplace_kit.eval.report import archive
from laplace_kit.eval.report.archive import Key, Place
from laplace_kit.eval.report.contents import Contents

NAMES = st.from_regex(r"[A-Za-z0-9_.+-]{1,12}", fullmatch=True).filter(
    lambda name: name not in ("shifted", "ood")
)


@given(
    predictor=st.none() | NAMES,
    of_set=st.none() | st.tuples(st.just("shifted"), NAMES) | st.tuples(st.just("ood"), NAMES),
)
def test_a_name_says_where_it_belongs_and_back(predictor, of_set):
    key = Key(Place(predictor, *(of_set or ())), "probs")
    assert archive.parse(str(key)) == key


@pytest.mark.parametrize(
    "name", ["", "prob", "a/b/probs", "map/y", "map/x", "ood/noise/y", "shifted/rotated/mean", "/y"]
)
def test_other_names_mean_nothing(name):
    assert archive.parse(name) is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("y", "prob"), "'prob' among y, prob, expected y and probs"),
        (("probs",), "found probs, expected y and probs"),
        (("y",), "found y, expected y and probs"),
        (("y", "probs", "map/probs"), "y, probs, map/probs, .*in front of every array"),
        (("y", "probs", "mean", "std"), "probabilities, or means and standard deviations"),
    ],
)
def test_arrays_that_make_no_predictions_together(names, message):
    contents = Contents(Path("a.npz"), dict.fromkeys(names, np.zeros(3)))
    with pytest.raises(ValueError, match=message):
        archive.parse_names(contents)


def test_one_of_two_forms_is_wanted():
    contents = Contents(Path("a.npz"), dict.fromkeys(("y", "probs", "logits"), np.zeros(3)))
    keys = archive.parse_names(contents)
    with pytest.raises(ValueError, match="found probs and logits, expected probs or logits"):
        archive.one_of(contents, keys, Place(None), "probs", "logits")
    with pytest.raises(ValueError, match="expected mean too; add what is missing"):
        archive.one_of(contents, keys, Place(None), "mean")
    assert archive.one_of(contents, keys, Place(None), "probs", "mean") == "probs"


def test_arrays_come_back_and_objects_are_never_unpickled(tmp_path):
    path, values = tmp_path / "a.npz", np.arange(6.0).reshape(3, 2)
    np.savez(path, y=np.arange(3), probs=values)
    found = archive.read_npz(path)
    np.testing.assert_array_equal(found.arrays["probs"], values)
    buffer = io.BytesIO()
    np.savez(buffer, y=np.array([{}], dtype=object))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"cannot be read as an archive of arrays"):
        archive.read_npz(path)
