"""Single classes: tables and matrices agree with scikit-learn, and stay small."""

import numpy as np
import pytest
from sklearn import metrics as theirs

from laplace_kit.eval.report import ClassPredictions
from laplace_kit.eval.report.many_classes import by_class, confusions, many_classes
from laplace_kit.eval.report.material import Classified
from laplace_kit.eval.report.names import Names
from laplace_kit.eval.report.two_classes import two_classes


def problem(num, num_classes):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(num_classes, 0.3), num)
    y = np.minimum((rng.uniform(size=(num, 1)) > probs.cumsum(axis=1)).sum(axis=1), num_classes - 1)
    return probs, y


@pytest.mark.parametrize("weighted", [False, True])
def test_recall_precision_and_confusions_are_those_of_scikit_learn(weighted):
    probs, y = problem(200, 4)
    weights = np.random.default_rng(1).integers(0, 3, 200) if weighted else np.ones(200)
    weights, predicted = weights.astype(float), probs.argmax(axis=1)
    found = by_class(probs, y, weights)
    given = {"labels": range(4), "sample_weight": weights, "zero_division": 0}
    precision, recall, _, num = theirs.precision_recall_fscore_support(y, predicted, **given)
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_allclose(found.num, num)
    np.testing.assert_allclose(found.claimed, np.average(probs, axis=0, weights=weights))
    matrix = theirs.confusion_matrix(y, predicted, labels=range(4), sample_weight=weights)
    np.testing.assert_allclose(confusions(y, predicted, weights, 4), matrix)


def test_counts_repeat_examples():
    probs, y = problem(60, 4)
    counts = np.random.default_rng(1).integers(0, 4, 60)
    each = np.repeat(np.arange(60), counts)
    for counted, repeated in zip(
        by_class(probs, y, counts.astype(float)),
        by_class(probs[each], y[each], np.ones(len(each))),
        strict=True,
    ):
        np.testing.assert_allclose(counted, repeated, rtol=1e-9)


def test_gaps_are_standard_normal_where_probabilities_are_right():
    rng, gaps = np.random.default_rng(0), []
    probs = rng.dirichlet(np.full(5, 0.5), 300)
    for _ in range(200):
        y = (rng.uniform(size=(300, 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(max=4)
        gaps.append(by_class(probs, y, np.ones(300)).gap)
    assert np.mean(gaps) == pytest.approx(0, abs=0.1)
    assert np.std(gaps) == pytest.approx(1, abs=0.05)


def test_ten_classes_are_all_shown_in_their_order():
    probs, y = problem(300, 10)
    names = Names(tuple("abcdefghij"))
    of = Classified({"map": ClassPredictions(probs)}, y, {}, {"map": {}}, "map", names=names)
    table, matrix, curves = many_classes(of)
    assert [row[0] for row in table.tables[0].rows] == [*"abcdefghij"]
    assert table.numbers["shown"] == [*"abcdefghij"]
    assert [picture.file for picture in matrix.pictures] == ["confusion_map.png"]
    assert len(curves.pictures) == 9
    assert not list(two_classes(of))


def test_a_thousand_classes_stay_readable():
    probs, y = problem(2000, 1000)
    probs = 0.5 * probs + 0.5 * np.eye(1000)[7]  # claimed in vain for every example
    of = Classified({"map": ClassPredictions(probs)}, y, {}, {"map": {}}, "map")
    table, errors, curves = many_classes(of)
    assert len(table.tables[0].rows) == 20
    assert table.tables[0].rows[0][0] == "7"
    assert table.tables[0].rows[0][-1] == "claimed too often"
    assert 0 in table.tables[0].marked
    assert "20 of 1,000 classes" in table.note
    assert len(errors.tables[0].rows) == 20
    assert errors.tables[0].rows[0][1] == "7"
    assert errors.pictures == ()
    assert len(curves.pictures) == 9
    wrong = probs.argmax(axis=1) != y
    _, counts = np.unique(y[wrong], return_counts=True)  # all are predicted as 7
    assert errors.tables[0].rows[0][2] == str(counts.max())


def test_two_classes_have_no_section_of_many():
    probs, y = problem(50, 2)
    of = Classified({"map": ClassPredictions(probs)}, y, {}, {"map": {}}, "map")
    assert not list(many_classes(of))
