"""The second of two classes: curves and decisions agree with counting by hand."""

import numpy as np
import pytest
from sklearn import metrics as theirs

from laplace_kit.eval import report
from laplace_kit.eval.report import ClassPredictions
from laplace_kit.eval.report.measures import measure_classification
from laplace_kit.eval.report.two_classes import decide, frequencies, positives


def problem(num=300, soft=False):
    rng = np.random.default_rng(0)
    p = np.round(rng.beta(0.8, 2.0, num), 2)
    y = (rng.uniform(size=num) < p).astype(int)
    return p, np.stack([1 - p, p], axis=1), np.eye(2)[y] if soft else y


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_areas_are_those_of_scikit_learn(weighted, soft):
    p, probs, y = problem(soft=soft)
    weights = np.random.default_rng(1).uniform(0.1, 2, len(p)) if weighted else None
    found = measure_classification({"map": ClassPredictions(probs)}, y, {}, weights=weights)
    labels = positives(y)
    for key, function in (
        ("roc_auc", theirs.roc_auc_score),
        ("average_precision", theirs.average_precision_score),
    ):
        expected = function(labels, p, sample_weight=weights)
        assert found["map"][key] == pytest.approx(expected, rel=1e-9)
        low, high = found["bootstrap"]["test"]["intervals"]["map"][key]
        assert low < expected < high
    assert found["num_classes"] == 2


def test_the_brier_score_is_twice_that_of_the_positive_class():
    p, probs, y = problem()
    found = measure_classification({"map": ClassPredictions(probs)}, y, {})
    assert found["map"]["brier"] == pytest.approx(2 * theirs.brier_score_loss(y, p))


def test_three_classes_have_no_positive_one():
    probs = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    found = measure_classification({"map": ClassPredictions(probs)}, np.arange(30) % 3, {})
    assert "roc_auc" not in found["map"]


@pytest.mark.parametrize("ratio", [0.1, 1.0, 4.0])
def test_decisions_count_errors_and_costs(ratio):
    p, _, y = problem()
    weights = np.arange(len(p)) % 3.0
    found = decide(p, y.astype(float), weights, ratio, 2.0)
    flagged = p >= 1 / (1 + ratio)
    matrix = theirs.confusion_matrix(y, flagged, sample_weight=weights)
    (_, false_positives), (false_negatives, _) = matrix
    assert found.threshold == pytest.approx(1 / (1 + ratio))
    assert (found.false_positives, found.false_negatives) == (false_positives, false_negatives)
    assert found.precision == pytest.approx(
        theirs.precision_score(y, flagged, sample_weight=weights)
    )
    assert found.recall == pytest.approx(theirs.recall_score(y, flagged, sample_weight=weights))
    total = weights.sum()
    expected = (2 * false_positives + 2 * ratio * false_negatives) / total
    assert found.cost == pytest.approx(expected)
    none, everyone = 2 * ratio * (weights @ y), 2 * (weights @ (1 - y))
    assert found.cost_of_none == pytest.approx(min(none, everyone) / total)


def test_the_threshold_of_a_ratio_costs_least_where_probabilities_are_right():
    """On a grid of probabilities with labels as frequent as they say, no threshold costs less."""
    p = np.repeat(np.linspace(0.05, 0.95, 10), 2)
    happened, weights = np.tile([0.0, 1.0], 10), np.where(np.tile([0, 1], 10), p, 1 - p)
    for ratio in (0.2, 1.0, 5.0):
        own = decide(p, happened, weights, ratio).cost
        costs = []
        for threshold in np.linspace(0, 1.01, 50):
            flagged = p >= threshold
            false_positives = weights @ (flagged * (1 - happened))
            costs.append(false_positives + ratio * (weights @ (~flagged * happened)))
        assert own == pytest.approx(min(costs) / weights.sum())


def test_frequencies_by_bin():
    found = frequencies(np.array([0.05, 0.15, 0.15, 1.0]), np.array([0.0, 1, 0, 1]), np.ones(4))
    assert found.counts[[0, 1, 9]].tolist() == [1, 2, 1]
    assert found.observed[[0, 1, 9]].tolist() == [0, 0.5, 1]
    np.testing.assert_allclose(found.claimed[[0, 1, 9]], [0.05, 0.15, 1.0])
    doubled = frequencies(np.array([0.05, 0.15]), np.array([0.0, 1]), np.array([2.0, 1.0]))
    assert doubled.counts[:2].tolist() == [2, 1]


def test_the_page_of_two_classes(tmp_path):
    _, probs, y = problem()
    sharp = np.clip(1.4 * (probs - 0.5) + 0.5, 0.001, 0.999)
    predictions = {"map": ClassPredictions(probs), "other": ClassPredictions(sharp)}
    written = report.classification_report(
        predictions, y, tmp_path, class_names=["benign", "malignant"], costs=(1.0, 7.0)
    )
    page = written.index.read_text(encoding="utf-8")
    assert "The probability of class malignant" in page
    assert "twice that of P(y = 1)" in page
    numbers = written.metrics["sections"]
    assert numbers["positive_class"] == {
        "class": "malignant",
        "base_rate": pytest.approx(y.mean()),
    }
    ratios = [row["ratio"] for row in numbers["thresholds"]["decisions"]["map"]]
    assert ratios == [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 7.0, 10.0]
    assert page.count('<tr class="marked">') == 2
    names = {path.name for path in written.files}
    assert {f"positive_{k}.png" for k in ("reliability", "roc", "precision_recall")} <= names
    with pytest.raises(ValueError, match=r"Found costs=\(0.0, 1.0\), expected two positive"):
        report.classification_report(predictions, y, tmp_path, costs=(0.0, 1.0))


def test_labels_of_one_kind_leave_nothing_to_tell_apart(tmp_path):
    _, probs, _ = problem(40)
    written = report.classification_report(
        {"map": ClassPredictions(probs)}, np.ones(40, int), tmp_path
    )
    assert written.metrics["map"]["roc_auc"] is None
    assert "positive_reliability.png" in {path.name for path in written.files}
    assert "positive_roc.png" not in {path.name for path in written.files}
