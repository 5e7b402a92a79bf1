"""The numbers of a report are those of the metrics, and their intervals those of the bootstrap."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom, norm

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
        # In float64, as the arrays are.
        assert regression_metrics(of.mean, of.std, y) == pytest.approx(expected, rel=1e-10)
        expected["width_90"] = 2 * norm.ppf(0.95) * of.std.mean()
        found = {key: written.metrics[name][key] for key in expected}
        assert found == pytest.approx(expected, rel=1e-10)


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
    chances = np.ones(1)
    for claim in confidence:
        chances = np.convolve(chances, [1 - claim, claim])
    assert right.mean() < confidence.mean()
    assert written.metrics["claims"]["map"] == pytest.approx(
        {
            "claimed": confidence.mean(),
            "kept": right.mean(),
            "p_value": 2 * chances[: right.sum() + 1].sum(),
        },
        abs=1e-12,
    )
    expected = binom.pmf(np.arange(8), 7, 0.3)
    found = measures._poisson_binomial(np.full(7, 0.3))
    np.testing.assert_allclose(found, [*expected, *[0.0] * (len(found) - 8)], atol=1e-14)
    assert written.metrics["claims"]["laplace"]["p_value"] == pytest.approx(1, abs=1e-3)
    assert regressed[-1].metrics["claims"]["laplace"]["p_value"] > 0.05
    assert regressed[-1].metrics["claims"]["map"]["p_value"] < 1e-6


def test_certainty_is_calibrated_only_where_it_is_right():
    certain = np.eye(2)[[0, 1, 1]]
    right = measures._accuracy_claim(certain, np.array([0, 1, 1]))
    wrong = measures._accuracy_claim(certain, np.array([0, 1, 0]))
    assert (right["p_value"], wrong["p_value"]) == (1.0, 0.0)


@pytest.mark.parametrize("num", [50, 500, 5000])
def test_miscalibration_is_told_in_sign_and_size(num):
    rng = np.random.default_rng(num)
    logits = rng.normal(0.0, 1.5, (num, 5))
    honest = softmax(logits, axis=1)
    y = (honest.cumsum(axis=1) > rng.uniform(size=(num, 1))).argmax(axis=1)
    # A temperature keeps what is most probable: the gap is that between confidences, and chance.
    for temperature, sign in ((0.5, 1), (2.0, -1)):
        probs = softmax(logits / temperature, axis=1)
        found = measures._accuracy_claim(probs, y)
        expected = (probs.max(axis=1) - honest.max(axis=1)).mean()
        assert np.sign(expected) == sign
        assert found["claimed"] - found["kept"] == pytest.approx(expected, abs=1.5 / num**0.5)
        assert found["p_value"] < 0.05 or num == 50
    targets = rng.normal(size=(num, 1))
    for scale, sign in ((0.5, 1), (2.0, -1)):
        kept = (np.abs(targets) <= norm.ppf(0.95) * scale).mean()
        found = measures._coverage_claim({"coverage_90": kept}, num)
        expected = 0.9 - (2 * norm.cdf(norm.ppf(0.95) * scale) - 1)
        assert np.sign(expected) == sign
        assert found["claimed"] - found["kept"] == pytest.approx(expected, abs=1.5 / num**0.5)
        assert found["p_value"] < 0.05


@pytest.mark.parametrize(("num", "doubt"), [(50, 1e-3), (50, 3e-3), (500, 1e-4), (500, 3e-3)])
def test_honest_predictors_are_seldom_found_guilty(num, doubt):
    rng = np.random.default_rng(0)
    probs = np.full((num, 2), [1.0 - doubt, doubt])
    p_values = [
        measures._accuracy_claim(probs, (rng.uniform(size=num) < doubt).astype(int))["p_value"]
        for _ in range(500)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.06
    assert np.mean(np.array(p_values) < 0.001) < 0.004


def test_soft_labels_are_right_by_what_they_give():
    labels = np.random.default_rng(0).dirichlet(np.ones(3), 500)
    found = measures._accuracy_claim(labels, labels)
    assert found["kept"] == pytest.approx(found["claimed"])
    assert found["p_value"] == pytest.approx(1.0)
    assert measures._accuracy_claim(labels, labels.argmax(axis=1))["p_value"] < 1e-6


def test_overflow_becomes_null_without_an_interval(regressed):
    predictions, y, _ = regressed
    huge = replace(predictions["laplace"], mean=np.full(y.shape, 1e200))
    found = measures.measure_regression({"map": predictions["map"], "laplace": huge}, y)
    json.dumps(found, allow_nan=False)
    assert found["laplace"]["nll"] is None
    bootstrap = found["bootstrap"]["test"]
    assert "nll" not in bootstrap["intervals"]["laplace"]
    assert "nll" not in bootstrap["differences"]["laplace"]
    assert "nll" in bootstrap["intervals"]["map"]
