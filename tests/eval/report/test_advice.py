"""Advice follows from the numbers, and its code runs beside the page."""

import numpy as np
import pytest

from laplace_kit.eval import report
from laplace_kit.eval.report import ClassPredictions, RegressionPredictions
from laplace_kit.eval.report.advice import next_steps


def test_what_helps_significantly_is_told_with_code():
    found = next_steps(
        {
            "task": "classification",
            "map": {"nll": 0.5},
            "laplace": {"nll": 0.4},
            "recalibrated": {
                "map": {"factor": 1.42, "difference": [-0.1, -0.15, -0.05]},
                "laplace": {"factor": 1.01, "difference": [0.001, -0.01, 0.02]},
            },
        }
    )
    assert [step.text for step in found] == [
        "A temperature of 1.42 would lower the NLL of MAP from 0.5000 to 0.4000, a change of "
        "-0.1000 (-0.1500 to -0.0500), cross-fitted on this test set.",
        "No temperature lowers the NLL of Laplace significantly (cross-fitted on this test set): "
        "keep these predictions as they are.",
    ]
    assert not found[1].code
    assert next_steps({"task": "regression"}) == ()


@pytest.mark.parametrize("scale", [4, 0.0125])  # powers of 1/4 and of 80
def test_code_for_probabilities_runs_and_lowers_the_nll(scale, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 3))
    y = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    probs = np.exp(scale * logits)
    probs = (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)
    written = report.classification_report({"net": ClassPredictions(probs)}, y, tmp_path)
    (step,) = written.next_steps
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(step.code, namespace)
    after = -np.log(namespace["probs"][np.arange(500), y]).mean()
    difference, *_ = written.metrics["recalibrated"]["net"]["difference"]
    assert after == pytest.approx(written.metrics["net"]["nll"] + difference, rel=0.02)
    assert step.code.splitlines()[0] in written.index.read_text(encoding="utf-8")


def test_code_for_deviations_runs_and_is_right_on_average(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(300, 1))
    y = mean + 3 * rng.normal(size=mean.shape)
    given = {"net": RegressionPredictions(mean, np.ones_like(mean))}
    written = report.regression_report(given, y, tmp_path)
    (step,) = written.next_steps
    assert step.text.startswith("Standard deviations ")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(step.code, namespace)
    assert np.mean(((y - mean) / namespace["std"]) ** 2) == pytest.approx(1, rel=1e-3)


def test_a_posterior_is_told_how_to_recalibrate_itself():
    of = {"factor": 0.5, "difference": [-0.1, -0.15, -0.05]}
    *_, last = next_steps(
        {"task": "regression", "laplace": {"nll": 1.0}, "recalibrated": {"laplace": of}}
    )
    assert "recalibrate(la.predict(x_validation), y_validation)" in last.code
