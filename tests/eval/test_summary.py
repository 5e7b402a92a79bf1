"""Tables and verdicts say what the numbers say, on numbers chosen by hand."""

import math

import pytest

from laplace_kit.eval import summary


def classified(num_examples=1000, **predictors):
    """Return metrics of a classification: each predictor as (accuracy, confidence, nll, ece)."""
    keys = ("accuracy", "confidence", "nll", "ece")
    return {
        "schema": 1,
        "task": "classification",
        "num_examples": num_examples,
        **{name: dict(zip(keys, values, strict=True)) for name, values in predictors.items()},
        "shifted": {},
        "ood": {},
    }


def regressed(coverage, num_examples=100):
    values = {"nll": 1.0, "crps": 0.5, "coverage_90": coverage, "chi_squared": 1.0}
    return {"schema": 1, "task": "regression", "num_examples": num_examples, "laplace": values}


def test_verdict_names_the_better_predictor_with_both_values():
    metrics = classified(map=(0.9, 0.97, 0.5, 0.07), laplace=(0.9, 0.91, 0.25, 0.02))
    assert summary.verdict(metrics)[0] == (
        "Laplace has the lower NLL (0.2500 against 0.5000) and the lower ECE "
        "(0.0200 against 0.0700)."
    )


def test_verdict_splits_the_honours():
    metrics = classified(map=(0.9, 0.9, 0.2, 0.07), laplace=(0.9, 0.9, 0.25, 0.02))
    assert summary.verdict(metrics)[0] == (
        "MAP has the lower NLL (0.2000 against 0.2500); "
        "Laplace has the lower ECE (0.0200 against 0.0700)."
    )


def test_verdict_of_three_predictors_is_superlative_and_of_equal_ones_says_so():
    three = classified(
        map=(0.9, 0.9, 0.5, 0.07), laplace=(0.9, 0.9, 0.2, 0.07), ensemble=(0.9, 0.9, 0.3, 0.09)
    )
    assert summary.verdict(three)[0] == (
        "Laplace has the lowest NLL (0.2000 against 0.3000); MAP and Laplace have the same ECE "
        "(0.0700)."
    )


@pytest.mark.parametrize(
    ("accuracy", "confidence", "judgement"),
    [
        (0.90, 0.97, "over-confident by 7.0 points"),
        (0.90, 0.85, "under-confident by 5.0 points"),
        (0.90, 0.91, "neither over- nor under-confident"),
    ],
)
def test_verdict_judges_confidence_against_accuracy(accuracy, confidence, judgement):
    metrics = classified(map=(accuracy, confidence, 0.2, 0.05))
    (sentence,) = summary.verdict(metrics)
    assert sentence.startswith(f"MAP is {judgement}")
    assert f"claims {confidence:.1%}" in sentence
    assert f"right in {accuracy:.1%}" in sentence


def test_verdict_asks_whether_the_gap_exceeds_two_standard_errors():
    claimed = 0.9
    for num_examples in (50, 5000):
        error = math.sqrt(claimed * (1 - claimed) / num_examples)
        within = classified(num_examples, map=(claimed - 1.9 * error, claimed, 0.2, 0.0))
        beyond = classified(num_examples, map=(claimed - 2.1 * error, claimed, 0.2, 0.0))
        assert "neither" in summary.verdict(within)[0]
        assert "over-confident by" in summary.verdict(beyond)[0]


@pytest.mark.parametrize(
    ("coverage", "judgement"),
    [
        (0.7, "over-confident by 20.0 points: its 90% intervals hold 70.0%"),
        (1.0, "under-confident by 10.0 points: its 90% intervals hold 100.0%"),
        (0.92, "neither over- nor under-confident"),
    ],
)
def test_verdict_judges_coverage(coverage, judgement):
    assert f"Laplace is {judgement}" in summary.verdict(regressed(coverage))[0]


def test_verdict_compares_on_the_other_sets_too():
    metrics = classified(map=(0.9, 0.9, 0.5, 0.07), laplace=(0.9, 0.9, 0.2, 0.03)) | {
        "shifted": {
            "rotated": {"map": {"nll": 2.0, "ece": 0.1}, "laplace": {"nll": 3.0, "ece": 0.2}}
        },
        "ood": {"noise": {"map": {"auroc": 0.8}, "laplace": {"auroc": 0.9}}},
    }
    assert summary.verdict(metrics)[-2:] == (
        "Shifted, rotated: MAP has the lower NLL (2.0000 against 3.0000) and the lower ECE "
        "(0.1000 against 0.2000).",
        "Out of distribution, noise: Laplace has the higher AUROC (0.9000 against 0.8000).",
    )


def test_a_value_that_is_not_finite_loses_and_is_named():
    metrics = classified(map=(0.9, 0.9, None, 0.02), laplace=(0.9, 0.9, 8.0, 0.02))
    assert "Laplace has the lower NLL (8.0000 against not finite)" in summary.verdict(metrics)[0]
    assert "not finite" in summary.text_table(metrics)


def test_better_values_are_those_nearest_the_goal():
    metrics = classified(map=(0.90, 0.9, 0.5, 0.07), laplace=(0.92, 0.9, -0.2, 0.07))
    (group,) = summary.groups(metrics)
    best = {row.metric.label: tuple(cell.best for cell in row.cells) for row in group.rows}
    assert best == {
        "Accuracy": (False, True),
        "Mean confidence": (False, False),
        "NLL": (False, True),
        "ECE": (False, False),
    }
    coverage = summary.METRICS["coverage_90"]
    assert coverage.loss(0.88) < coverage.loss(0.99)


def test_text_table_lines_up():
    metrics = classified(map=(0.9, 0.97, 0.5, 0.07), laplace=(0.9, 0.91, 1e-6, 0.02))
    lines = summary.text_table(metrics).splitlines()
    assert lines[0].split() == ["MAP", "Laplace"]
    assert lines[1] == "Test set"
    nll = next(line for line in lines if "NLL" in line)
    assert nll.split() == ["NLL", "0.5000", "1.00e-06", "*"]
    assert lines[0].index("MAP") + 3 == nll.index("0.5000") + 6
    assert lines[0].index("Laplace") + 7 == nll.index("1.00e-06") + 8
    assert lines[-1] == "1000 test examples; * is better"
