"""Tables come back as arrays; every fault is told with its line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laplace_kit.eval.report.csv_table import read_csv
from laplace_kit.eval.report.files import read_predictions

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(rows=st.lists(st.tuples(FINITE, FINITE, FINITE), min_size=1, max_size=5))
def test_numbers_come_back_to_the_last_bit(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "a.csv"
    path.write_text("y,mean,std\n" + "\n".join(",".join(map(repr, row)) for row in rows))
    found = read_csv(path)
    together = np.stack([found.arrays[name] for name in ("y", "mean", "std")], axis=1)
    np.testing.assert_array_equal(together, rows)


def test_classes_are_ordered_by_their_numbers_and_empty_lines_passed_over(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\ufeffp_1, y, p_0\n\n0.25, 1, 0.75\n1, 0, 0\n", encoding="utf-8")
    found = read_csv(path)
    np.testing.assert_array_equal(found.arrays["probs"], [[0.75, 0.25], [0, 1]])
    np.testing.assert_array_equal(found.arrays["y"], [1, 0])
    assert found.at("y", (1,)) == "y in line 4"
    assert found.at("probs", (0, 1)) == "p_1 in line 3"


def test_one_column_is_the_probability_of_the_second_class(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("y,p\n1,0.5\n")
    assert read_csv(path).arrays["probs"].tolist() == [0.5]


@pytest.mark.parametrize("words", [("True", "False"), ("TRUE", "FALSE"), ("true", " false ")])
def test_labels_may_be_true_and_false(words, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("y,p\n{},0.5\n{},0.25\n".format(*words))
    found = read_predictions(path)
    assert found.y.tolist() == [1, 0]
    assert np.issubdtype(found.y.dtype, np.integer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found an empty file"),
        ("y,p\n", "found a single line"),
        ("y,p\n1,0.5,3\n", "found 3 values in line 2, expected 2"),
        ("y,p\n1,0.5\n0,\n", "found no p in line 3, expected a number"),
        (
            "y,p\ncat,0.5\n",
            "found 'cat' as y in line 2, expected a class number",
        ),
        ("y,p\n1,true\n", "found 'true' as p in line 2, expected a number"),
        ("y,mean,std\nTrue,1,1\n", "found 'True' as y in line 2, expected a number"),
        ("y,mean,std\ntall,1,1\n", "found 'tall' as y in line 2, expected a number"),
        ("y,q\n1,0.5\n", "found the column 'q', expected y and p_0"),
        ("y;p\n1;0,5\n", "found the column 'y;p', .*commas between"),
        ("y,p\n1,0,5\n", "found 3 values in line 2, expected 2"),
        ("y,p,p\n1,0.5,0.5\n", "found the column 'p' twice"),
        ("y,p_0,p_2\n1,0.5,0.5\n", "found the columns p_0, p_2, expected p_0, p_1 and so on"),
        ("y,p,p_0,p_1\n1,0,0,1\n", "found the columns p, p_0, p_1"),
        ('y,p\n"1,0.5\n', "found text that is not valid CSV, after line 2"),
    ],
)
def test_faults_are_told_with_their_line(text, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_csv(path)
