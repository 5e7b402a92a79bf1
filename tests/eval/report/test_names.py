"""Names are those given, or those that the data carry, and each thing has one."""

import json

import numpy as np
import pytest

from laplace_kit.eval import report
from laplace_kit.eval.report import ClassPredictions, RegressionPredictions, names, pictures
from laplace_kit.eval.report.names import NO_NAMES, Names, check_fit, named, names_of, with_codes


class Frame:
    """What is asked of a DataFrame, of which pandas need not be there."""

    def __init__(self, values, columns):
        self.values, self._columns = np.asarray(values), columns

    @property
    def columns(self):
        return self._columns

    def to_numpy(self):
        return self.values


class Categories:
    """What is asked of an array of categories."""

    dtype = "category"

    def __init__(self, codes, categories):
        self.codes, self.categories = np.asarray(codes, np.int8), categories


class Series:
    """What is asked of a Series: of numbers, or of categories."""

    def __init__(self, values, name=None):
        self.name, self.dtype = name, getattr(values, "dtype", None)
        if isinstance(values, Categories):
            self.cat = values


def test_data_carry_names():
    x = Frame(np.zeros((2, 2)), ["size", ("width", "mm")])
    assert names_of(x, np.zeros(2)) == Names(features=("size", "width mm"))
    assert names_of(None, Series(np.zeros(2), "price")).targets == ("price",)
    assert names_of(None, Frame(np.zeros((2, 2)), ["left", "right"])).targets == ("left", "right")
    labels = Categories([1, 0], ["cat", "dog"])
    assert names_of(None, Series(labels, "animal")) == Names(("cat", "dog"), (), ("animal",))
    assert names_of(None, labels).classes == ("cat", "dog")


def test_numbers_that_count_columns_are_no_names():
    assert names_of(Frame(np.zeros((2, 2)), [0, 1]), Series(np.zeros(2), 0)) == NO_NAMES
    assert names_of(np.zeros((2, 2)), np.zeros(2)) == NO_NAMES
    assert names_of(Frame(np.zeros((2, 2)), ["a", "a"]), np.zeros(2)) == NO_NAMES


def test_frames_and_categories_become_arrays():
    x, y = with_codes(Frame([[1.0, 2.0]], ["a", "b"]), Series(Categories([1], ["cat", "dog"])))
    np.testing.assert_array_equal(x, [[1.0, 2.0]])
    assert y.tolist() == [1]
    assert y.dtype == np.int32
    with pytest.raises(ValueError, match=r"Found 1 missing labels .* drop those examples"):
        with_codes(None, Categories([0, -1], ["cat", "dog"]))


def test_pandas_itself():
    pandas = pytest.importorskip("pandas")
    x = pandas.DataFrame({"size": [1.0, 2.0], "age": [3.0, 4.0]})
    y = pandas.Series(["dog", "cat"], dtype="category", name="animal")
    assert names_of(x, y) == Names(("cat", "dog"), ("size", "age"), ("animal",))
    values, codes = with_codes(x, y)
    np.testing.assert_array_equal(values, [[1.0, 3.0], [2.0, 4.0]])
    assert codes.tolist() == [1, 0]
    assert names_of(pandas.DataFrame(np.zeros((2, 2))), pandas.Series([0, 1])) == NO_NAMES


def test_what_is_given_comes_first():
    given = named(["a", "b"], None, "price", "EUR")
    assert given == Names(("a", "b"), (), ("price",), "EUR")
    assert given.or_else(Names(("c",), ("d",), ("e",))).features == ("d",)
    assert given.or_else(Names(("c",), ("d",), ("e",))).classes == ("a", "b")
    assert (given.of_target(), NO_NAMES.of_target(default="Target")) == ("price (EUR)", "Target")
    assert (given.of_class(1), NO_NAMES.of_class(1)) == ("b", "1")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("cat", None), TypeError, "Found class_names='cat', one text, expected a sequence"),
        ((["a", "a"],), ValueError, "Found class_names with 'a' more than once"),
        ((["a", " "],), ValueError, "Found an empty text in class_names"),
        ((None, None, None, ""), ValueError, "Found an empty text in target_unit"),
    ],
)
def test_names_that_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        named(*arguments)


def test_names_are_one_short_line():
    assert named(["two\nlines", "x" * 200]).classes == ("two lines", "x" * 79 + "…")


@pytest.mark.parametrize(
    ("found", "sizes", "words"),
    [
        (Names(("a", "b")), {"num_classes": 3}, r"Found 2 of class_names \(a, b\), expected 3"),
        (Names(("a",)), {"num_outputs": 1}, "expected none for a regression; leave them out"),
        (Names(unit="mm"), {"num_classes": 2}, r"target_unit \(mm\), expected none for classes"),
        (Names(targets=("a", "b")), {"num_outputs": 3}, "expected 3, one for each output"),
        (Names((), tuple("abcd")), {"x": np.zeros((2, 3))}, r"\(a, b, c, ...\), expected 3, one"),
        (Names((), ("a",)), {"x": np.zeros((2, 3, 3))}, r"none for an array of shape \(2, 3, 3\)"),
        (Names((), ("a",)), {"x": {"b": np.zeros(2)}}, "none for a pytree"),
    ],
)
def test_as_many_names_as_things(found, sizes, words):
    with pytest.raises(ValueError, match=words):
        check_fit(found, **sizes)


