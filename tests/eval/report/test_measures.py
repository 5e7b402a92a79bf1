"""The numbers of a report are those of the metrics, and their intervals those of the bootstrap."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from laplace_kit.eval import metrics
from laplace_kit.eval.report import ClassPredictions, RegressionPredictions, measures
from laplace_kit.eval.report.registry import METRICS
from laplace_kit.eval.report.suites import classification_metrics, regression_metrics
from tests.twins import compilations


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


def test_one_interval_is_that_of_resampled_means(classified):
    """The first chunk of draws holds all resamples of so few examples."""
    predictions, y, written = classified
    squares = np.square(predictions["map"].probs.astype(float) - np.eye(3)[y]).sum(axis=1)
    rng = np.random.default_rng(np.random.SeedSequence(0).spawn(1)[0])
    drawn = rng.integers(0, len(y), (measures.NUM_RESAMPLES, len(y)), np.int32)
    replicates = squares[drawn].mean(axis=1)
    ends = np.quantile(replicates, [0.025, 0.975]) + squares.mean() - replicates.mean()
    found = written.metrics["bootstrap"]["test"]["intervals"]["map"]["brier"]
    assert found == pytest.approx(ends.tolist(), rel=1e-9)
    expected = squares.std() / np.sqrt(len(y)) * 1.96 * np.array([-1, 1]) + squares.mean()
    assert found == pytest.approx(expected.tolist(), rel=0.06)


def test_the_seed_draws_the_resamples(regressed):
    predictions, y, written = regressed
    again = measures.measure_regression(predictions, y, seed=0)
    other = measures.measure_regression(predictions, y, seed=1)
    assert {key: written.metrics[key] for key in again} == again
    assert other["seed"] == 1
    assert other["laplace"] == again["laplace"]
    assert other["bootstrap"]["test"]["intervals"] != again["bootstrap"]["test"]["intervals"]


def assert_close(found, expected):
    """Assert that two contents of `metrics.json` are equal but for rounding."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        if isinstance(ours, str):
            assert ours == theirs
        else:
            # Probabilities in float32 are summed in float32 for the class-wise error.
            assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-8)


def with_weights(of, chosen):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[chosen], of)


@pytest.mark.parametrize("kind", ["classified", "regressed"])
def test_whole_weights_are_repeated_rows_in_values_intervals_and_claims(kind, request):
    predictions, y, _ = request.getfixturevalue(kind)
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 3, len(y))
    again = np.repeat(np.arange(len(y)), weights)
    if kind == "classified":
        predictions = {  # all sets are for the examples of the test set, or have none
            name: ClassPredictions(of.probs, of.shifted, epistemic=of.epistemic)
            for name, of in predictions.items()
        }
        repeated = {name: with_weights(of, again) for name, of in predictions.items()}
        options = {"weights": weights, "shifted_weights": {"rotated": weights}}
        found = measures.measure_classification(predictions, y, {"rotated": y}, **options)
        expected = measures.measure_classification(repeated, y[again], {"rotated": y[again]})
    else:
        repeated = {name: with_weights(of, again) for name, of in predictions.items()}
        found = measures.measure_regression(predictions, y, weights=weights)
        expected = measures.measure_regression(repeated, y[again])
    assert (found.pop("num_examples"), expected.pop("num_examples")) == (
        np.count_nonzero(weights),
        weights.sum(),
    )
    assert_close(found, expected)


def test_proportions_do_not_depend_on_their_scale_and_can_be_any_numbers(regressed):
    predictions, y, _ = regressed
    weights = np.random.default_rng(0).uniform(size=len(y))
    found, scaled = (
        measures.measure_regression(predictions, y, weights=of) for of in (weights, 3.7 * weights)
    )
    of = predictions["laplace"]
    squares = np.square(y - of.mean)[:, 0]
    assert found["laplace"]["rmse"] == pytest.approx(np.average(squares, weights=weights) ** 0.5)
    assert_close(found, scaled)
    # The standard error of a weighted mean, by the linearisation.
    error = np.sqrt(np.sum(weights**2 * (squares - np.average(squares, weights=weights)) ** 2)) / (
        weights.sum() * 2 * found["laplace"]["rmse"]
    )
    low, high = found["bootstrap"]["test"]["intervals"]["laplace"]["rmse"]
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.25)


def test_weights_count_in_detection_too(classified):
    predictions, y, _ = classified
    weights = np.random.default_rng(0).integers(0, 3, len(y))
    again = np.repeat(np.arange(len(y)), weights)
    of = predictions["laplace"]
    found = measures.measure_classification({"laplace": of}, y, {}, weights=weights)
    inside, outside = 1 - of.probs.max(axis=1)[again], 1 - of.ood["noise"].max(axis=1)
    scores = np.concatenate([inside, outside])
    truth = np.repeat([0, 1], [len(inside), len(outside)])
    auroc, aupr = roc_auc_score(truth, scores), average_precision_score(truth, scores)
    assert found["ood"]["noise"]["laplace"]["auroc"] == pytest.approx(auroc, rel=1e-6)
    assert found["ood"]["noise"]["laplace"]["aupr"] == pytest.approx(aupr, rel=1e-6)


def test_nothing_is_compiled_for_any_number_of_examples():
    rng = np.random.default_rng(0)
    with compilations() as programs:
        for num in (37, 52):
            probs, y = rng.dirichlet(np.ones(3), num), rng.integers(0, 3, num)
            of = ClassPredictions(probs, ood={"far": probs[:20]}, epistemic=0.0 * y)
            measures.measure_classification({"a": of, "b": of}, y, {})
            mean = rng.normal(size=(num, 1))
            normal = RegressionPredictions(mean, np.ones_like(mean))
            measures.measure_regression({"a": normal}, 0 * mean)
    assert programs == []


def test_best_is_only_what_is_significantly_better_than_every_other(classified):
    numbers = classified[-1].metrics
    bootstrap = numbers["bootstrap"]["test"]
    assert bootstrap["best"]["nll"] == "laplace"
    assert "accuracy" not in bootstrap["best"], "as all predict the same classes"
    for key, name in bootstrap["best"].items():
        for other, differences in bootstrap["differences"].items():
            if other == name or name == numbers["predictors"][0]:
                assert METRICS[key].judged(differences[key]) != "not significant"


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
        *("schema", "task", "num_examples", "seed", "predictors", "map", "laplace", "ensemble"),
        *("shifted", "ood", "claims", "bootstrap", "num_classes", "risk_control"),
        *("recalibrated", "sections", "made"),
    ]
    assert (written["schema"], written["task"], written["num_examples"]) == (
        3,
        "classification",
        400,
    )
    assert set(written["bootstrap"]) == {"level", "num_resamples", "test", "shifted", "ood"}
    assert "shifted" not in regressed[-1].metrics
    described = [line.split("`")[1] for line in measures.__doc__.splitlines() if line[:3] == "| `"]
    assert set(described) == set(written) - {"map", "laplace", "ensemble"}


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
