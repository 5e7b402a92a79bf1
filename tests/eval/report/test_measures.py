"""The numbers of a report are those of the metrics, and their intervals those of the bootstrap."""

import json
import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.stats import norm

from laplace_kit.eval import metrics
from laplace_kit.eval.report import measures
from laplace_kit.eval.report.suites import classification_metrics, regression_metrics


def test_values_are_those_of_the_metrics(classified):
    predictions, y, written = classified
    for name, of in predictions.items():
        for found, probs, labels in (
            (written.metrics[name], of.probs, y),
            (written.metrics["shifted"]["rotated"][name], of.shifted["rotated"], y),
        ):
            expected = classification_metrics(probs, labels)
            expected["aurc"] = float(metrics.aurc(probs, labels))
            for key, value in expected.items():
                assert found[key] == pytest.approx(value, rel=2e-5, abs=1e-6), key


def test_regression_values_against_scipy(regressed):
    predictions, y, written = regressed
    for name, of in predictions.items():
        z = (y - of.mean) / of.std
        crps = of.std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
        expected = {
            "rmse": np.sqrt(np.mean((y - of.mean) ** 2)),
            "nll": -norm.logpdf(y, of.mean, of.std).sum(axis=1).mean(),
            "crps": crps.mean(),
            "coverage_90": (np.abs(z) <= norm.ppf(0.95)).mean(),
            "chi_squared": np.mean(z**2),
        }
        assert regression_metrics(of.mean, of.std, y) == pytest.approx(expected, rel=1e-4)
        expected["width_90"] = 2 * norm.ppf(0.95) * of.std.mean()
        found = {key: written.metrics[name][key] for key in expected}
        assert found == pytest.approx(expected, rel=1e-4)


def test_scores_separate_as_pairs_say(classified):
    predictions, _, written = classified
    for name, of in predictions.items():
        found = written.metrics["ood"]["noise"][name]
        pairs = {"auroc": (1 - of.probs.max(axis=1), 1 - of.ood["noise"].max(axis=1))}
        if of.epistemic is not None:
            pairs["auroc_epistemic"] = (of.epistemic, of.ood_epistemic["noise"])
        assert ("auroc_epistemic" in found) == ("auroc_epistemic" in pairs)
        for key, (inside, outside) in pairs.items():
            above = (outside[:, None] > inside).mean() + 0.5 * (outside[:, None] == inside).mean()
            assert found[key] == pytest.approx(above, rel=1e-5)


def test_one_interval_is_that_of_the_metric_alone(classified):
    predictions, y, written = classified
    alone = metrics.bootstrap(
        metrics.brier_score,
        predictions["map"].probs,
        y,
        key=jax.random.key(0),
        num_resamples=measures.NUM_RESAMPLES,
    )
    found = written.metrics["bootstrap"]["test"]["intervals"]["map"]["brier"]
    assert found == pytest.approx([float(alone.low), float(alone.high)], rel=1e-4)


def test_intervals_hold_their_values_and_differences_are_those_of_values(classified, regressed):
    for _, _, written in (classified, regressed):
        numbers = written.metrics
        sets = [({n: numbers[n] for n in numbers["predictors"]}, numbers["bootstrap"]["test"])]
        for kind in ("shifted", "ood"):
            for where, values in numbers.get(kind, {}).items():
                sets.append((values, numbers["bootstrap"][kind][where]))
        for values, bootstrap in sets:
            assert set(bootstrap["intervals"]) == set(values) == set(numbers["predictors"])
            assert set(bootstrap["differences"]) == set(numbers["predictors"][1:])
            for name, bounds in bootstrap["intervals"].items():
                assert set(bounds) == set(values[name])
                for key, (low, high) in bounds.items():
                    assert low <= values[name][key] <= high
            for name, differences in bootstrap["differences"].items():
                for key, (value, low, high) in differences.items():
                    assert low <= value <= high
                    first = values[numbers["predictors"][0]][key]
                    assert value == pytest.approx(values[name][key] - first, abs=1e-6)


def test_schema(classified, regressed):
    written = classified[-1].metrics
    assert list(written) == [
        *("schema", "task", "num_examples", "predictors", "map", "laplace", "ensemble"),
        *("shifted", "ood", "claims", "bootstrap"),
    ]
    assert (written["schema"], written["task"], written["num_examples"]) == (
        2,
        "classification",
        400,
    )
    assert set(written["bootstrap"]) == {"level", "num_resamples", "test", "shifted", "ood"}
    assert "shifted" not in regressed[-1].metrics
    described = [line.split("`")[1] for line in measures.__doc__.splitlines() if line[:3] == "| `"]
    assert set(described) == set(written) - {"map", "laplace", "ensemble"}


def test_claims_are_judged_by_what_chance_would_do(classified, regressed):
    predictions, y, written = classified
    probs = predictions["map"].probs.astype(float)
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == y
    z = (confidence.sum() - right.sum()) / math.sqrt((confidence * (1 - confidence)).sum())
    assert written.metrics["claims"]["map"] == pytest.approx(
        {"claimed": confidence.mean(), "kept": right.mean(), "p_value": 2 * norm.sf(abs(z))},
        rel=1e-5,
    )
    assert written.metrics["claims"]["laplace"]["p_value"] == pytest.approx(1, abs=1e-3)
    assert regressed[-1].metrics["claims"]["laplace"]["p_value"] > 0.05
    assert regressed[-1].metrics["claims"]["map"]["p_value"] < 1e-6


def test_certainty_is_calibrated_only_where_it_is_right():
    certain = np.eye(2)[[0, 1, 1]]
    right = measures._claim_of_classes(certain, np.array([0, 1, 1]))
    wrong = measures._claim_of_classes(certain, np.array([0, 1, 0]))
    assert (right["p_value"], wrong["p_value"]) == (1.0, 0.0)


def test_overflow_becomes_null_without_an_interval(regressed):
    predictions, y, _ = regressed
    huge = replace(predictions["laplace"], mean=np.full(y.shape, 1e30, np.float32))
    found = measures.measure_regression({"map": predictions["map"], "laplace": huge}, y)
    json.dumps(found, allow_nan=False)
    assert found["laplace"]["nll"] is None
    bootstrap = found["bootstrap"]["test"]
    assert "nll" not in bootstrap["intervals"]["laplace"]
    assert "nll" not in bootstrap["differences"]["laplace"]
    assert "nll" in bootstrap["intervals"]["map"]