def test_names_of_classes_on_the_page_and_in_the_files(tmp_path):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), size=60)
    x = Frame(rng.normal(size=(60, 2)), ["length", "width"])
    y = Series(Categories([rng.choice(3, p=p) for p in probs], ["setosa", "<b>", "$c$"]), "species")
    written = report.classification_report({"map": ClassPredictions(probs)}, y, tmp_path, x=x)
    page = written.index.read_text(encoding="utf-8")
    for text in ("setosa (", "&lt;b&gt;", "$c$", "length", "width", "species"):
        assert text in page
    assert "x[0]" not in page
    known = {"classes": ["setosa", "<b>", "$c$"], "features": ["length", "width"]}
    assert json.loads((tmp_path / "metrics.json").read_text())["names"] == {
        **known,
        "targets": ["species"],
    }
    stored = report.read_predictions(tmp_path / "predictions.npz")
    assert stored.names == Names(tuple(known["classes"]), ("length", "width"), ("species",))


def test_names_of_targets_on_the_page_and_in_the_files(tmp_path, monkeypatch):
    drawn = []
    picture = pictures.picture
    monkeypatch.setattr(
        pictures,
        "picture",
        lambda file, caption, figure, alt="": (
            drawn.append(figure) or picture(file, caption, figure, alt)
        ),
    )
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(40, 1))
    written = report.regression_report(
        {"map": RegressionPredictions(mean, np.ones((40, 1)))},
        mean + rng.normal(size=(40, 1)),
        tmp_path,
        x=mean,
        feature_names=["age"],
        target_name="height",
        target_unit="cm",
    )
    labels = {ax.get_xlabel() for figure in drawn for ax in figure.axes}
    assert {"age", "observed height (cm)"} <= labels
    assert "predicted height (cm)" in {ax.get_ylabel() for figure in drawn for ax in figure.axes}
    assert "height (cm)" in written.index.read_text(encoding="utf-8")
    stored = report.read_predictions(tmp_path / "predictions.npz").names
    assert stored == Names((), ("age",), ("height",), "cm")


def test_names_in_files_are_checked(tmp_path):
    half = np.full((2, 2), 0.5)
    np.savez(tmp_path / "a.npz", y=[0, 1], probs=half, class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"a\.npz: Found 3 of class_names .* expected 2"):
        report.read_predictions(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", y=[0, 1], probs=half, class_names=[1, 2])
    with pytest.raises(ValueError, match=r"class_names of dtype int64 .* save a list of names"):
        report.read_predictions(tmp_path / "a.npz")


def test_named_columns_of_a_table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("y,p_dog,p_cat\ncat,0.25,0.75\ndog,0.5,0.5\n")
    stored = report.read_predictions(path)
    assert stored.names.classes == ("dog", "cat")
    assert stored.y.tolist() == [1, 0]
    np.testing.assert_array_equal(stored.predictions["a"].probs, [[0.25, 0.75], [0.5, 0.5]])
    path.write_text("y,p_dog,p_cat\ncow,0.25,0.75\n")
    with pytest.raises(
        ValueError, match=r"found 'cow' as y in line 2, expected one of the classes"
    ):
        report.read_predictions(path)
    path.write_text("y,p_dog,p_1\ndog,0.25,0.75\n")
    with pytest.raises(ValueError, match=r"found the columns p_dog, p_1, expected p_0, p_1 and so"):
        report.read_predictions(path)
    path.write_text("y,p_dog,p_cat\ndog,0.25,0.1\n")
    with pytest.raises(ValueError, match=r"p_dog|line 2"):
        report.read_predictions(path)


def test_names_of_several_files_agree(tmp_path):
    from laplace_kit.eval.report.merge import read_all

    half = np.full((2, 2), 0.5)
    paths = [tmp_path / f"{name}.npz" for name in "abc"]
    np.savez(paths[0], y=[0, 1], probs=half)
    np.savez(paths[1], y=[0, 1], probs=half, class_names=["cat", "dog"])
    np.savez(paths[2], y=[0, 1], probs=half, class_names=["dog", "cat"])
    assert read_all(paths[:2]).names.classes == ("cat", "dog")
    with pytest.raises(ValueError, match=r"c\.npz: found the names .* use the same names"):
        read_all(paths)


def test_every_public_class_of_names_is_frozen():
    with pytest.raises(AttributeError):
        names.NO_NAMES.unit = "mm"
