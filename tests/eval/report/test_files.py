"""Files of predictions: what is written is read again, and what is wrong is named in one line."""

import contextlib
import io
import re
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from laplace_kit.eval.report import ClassPredictions, RegressionPredictions, files
from laplace_kit.eval.report.files import read_predictions, write_predictions

HALVES = np.full((4, 2), 0.5)
LABELS = np.array([0, 1, 0, 1])
MEAN, STD = np.arange(4.0), np.ones(4)


def save(path, **arrays):
    np.savez(path, **{name.replace("__", "/"): values for name, values in arrays.items()})
    return path


def softmax(values):
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def same(left, right):
    """Whether two trees of mappings, arrays and missing values are equal, dtypes included."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if left is None or right is None:
        return left is right
    left, right = np.asarray(left), np.asarray(right)
    return left.dtype == right.dtype and np.array_equal(left, right)


# --- round trips -------------------------------------------------------------------------------

NAMES = st.from_regex(r"[\w.+-]{1,9}", fullmatch=True).filter(
    lambda name: name not in ("shifted", "ood")
)
FLOATS = st.sampled_from([np.float32, np.float64])


@st.composite
def classifiers(draw):
    num_classes, dtype = draw(st.integers(2, 5)), draw(FLOATS)
    sets = {"shifted": draw(st.lists(NAMES, max_size=2, unique=True))}
    sets["ood"] = draw(st.lists(NAMES, max_size=2, unique=True))
    sizes = {name: draw(st.integers(1, 6)) for name in [*sets["shifted"], *sets["ood"]]}
    num = draw(st.integers(1, 6))

    def probs(rows):
        return softmax(draw(hnp.arrays(dtype, (rows, num_classes), elements=st.integers(-9, 9))))

    def information(rows):
        return draw(hnp.arrays(dtype, rows, elements=st.floats(0, 0.5, width=32)))

    def labels(rows):
        return draw(hnp.arrays(np.int64, rows, elements=st.integers(0, num_classes - 1)))

    predictions = {
        name: ClassPredictions(
            probs(num),
            {where: probs(sizes[where]) for where in sets["shifted"]},
            {where: probs(sizes[where]) for where in sets["ood"]},
            information(num) if draw(st.booleans()) else None,
            {where: information(sizes[where]) for where in sets["ood"] if draw(st.booleans())},
        )
        for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    }
    return predictions, labels(num), {where: labels(sizes[where]) for where in sets["shifted"]}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(classifiers())
def test_classifiers_are_read_as_they_were_written(tmp_path, arguments):
    write_predictions(tmp_path / "a.npz", *arguments)
    found = read_predictions(tmp_path / "a.npz")
    predictions, y, shifted_labels = arguments
    assert list(found.predictions) == list(predictions)
    for name, of in predictions.items():
        assert same(vars(found.predictions[name]), vars(of))
    assert same(found.y, y)
    assert same(found.shifted_labels, shifted_labels)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_regressors_are_read_as_they_were_written(tmp_path, data):
    shape, dtype = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 3))), data.draw(FLOATS)
    anything = hnp.arrays(dtype, shape, elements=st.floats(-1e3, 1e3, width=32))
    part = hnp.arrays(dtype, shape, elements=st.floats(0, 0.125, width=32))
    positive = hnp.arrays(dtype, shape, elements=st.floats(0.125, 1e3, width=32))
    names = data.draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    predictions = {
        name: RegressionPredictions(
            data.draw(anything), data.draw(positive), data.draw(st.none() | part)
        )
        for name in names
    }
    y = data.draw(anything)
    write_predictions(tmp_path / "a.npz", predictions, y)
    found = read_predictions(tmp_path / "a.npz")
    assert same(found.y, y)
    assert {name: same(vars(found.predictions[name]), vars(predictions[name])) for name in names}
    assert not found.shifted_labels


def test_equal_predictions_make_equal_bytes_and_replace_the_file_whole(tmp_path):
    predictions = {"map": ClassPredictions(jnp.asarray(HALVES, jnp.bfloat16))}
    for name in ("a.npz", "b.npz", "b.npz"):
        write_predictions(tmp_path / name, predictions, LABELS)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "b.npz"}
    assert read_predictions(tmp_path / "a.npz").predictions["map"].probs.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "predictor"), [("a.csv", "map"), ("a.npz", "a b"), ("a.npz", "shifted")]
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, name, predictor):
    with pytest.raises(ValueError, match=r"found the .*choose another"):
        write_predictions(tmp_path / name, {predictor: ClassPredictions(HALVES)}, LABELS)
    assert not list(tmp_path.iterdir())


# --- every accepted form -----------------------------------------------------------------------


def test_logits_and_probabilities_of_the_second_class_become_probabilities(tmp_path):
    logits = np.array([[2.0, -1.0, 900.0], [0.0, 0.0, 0.0]])
    found = read_predictions(save(tmp_path / "of a.npz", y=[2, 0], logits=logits))
    assert list(found.predictions) == ["of-a"]
    np.testing.assert_allclose(
        found.predictions["of-a"].probs, [[0.0, 0.0, 1.0], [1 / 3, 1 / 3, 1 / 3]], atol=1e-15
    )
    p = np.array([0.2, 0.9])
    by_p = read_predictions(save(tmp_path / "p.npz", y=[False, True], probs=p))
    by_logit = read_predictions(save(tmp_path / "p.npz", y=[0, 1], logits=np.log(p / (1 - p))))
    for stored in (by_p, by_logit):
        np.testing.assert_allclose(stored.predictions["p"].probs, [[0.8, 0.2], [0.1, 0.9]])
        assert same(stored.y, np.array([0, 1]))


def test_soft_labels_and_several_outputs(tmp_path):
    assert same(read_predictions(save(tmp_path / "a.npz", y=HALVES, probs=HALVES)).y, HALVES)
    assert read_predictions(
        save(tmp_path / "a.npz", y=MEAN, mean=MEAN[:, None], std=STD)
    ).y.shape == (4, 1)


def test_inputs_come_along(tmp_path):
    x = np.arange(32).reshape(4, 8)
    assert same(read_predictions(save(tmp_path / "a.npz", x=x, y=LABELS, probs=HALVES)).x, x)
    assert same(read_predictions(save(tmp_path / "a.npz", x=x, y=MEAN, mean=MEAN, std=STD)).x, x)


def test_sets_of_one_predictor_and_of_several(tmp_path):
    arrays = {
        "shifted/dark/y": [1, 0],
        "shifted/dark/logits": np.zeros((2, 2)),
        "ood/noise/probs": HALVES[:3],
        "ood/noise/epistemic": np.zeros(3),
    }
    alone = read_predictions(save(tmp_path / "a.npz", y=LABELS, probs=HALVES, **arrays))
    named = {f"map/{k}": v for k, v in arrays.items() if not k.endswith("/y")}
    named |= {"shifted/dark/y": [1, 0], "map/probs": HALVES}
    several = read_predictions(save(tmp_path / "b.npz", y=LABELS, **named))
    assert same(vars(alone.predictions["a"]), vars(several.predictions["map"]))
    assert same(alone.shifted_labels, {"dark": np.array([1, 0])})
    assert same(several.shifted_labels, {"dark": np.array([1, 0])})


def text(path, content, encoding="utf-8"):
    path.write_bytes(content.encode(encoding))
    return path


def test_tables(tmp_path):
    path = tmp_path / "a.csv"
    found = read_predictions(
        text(path, "p_1, y,p_0\r\n0.25, 1.0,0.75\r\n\r\n1,0,0\r\n", "utf-8-sig")
    )
    assert same(found.predictions["a"].probs, np.array([[0.75, 0.25], [0.0, 1.0]]))
    assert same(found.y, np.array([1, 0]))
    found = read_predictions(text(path, 'y,p,epistemic\n1,"0.25",0.1\n'))
    assert same(found.predictions["a"].probs, np.array([[0.75, 0.25]]))
    assert same(found.predictions["a"].epistemic, np.array([0.1]))
    found = read_predictions(text(path, "y,mean,std,epistemic_std\n1,2e0,3,0\n"))
    assert same(
        vars(found.predictions["a"]),
        {
            "mean": np.array([[2.0]]),
            "std": np.array([[3.0]]),
            "epistemic_std": np.array([[0.0]]),
            "distributions": None,
        },
    )
    found = read_predictions(text(path, "y,mean,std,weights\n1,2,3,4\n1,2,3,0.5\n"))
    assert same(found.weights, np.array([4.0, 0.5]))


def test_a_large_table_reads_as_the_archive_of_the_same_numbers(tmp_path):
    rng = np.random.default_rng(0)
    probs, y = rng.dirichlet(np.ones(10), 500), rng.integers(0, 10, 500)
    lines = [",".join(["y", *(f"p_{c}" for c in range(10))])]
    lines += [
        ",".join(map(repr, [int(k), *map(float, row)])) for k, row in zip(y, probs, strict=True)
    ]
    table = read_predictions(text(tmp_path / "a.csv", "\n".join(lines)))
    archive = read_predictions(save(tmp_path / "a.npz", y=y, probs=probs))
    assert same(table.y, archive.y)
    assert same(table.predictions["a"].probs, archive.predictions["a"].probs)


def test_the_page_of_reports_lists_the_same_arrays():
    page = (Path(__file__).parents[3] / "docs" / "report.md").read_text(encoding="utf-8")
    table = re.findall(r"^\|.*\|$", files.__doc__, re.MULTILINE)
    assert "\n".join(table) in page


# --- refusals ----------------------------------------------------------------------------------

BAD_SUM = np.array([[0.5, 0.5], [0.9, 0.8], [0.5, 0.5], [0.5, 0.5]])
WITH_NAN = np.where(np.arange(8).reshape(4, 2) >= 5, np.nan, 0.5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"found no arrays, expected y and probs .*; add what is missing"),
        ({"y": LABELS}, "found y, expected y and probs"),
        ({"probs": HALVES}, "found probs, expected y and probs"),
        ({"y": LABELS, "prob": HALVES}, "an array named 'prob' among y, prob, expected"),
        ({"y": LABELS, "map/y": LABELS, "probs": HALVES}, "an array named 'map/y'"),
        ({"y": LABELS, "probs": HALVES, "ood/a/y": LABELS}, "an array named 'ood/a/y'"),
        (
            {"y": LABELS, "probs": HALVES, "map/probs": HALVES},
            "found y, probs, map/probs, .*in front of every array",
        ),
        ({"y": LABELS, "probs": HALVES, "logits": HALVES}, "found probs and logits, .*not both"),
        ({"y": LABELS, "probs": HALVES, "mean": MEAN}, "y, probs, mean, .*separate files"),
        ({"y": LABELS, "epistemic": STD}, "expected probs or logits too; add what is missing"),
        ({"y": MEAN, "mean": MEAN}, "found y, mean, expected std too; add"),
        ({"y": MEAN, "std": STD}, "found y, std, expected mean too; add"),
        (
            {"y": LABELS, "map/probs": HALVES, "map/ood/a/epistemic": STD},
            "expected map/ood/a/probs or map/ood/a/logits too",
        ),
        (
            {"y": LABELS, "probs": HALVES, "shifted/a/probs": HALVES},
            r"the shifted sets \['a'\], expected \[\], .*; save labels",
        ),
        (
            {"y": LABELS, "map/probs": HALVES, "shifted/a/y": LABELS},
            r"the shifted sets \[\], expected \['a'\]",
        ),
        (
            {"y": LABELS, "probs": HALVES, "ood/x/probs": np.full((2, 4), 0.25)},
            r"probabilities of shape \(2, 4\) on ood/x, expected \(2, 2\)",
        ),
        (
            {"y": LABELS, "a/probs": HALVES, "b/probs": HALVES[:3]},
            r"probabilities of shape \(3, 2\) on the test set, expected \(4, 2\)",
        ),
        ({"y": LABELS, "probs": HALVES, "x": STD[:3]}, r"x of shape \(3,\), expected inputs with"),
        ({"y": LABELS, "probs": HALVES, "map/x": STD}, "an array named 'map/x'"),
        ({"y": LABELS, "probs": BAD_SUM}, r"probs\[1\] with the sum 1.7 .*sum to one; apply"),
        ({"y": LABELS, "probs": HALVES - 0.6}, r"probs\[0\] with the sum -0.2"),
        (
            {"y": LABELS, "probs": WITH_NAN},
            r"nan at probs\[2, 1\] and 2 more such values, expected finite numbers; drop",
        ),
        ({"y": LABELS, "probs": 3 * MEAN}, r"3 at probs\[1\], expected p\(y = 1\), from 0 to 1"),
        ({"y": LABELS, "probs": HALVES[:, :1]}, r"probs of shape \(4, 1\).*drop the last axis"),
        ({"y": LABELS, "probs": HALVES[None]}, r"probs of shape \(1, 4, 2\).*reshape"),
        ({"y": LABELS[:0], "probs": HALVES[:0]}, r"probs of shape \(0, 2\), expected one example"),
        ({"y": 1, "probs": HALVES}, r"y of shape \(\), expected one example at least"),
        ({"y": LABELS[:3], "probs": HALVES}, r"y of shape \(3,\) for probabilities of shape"),
        ({"y": LABELS[:, None], "probs": HALVES}, r"y of shape \(4, 1\) for probabilities"),
        ({"y": LABELS + 1, "probs": HALVES}, r"the label 2 at y\[1\], expected integers from 0 to"),
        ({"y": LABELS - 1, "probs": HALVES}, r"the label -1 at y\[0\], expected integers"),
        ({"y": 1.0 * LABELS, "probs": HALVES}, "y of dtype float64 .*integer labels"),
        ({"y": list("abab"), "probs": HALVES}, "y of dtype <U1, expected real numbers; .*number"),
        ({"y": LABELS, "probs": HALVES * 1j}, "probs of dtype complex128, expected real numbers"),
        ({"y": 2 * HALVES, "probs": HALVES}, r"y\[0\] with the sum 2"),
        (
            {"y": LABELS, "probs": HALVES, "epistemic": STD[:3]},
            r"epistemic of shape \(3,\), expected",
        ),
        ({"y": LABELS, "probs": HALVES, "epistemic": -STD}, r"-1 at epistemic\[0\], expected no"),
        (
            {"y": LABELS, "probs": HALVES, "epistemic": STD},
            r"1 at epistemic\[0\], expected at most 0.6931 nats, .*; multiply bits by log\(2\)",
        ),
        ({"y": LABELS, "logits": HALVES}, "logits whose rows all sum to one, .*as probs"),
        (
            {"y": LABELS[:2], "probs": np.array([[0.9, 0.2, 0.5], [0.1, 0.8, 0.5]])},
            r"probs\[0\] with the sum 1.6 .*; transpose it",
        ),
        (
            {"y": MEAN, "mean": MEAN, "std": STD, "epistemic_std": 1.5 * STD},
            r"1.5 at epistemic_std\[0, 0\] where std is 1, expected at most std; .*noise",
        ),
        ({"y": MEAN, "mean": MEAN[:3], "std": STD}, r"mean of shape \(3,\), expected \(4, 1\)"),
        ({"y": MEAN, "mean": MEAN, "std": 0 * STD}, r"0 at std\[0, 0\], expected positive .*noise"),
        ({"y": MEAN, "mean": MEAN, "std": -STD}, r"-1 at std\[0, 0\], expected no negative"),
        ({"y": np.ones((4, 1, 1)), "mean": MEAN, "std": STD}, r"y of shape \(4, 1, 1\)"),
        ({"y": STD * np.inf, "mean": MEAN, "std": STD}, r"inf at y\[0\] and 3 more"),
    ],
)
def test_archives_that_are_refused(tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        read_predictions(path)
    assert str(error.value).startswith(f"{path}: found ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "an empty file, expected a header, with the columns y and p_0"),
        ("\n\n", "an empty file"),
        ("y,p\n", "a single line, expected a header"),
        ("y;p\n1;0.5\n", "the column 'y;p', expected y and .*commas between"),
        ("y;p\n1;0,5\n", "the column 'y;p', expected y and .*commas between"),
        ("y,p,p\n1,0,0\n", "the column 'p' twice"),
        (",y,p\n0,1,0\n", "the column '', .*index=False"),
        ("y,mean,sd\n0,1,1\n", "the column 'sd'"),
        ("y,p_0,p_2\n0,1,0\n", "the columns p_0, p_2, expected p_0, p_1 and so on"),
        ("y,p_0\n0,1\n", "the columns p_0, expected p_0, p_1"),
        ("y,p,p_0,p_1\n0,1,1,0\n", "the columns p, p_0, p_1"),
        ("p\n1\n", "found probs, expected y and probs"),
        ("y,p\n1,0.5\n\n1\n", "1 values in line 4, expected 2, as the header has; .*truncated"),
        ("y,p\n1,0.5,\n", "3 values in line 2"),
        ("y,p\n1,0.5\ncat,0.5\n", "'cat' as y in line 3, expected a class number"),
        ("y,p\n1,50%\n", "'50%' as p in line 2, expected a number; write 50% as 0.5"),
        ("y,p\n1,\n", "no p in line 2, expected a number"),
        ("y,p\n1,nan\n", "nan at p in line 2"),
        ("y,p_0,p_1\n1,0,1\n\n1,0,nan\n", "nan at p_1 in line 4, expected finite numbers"),
        ("y,p_0,p_1\n1,0,1\n1,1,1\n", "found p in line 3 with the sum 2"),
        ("y,p\n1,0.5\n0.5,0.5\n", "the label 0.5 at y in line 3, expected integers from 0 to 1"),
        ("y,p\n2,0.5\n", "the label 2.0 at y in line 2, expected integers"),
        ("y,mean,std\n1,1,1\n2,2,0\n", "0 at std in line 3, expected positive"),
        ('y,p\n1,"0.5\n', "not valid CSV, after line 2"),
    ],
)
def test_tables_that_are_refused(tmp_path, content, message):
    path = text(tmp_path / "bad.csv", content)
    with pytest.raises(ValueError, match=message) as error:
        read_predictions(path)
    assert str(error.value).startswith(f"{path}: found ")
    assert "\n" not in str(error.value)


def test_what_is_no_archive(tmp_path):
    path = tmp_path / "bad.npz"
    whole = save(tmp_path / "whole.npz", y=LABELS, probs=HALVES).read_bytes()
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("y", "text")
    for content in (b"", b"y,p\n1,0", whole[: len(whole) // 2], whole[:-4]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read as an archive .*save it again"):
            read_predictions(path)
    path.write_bytes(other.getvalue())
    with pytest.raises(ValueError, match=r"bad\.npz: found "):
        read_predictions(path)
    np.savez(path, y=np.array([{}, None]), probs=HALVES)
    with pytest.raises(ValueError, match=r"Object arrays cannot be loaded"):
        read_predictions(path)
    with pytest.raises(ValueError, match=r"the suffix '.txt', expected .npz or .csv"):
        read_predictions(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"found a directory, expected a file .*predictions\.npz"):
        read_predictions(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_predictions(tmp_path / "missing.npz")


# --- fuzz --------------------------------------------------------------------------------------


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_archives_are_refused_or_read(tmp_path, data):
    path = tmp_path / "a.npz"
    whole = save(tmp_path / "whole.npz", y=LABELS, probs=HALVES).read_bytes()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
    for _ in range(data.draw(st.integers(0, 5)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    _read_or_refuse(path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60)
    | st.text("yp_01,.\n\r\"'mean std-e\0", max_size=60).map(str.encode)
    | st.text('01,.\n"e-', max_size=40).map(lambda body: f"y,p_0,p_1\n{body}".encode())
)
def test_odd_tables_are_refused_or_read(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    _read_or_refuse(tmp_path / "a.csv")


def _read_or_refuse(path):
    with contextlib.suppress(ValueError):
        read_predictions(path)
