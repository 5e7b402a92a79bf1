"""Requirements are parsed, checked against the task, and fail in one line each."""

import pytest

from laplace_kit.eval.report.requirements import failures, parse_all

NUMBERS = {
    "predictors": ["map", "laplace"],
    "map": {"ece": 0.08, "nll": None, "accuracy": 0.9},
    "laplace": {"ece": 0.05, "nll": 0.25, "accuracy": 0.9},
}


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("ece<0.1", []),
        ("ece<0.05", ["map", "laplace"]),
        ("ece<=0.05", ["map"]),
        ("laplace/ece <= 5e-2", []),
        ("accuracy>=0.9", []),
        ("accuracy > 0.9", ["map", "laplace"]),
        ("nll<1", ["map"]),
        ("map/nll>-inf", ["map"]),
    ],
)
def test_conditions(text, failed):
    (required,) = parse_all([text])
    required.check(True, NUMBERS["predictors"])
    lines = failures([required], NUMBERS)
    assert [line.split(": ")[2].split("'s ")[0] for line in lines] == [
        {"map": "MAP", "laplace": "Laplace"}[name] for name in failed
    ]
    assert all(line.startswith(f"Failed: {required}: ") and "\n" not in line for line in lines)


def test_a_line_has_the_value():
    lines = failures(parse_all(["laplace/ece<0.01", "map/nll<1"]), NUMBERS)
    assert lines == [
        "Failed: laplace/ece<0.01: Laplace's ECE is 0.0500.",
        "Failed: map/nll<1: MAP's NLL is not finite.",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ece", r"'ece', expected a metric, one of <, <=, > and >=, and a number"),
        ("ece<five", r"'ece<five', expected a metric"),
        ("ece<nan", r"'ece<nan', expected a metric"),
        ("ece=0.1", r"'ece=0.1', expected a metric"),
        ("acuracy>0.5", r"metric 'acuracy' .*did you mean 'accuracy'\?"),
    ],
)
def test_what_is_no_requirement(text, message):
    with pytest.raises(ValueError, match=message):
        parse_all([text])


def test_metrics_of_the_other_task_and_unknown_predictors():
    rmse, other = parse_all(["rmse<1", "laplce/ece<1"])
    with pytest.raises(ValueError, match=r"'rmse<1' for classification, expected .*accuracy"):
        rmse.check(True, ["map"])
    rmse.check(False, ["map"])
    with pytest.raises(ValueError, match=r"\['map', 'laplace'\] \(did you mean 'laplace'\?\)"):
        other.check(True, ["map", "laplace"])


def test_areas_of_two_classes_can_be_required():
    (one,) = parse_all(["roc_auc>=0.9"])
    one.check(True, ["map"])
    numbers = {"predictors": ["map"], "map": {"roc_auc": 0.8}}
    assert failures([one], numbers) == [
        "Failed: roc_auc>=0.9: MAP's ROC AUC of the positive class is 0.8000."
    ]
    assert failures([one], {"predictors": ["map"], "map": {"roc_auc": 0.95}}) == []
    assert len(failures([one], {"predictors": ["map"], "map": {}})) == 1, "of three classes"
    with pytest.raises(ValueError, match="for regression"):
        one.check(False, ["map"])
