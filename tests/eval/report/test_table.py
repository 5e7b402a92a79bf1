"""Tables say what the numbers say, on numbers chosen by hand."""

import math

import pytest

from laplace_kit.eval.report import table


def numbers(better=None, best=None, **predictors):
    """Return `metrics.json` of predictors given by (accuracy, nll, confidence)."""
    keys = ("accuracy", "nll", "confidence")
    values = {name: dict(zip(keys, of, strict=True)) for name, of in predictors.items()}
    around = {
        name: {key: [value - 0.5, value + 0.5] for key, value in of.items() if value is not None}
        for name, of in values.items()
    }
    differences = {name: better or {} for name in [*predictors][1:]}
    return {
        "task": "classification",
        "num_examples": 1000,
        "predictors": list(predictors),
        **values,
        "shifted": {},
        "ood": {},
        "bootstrap": {
            "level": 0.95,
            "test": {"intervals": around, "differences": differences, "best": best or {}},
            "shifted": {},
            "ood": {},
        },
    }


def test_only_what_is_significantly_better_is_marked():
    given = numbers(best={"nll": "laplace"}, map=(0.90, 0.5, 0.9), laplace=(0.92, -0.2, 0.9))
    (group,) = table.groups(given)
    best = {row.metric.label: tuple(cell.best for cell in row.cells) for row in group.rows}
    assert best == {
        "Accuracy": (False, False),
        "NLL": (False, True),
        "Mean confidence": (False, False),
    }
    coverage = table.METRICS["coverage_90"]
    assert coverage.loss(0.88) < coverage.loss(0.99)
    assert not coverage.is_monotone


def test_intervals_end_where_no_predictor_can_reach():
    ends = {key: table.METRICS[key].attainable(-0.1, 1.1) for key in table.METRICS}
    assert ends["accuracy"] == (-0.1, 1.0)
    assert ends["ece"] == (0.0, 1.1)
    assert ends["nll"] == ends["debiased_ce"] == ends["chi_squared"] == (-0.1, 1.1)


def test_values_equal_but_for_rounding_are_equal():
    assert table.number(9.7e-8) == table.number(-1e-8) == table.signed(-1.8e-8) == "0.0000"
    assert table.signed(2e-6) == "+2.00e-06"


def test_cells_hold_their_intervals():
    (group,) = table.groups(numbers(map=(0.9, 0.5, 0.9)))
    assert [cell.interval for cell in group.rows[0].cells] == ["0.4000 to 1.4000"]
    assert group.rows[0].changes == ()


@pytest.mark.parametrize(
    ("difference", "judgement"),
    [
        ([-0.1, -0.2, -0.01], "better"),
        ([0.1, 0.01, 0.2], "worse"),
        ([0.1, -0.01, 0.2], "not significant"),
    ],
)
def test_differences_are_judged_by_their_interval(difference, judgement):
    given = numbers({"nll": difference}, map=(0.9, 0.5, 0.9), laplace=(0.9, 0.4, 0.9))
    (group,) = table.groups(given)
    changes = {row.metric.label: row.changes for row in group.rows}
    assert changes["Accuracy"] == ()
    (change,) = changes["NLL"]
    assert (change.judgement, change.value) == (judgement, difference[0])
    assert change.text == f"{difference[0]:+.4f}"
    higher = table.METRICS["accuracy"]
    opposite = {"better": "worse", "worse": "better"}.get(judgement, judgement)
    assert higher.judged(difference) == opposite


def test_what_is_missing_or_not_finite_is_said():
    best = {"nll": "laplace"}
    given = numbers(best=best, map=(0.9, None, 0.9), laplace=(0.9, 8.0, 0.9))
    del given["map"]["confidence"]
    text = table.text_table(given)
    nll, confidence = (
        next(line for line in text.splitlines() if of in line) for of in ("NLL", "confi")
    )
    assert nll.split() == ["NLL", "not", "finite", "8.0000", "*"]
    assert confidence.split() == ["Mean", "confidence", "–", "0.9000"]


def test_text_table_lines_up():
    best = {"nll": "laplace"}
    given = numbers(best=best, map=(0.9, 0.5, 0.97), laplace=(0.9, 1e-6, 0.91))
    lines = table.text_table(given).splitlines()
    assert lines[0].split() == ["MAP", "Laplace"]
    assert lines[1] == "Test set"
    nll = next(line for line in lines if "NLL" in line)
    assert nll.split() == ["NLL", "0.5000", "1.00e-06", "*"]
    assert lines[0].index("MAP") + 3 == nll.index("0.5000") + 6
    assert lines[0].index("Laplace") + 7 == nll.index("1.00e-06") + 8
    assert lines[-1] == "1000 test examples; * is significantly better than the others"


def test_a_metric_has_one_name():
    labels = [metric.label for metric in table.METRICS.values()]
    assert len(set(labels)) == len(labels)


def test_nothing_has_no_sign():
    assert table.number(-0.0) == "0.0000"


@pytest.mark.parametrize(
    ("value", "error", "both", "alone"),
    [
        (140.8, 203.0, "140 ± 200", "140"),
        (140.8, 9.97, "141 ± 10", "141"),
        (-0.001, 0.1234, "0.00 ± 0.12", "0.00"),
        (3.14159, 0.00123, "3.1416 ± 0.0012", "3.1416"),
        (1.7e9 + 123.4, 30.0, "1700000123 ± 30", "1700000123"),
        (1.234e9, 2.5e8, "(1.23 ± 0.25)e+09", "1.23e+09"),
        (-2e-7, 1.26e-6, "(-0.2 ± 1.3)e-06", "-0.2e-06"),
        (5.25, 0.0, "5.25 ± 0", "5.25"),
        (5.25, math.inf, "5.25 ± inf", "5.25"),
    ],
)
def test_value_and_error_end_at_the_same_place(value, error, both, alone):
    assert table.with_error(value, error) == both
    assert table.rounded(value, error) == alone
