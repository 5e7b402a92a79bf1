"""The report is given what every predictor says about the same inputs, one row for each label."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from laplace_kit.eval.evaluation import evaluate
from laplace_kit.eval.outputs import from_gaussian
from laplace_kit.eval.predictive import Predictive
from laplace_kit.eval.report import ClassPredictions, RegressionPredictions, Report, compare
from laplace_kit.eval.report.compare import compare_report
from laplace_kit.eval.report.files import read_predictions
from laplace_kit.eval.report.look import Look
from laplace_kit.eval.report.measures import measure_classification
from laplace_kit.likelihood import Bernoulli, Categorical, FromLoss, Gaussian, Masked, Poisson
from laplace_kit.targets import (
    BinaryTargets,
    ClassTargets,
    NormalTargets,
    Outputs,
    Uncertainty,
)
from laplace_kit.tree import pytree_dataclass

N = 30
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 2)).astype(np.float32)


def classifier(temperature: float, *, positions: int = 0):
    """Return a predictor of three classes, at several positions if wanted."""

    def predict(x):
        f = np.stack([x[:, 0], x[:, 1], -x[:, 0]], axis=1) / temperature
        f = np.stack([f] * positions, axis=1) if positions else f
        probs = np.exp(f) / np.exp(f).sum(axis=-1, keepdims=True)
        outputs = Outputs(jnp.asarray(f), jnp.ones(f.shape))
        return Predictive(ClassTargets(outputs, jnp.asarray(probs)), Categorical())

    return predict


def regressor(std: float):
    def predict(x):
        mean, var = jnp.asarray(x), jnp.full(x.shape, std**2)
        return Predictive(NormalTargets(Outputs(mean, var / 4), 3 * var / 4))

    return predict


def report(predict, likelihood, y, directory="nowhere", **sets):
    options = {"look": Look("A title"), "card": {"structure": "Full"}} | sets
    y = jax.tree.map(jnp.asarray, y)
    return compare_report(predict, likelihood, X, y, directory, **options)


@pytest.fixture
def handed_over(monkeypatch):
    """Catch what the report would be written from."""
    calls = []

    def catch(*args, **options):
        calls.append((args, options))
        return Report(Path("nowhere"), {}, ())

    monkeypatch.setattr(compare, "classification_report", catch)
    monkeypatch.setattr(compare, "regression_report", catch)
    return calls


@pytest.mark.parametrize("positions", [0, 2])
def test_classification_with_shifted_and_foreign_inputs(positions, handed_over):
    y = RNG.integers(0, 3, (N, positions) if positions else N)
    predict = {n: classifier(t, positions=positions) for n, t in (("map", 0.5), ("laplace", 2))}
    shifted = {"half": (X[:10] / 2, jnp.asarray(y[:10]))}
    report(predict, Categorical(), y, shifted=shifted, ood={"far": 5 * X[:8], "near": X[:4]})
    [((predictions, targets, directory), options)] = handed_over
    np.testing.assert_array_equal(targets, y.ravel())
    np.testing.assert_array_equal(options["shifted_labels"]["half"], y[:10].ravel())
    assert (directory, options["title"]) == ("nowhere", "A title")
    for name, predictor in predict.items():
        given = predictions[name]
        np.testing.assert_array_equal(given.probs, predictor(X).probs.reshape(-1, 3))
        half = predictor(X[:10] / 2).probs.reshape(-1, 3)
        np.testing.assert_array_equal(given.shifted["half"], half)
        far = predictor(5 * X[:8]).probs.reshape(-1, 3)
        np.testing.assert_array_equal(given.ood["far"], far)
        assert set(given.ood) == {"far", "near"}
        parts = predictor(X).uncertainty(jax.random.key(0))
        np.testing.assert_array_equal(given.epistemic, parts.mutual_information.ravel())
        np.testing.assert_array_equal(given.aleatoric, parts.expected_entropy.ravel())
        assert given.log_probs is None, "as this predictive knows its probabilities alone"
        assert {where: len(part) for where, part in given.ood_epistemic.items()} == {
            where: len(part) for where, part in given.ood.items()
        }
    assert (options["x"] is X) == (not positions)


def test_binary_labels_are_two_classes(handed_over):
    def predict(x):
        outputs = Outputs(jnp.asarray(x), jnp.ones(x.shape))
        return Predictive(BinaryTargets(outputs, jnp.asarray(1 / (1 + np.exp(-x)))))

    y = RNG.integers(0, 2, (N, 2))
    report({"laplace": predict}, Bernoulli(), y, ood={"far": 9 * X})
    [((predictions, targets, _), _)] = handed_over
    np.testing.assert_array_equal(targets, y.ravel())
    np.testing.assert_array_equal(predictions["laplace"].probs[:, 1], predict(X).probs.ravel())
    np.testing.assert_allclose(predictions["laplace"].probs.sum(axis=1), 1, rtol=1e-6)
    assert predictions["laplace"].ood["far"].shape == (2 * N, 2)


def test_labels_whose_entropies_are_unknown_have_no_parts(handed_over):
    """The variances of a user's own labels are enough."""

    @pytree_dataclass()
    class Labels(ClassTargets):
        def uncertainty(self, key=None, *, num_samples=1000):
            return Uncertainty(self.variance, 0 * self.variance)

    def predict(x):
        found = classifier(1.0)(x)
        return Predictive(Labels(found.targets.outputs, found.probs), Categorical())

    report({"laplace": predict}, Categorical(), RNG.integers(0, 3, N), ood={"far": 9 * X})
    [((predictions, *_), _)] = handed_over
    assert predictions["laplace"].epistemic is predictions["laplace"].aleatoric is None
    assert not predictions["laplace"].ood_epistemic


@pytest.mark.parametrize("likelihood", [Gaussian(), Poisson()])
def test_regression_and_counts_have_deviations(likelihood, handed_over):
    report({"map": regressor(0.3), "laplace": regressor(0.6)}, likelihood, np.abs(np.rint(X)))
    [((predictions, targets, _), options)] = handed_over
    np.testing.assert_array_equal(targets, np.abs(np.rint(X)))
    np.testing.assert_array_equal(options["x"], X)
    np.testing.assert_allclose(predictions["laplace"].std, 0.6, rtol=1e-6)
    np.testing.assert_allclose(predictions["laplace"].epistemic_std, 0.3, rtol=1e-6)


def test_what_is_missing_is_left_out(handed_over):
    mask = RNG.permutation(2 * N).reshape(X.shape) < N  # as many entries as examples
    report({"map": regressor(0.3)}, Masked(Gaussian()), (X, mask))
    y, seen = RNG.integers(0, 2, X.shape), jnp.asarray(mask)

    def predict(x):
        outputs = Outputs(jnp.asarray(x), jnp.zeros(x.shape))
        return Predictive(BinaryTargets(outputs, jnp.asarray(1 / (1 + np.exp(-x)))))

    report({"map": predict}, Masked(Bernoulli()), (y, seen), ood={"far": 9 * X})
    regression, classification = (args for args, _ in handed_over)
    np.testing.assert_array_equal(regression[1][:, 0], X[mask])
    np.testing.assert_array_equal(regression[0]["map"].mean[:, 0], X[mask])
    assert handed_over[0][1]["x"] is None
    np.testing.assert_array_equal(classification[1], y[mask])
    np.testing.assert_array_equal(classification[0]["map"].probs[:, 1], predict(X).probs[mask])
    assert handed_over[1][1]["x"] is None


def test_inputs_of_missing_labels_are_left_out(handed_over):
    mask, y = np.arange(N) % 3 > 0, RNG.integers(0, 3, N)
    report({"map": classifier(1.0)}, Masked(Categorical()), (y, mask))
    np.testing.assert_array_equal(handed_over[0][1]["x"], X[mask])


def test_other_predictions_of_every_kind(handed_over):
    y = RNG.integers(0, 3, N)
    probs = np.asarray(classifier(3)(X).probs)

    class Other:
        def predict(self, x):
            return classifier(4)(x)

    whole = ClassPredictions(probs, epistemic=np.zeros(N))
    others = {"array": probs, "whole": whole, "model": Other()}
    predict = {"map": classifier(1)}
    report(predict, Categorical(), y, compare=others, ood={"far": 5 * X})
    [((predictions, _, _), _)] = handed_over
    assert set(predictions) == {"map", "array", "whole", "model"}
    np.testing.assert_array_equal(predictions["array"].probs, probs)
    assert predictions["array"].ood == {}
    assert predictions["whole"] is whole
    np.testing.assert_array_equal(predictions["model"].probs, classifier(4)(X).probs)
    assert set(predictions["model"].ood) == {"far"}


def test_other_regressors(handed_over):
    mask = RNG.integers(0, 2, X.shape).astype(bool)
    whole = RegressionPredictions(X, np.ones_like(X))
    others = {"pair": (2 * X, np.full(X.shape, 0.5, np.float32)), "whole": whole}
    report({"map": regressor(0.3)}, Masked(Gaussian()), (X, mask), compare=others)
    [((predictions, _, _), _)] = handed_over
    np.testing.assert_array_equal(predictions["pair"].mean[:, 0], 2 * X[mask])
    np.testing.assert_array_equal(predictions["pair"].std, 0.5)
    assert predictions["pair"].epistemic_std is None
    assert predictions["whole"] is whole


def test_certain_weights_have_no_epistemic_part(handed_over):
    def at_mode(x):
        zero = jnp.zeros(x.shape)
        mean = jnp.asarray(x)
        return Predictive(NormalTargets(Outputs(mean, zero), zero + 1))

    report({"map": at_mode}, Gaussian(), X)
    assert handed_over[0][0][0]["map"].epistemic_std is None


@pytest.mark.parametrize(
    ("likelihood", "predict", "y", "other", "message"),
    [
        (
            Categorical(),
            classifier(1),
            np.zeros(N, int),
            np.zeros((N, 2)),
            r"'other' of shape \(30, 2\) in compare=, expected probabilities of shape \(30, 3\)",
        ),
        (
            Gaussian(),
            regressor(1.0),
            X,
            (X, X[:, :1]),
            r"'other' of shapes .*\(30, 1\).* in compare=, expected a pair .* of shape \(30, 2\)",
        ),
        (Gaussian(), regressor(1.0), X, X, r"'other' of ndarray in compare=, expected a pair"),
    ],
)
def test_others_that_do_not_fit(likelihood, predict, y, other, message):
    with pytest.raises(ValueError, match=message):
        report({"map": predict}, likelihood, y, compare={"other": other})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compare": {"deep ensemble": np.ones((N, 3))}}, "name 'deep ensemble'"),
        ({"ood": {"far": (X, X)}}, r"set 'far' .*\(\(30, 2\), \(30, 2\)\), expected \(30, 2\)"),
        ({"ood": {"far": X[0]}}, r"set 'far' .*shape \(2,\), expected \(30, 2\)"),
        ({"shifted": {"far": (X[None], X)}}, r"'far' .*shape \(1, 30, 2\), expected \(30, 2\)"),
        ({"directory": __file__}, "Found a file at"),
    ],
)
def test_what_is_refused_before_predicting(options, message):
    def never(x):
        raise AssertionError("this should have been refused before")

    with pytest.raises(ValueError, match=message):
        report({"map": never}, Categorical(), np.zeros(N, int), **options)


def test_errors_of_a_model_name_the_set():
    def narrow(x):
        if x.shape[1] != 2:
            raise TypeError("as the model has it")
        return classifier(1.0)(x)

    with pytest.raises(TypeError, match="as the model has it") as caught:
        report({"map": narrow}, Categorical(), np.zeros(N, int), ood={"far": np.ones((4, 5))})
    assert caught.value.__notes__ == ["This is about the predictor 'map' on 'far'."]


def test_a_name_that_is_taken():
    message = r"\['map'\] in compare=, expected names other than \['map'\]"
    with pytest.raises(ValueError, match=message):
        report({"map": regressor(1.0)}, Gaussian(), X, compare={"map": (X, X)})


def test_the_numbers_written_are_those_of_evaluate(tmp_path):
    y = X + 0.5 * RNG.normal(size=X.shape).astype(np.float32)
    predict = regressor(0.6)
    found = report({"laplace": predict}, Gaussian(), y, tmp_path)
    expected = evaluate(Gaussian(), predict(X), jnp.asarray(y))
    assert {key: found.metrics["laplace"][key] for key in expected} == pytest.approx(
        expected, rel=1e-5
    )
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == found.metrics
    assert "A title" in found.index.read_text(encoding="utf-8")


def test_sets_that_only_classification_knows():
    message = r"\(\['far'\]\) for a Gaussian likelihood, expected them for classification only"
    with pytest.raises(ValueError, match=message) as error:
        report({"map": regressor(1.0)}, Gaussian(), X, ood={"far": X})
    assert "write a report for each set instead" in str(error.value)


def test_a_likelihood_without_a_predictive_distribution():
    likelihood = FromLoss(lambda f, y: jnp.sum((f - y) ** 2))
    outputs = Outputs(jnp.asarray(X), jnp.ones(X.shape))
    predict = {"map": lambda x: Predictive(likelihood.targets(outputs))}
    with pytest.raises(TypeError, match=r"FromLoss likelihood.*expected Gaussian.*la\.evaluate"):
        report(predict, likelihood, X)


# --- what the outputs know, and probabilities do not ----------------------------------------------


def at_outputs(likelihood, spread):
    """Return a predictor whose outputs are Gaussian about the inputs."""

    def predict(x):
        f = jnp.asarray(x)
        var = jnp.full_like(f, spread)
        return from_gaussian(likelihood, f, var, None, link="probit", key=None, num_samples=2)

    return predict


def test_parts_of_the_entropy_are_those_of_one_distribution(tmp_path):
    """Two logits that move apart: the probit knows neither that nor an entropy with such parts."""
    x, spread = np.linspace(-6, 6, 60).astype(np.float32), 4.0

    def predict(x):
        f = jnp.stack([-x / 2, x / 2], axis=1)
        cov = jnp.broadcast_to(spread * jnp.array([[1.0, -1.0], [-1.0, 1.0]]), (len(x), 2, 2))
        moments = (f, jnp.full_like(f, spread), cov)
        return from_gaussian(Categorical(), *moments, link="probit", key=None, num_samples=2)

    y = jnp.asarray((x > 0).astype(int))
    found = compare_report({"laplace": predict}, Categorical(), jnp.asarray(x), y, tmp_path)
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    p = special.expit(x[:, None].astype(float) + 2 * np.sqrt(spread) * nodes)
    weights = weights / weights.sum()
    expected, mean = (special.entr(p) + special.entr(1 - p)) @ weights, p @ weights
    whole = special.entr(mean) + special.entr(1 - mean)
    with np.load(tmp_path / "predictions.npz") as stored:
        epistemic, aleatoric = stored["laplace/epistemic"], stored["laplace/aleatoric"]
        of_link = special.entr(stored["laplace/probs"].astype(float)).sum(axis=1)
    np.testing.assert_allclose(aleatoric, expected, atol=0.04)  # of 1000 draws
    np.testing.assert_allclose(epistemic, whole - expected, atol=0.06)
    assert np.sum(epistemic > of_link) > 20, "these were clipped, and the share was above one"
    share = re.search(
        r"Laplace, test set: epistemic share of the entropy (\S+?)<",
        found.index.read_text(encoding="utf-8"),
    )[1]
    assert float(share) == pytest.approx((whole - expected).sum() / whole.sum(), abs=0.02)


@pytest.mark.parametrize("kind", ["several", "binary"])
def test_losses_of_saturated_predictors_are_exact_everywhere(kind, tmp_path):
    """In values and intervals, on shifted sets, and of the archive that is read again."""
    f = 300 * X if kind == "several" else 100 * X[:, 0]
    likelihood = Categorical() if kind == "several" else Bernoulli()
    y = RNG.integers(0, 2, N)
    predict = {"map": at_outputs(likelihood, 0.0), "laplace": at_outputs(likelihood, 4.0)}
    found = compare_report(
        predict,
        likelihood,
        f,
        jnp.asarray(y),
        tmp_path,
        shifted={"twice": (2 * f, jnp.asarray(y))},
        compare={"given": np.asarray(predict["map"](f).probs)},
    )
    scale = 1 / np.sqrt(1 + np.pi / 8 * 4.0)
    gap = (f[:, 1] - f[:, 0] if kind == "several" else f).astype(float)
    losses = np.logaddexp(0, np.where(y == 1, -gap, gap))
    assert losses.max() > 100, "beyond 87, the largest loss of probabilities in float32"
    assert found.metrics["map"]["nll"] == pytest.approx(losses.mean(), rel=1e-5)
    tempered = np.logaddexp(0, scale * np.where(y == 1, -gap, gap)).mean()
    assert found.metrics["laplace"]["nll"] == pytest.approx(tempered, rel=1e-5)
    twice = np.logaddexp(0, 2 * np.where(y == 1, -gap, gap)).mean()
    assert found.metrics["shifted"]["twice"]["map"]["nll"] == pytest.approx(twice, rel=1e-5)
    # Probabilities alone have rounded to zero for some labels.
    p = np.asarray(predict["map"](f).probs)
    of_label = p[np.arange(N), y] if kind == "several" else np.where(y == 1, p, 1 - p)
    assert found.metrics["given"]["nll"] is None
    assert found.metrics["claims"]["given"]["impossible"] == (of_label == 0).sum() > 0
    assert any("probability zero, so that its NLL is infinite" in line for line in found.verdict)
    read_again = read_predictions(tmp_path / "predictions.npz")
    again = measure_classification(read_again.predictions, read_again.y, read_again.shifted_labels)
    for name in ("map", "laplace"):
        assert again[name]["nll"] == pytest.approx(found.metrics[name]["nll"], rel=1e-6)


@pytest.mark.parametrize("positions", [0, 2])
def test_groups_of_examples_become_those_of_labels(positions, handed_over):
    y = RNG.integers(0, 3, (N, positions) if positions else N)
    mask = np.arange(y.size).reshape(y.shape) % 4 > 0
    site = np.where(X[:, 1] > 0, "north", "south")
    predict = {"map": classifier(0.5, positions=positions)}
    report(predict, Masked(Categorical()), (y, mask), groups={"site": site})
    [(_, options)] = handed_over
    each = np.repeat(site, positions).reshape(y.shape) if positions else site
    assert options["groups"]["site"].tolist() == each[mask].tolist()


@pytest.mark.parametrize("missing", [2, 3])  # half of two: as many rows as examples
def test_groups_of_numbers_are_those_of_rows(missing, handed_over):
    mask, age = np.arange(2 * N).reshape(N, 2) % 6 >= missing, np.arange(N) % 4
    report({"map": regressor(1.0)}, Gaussian(), X, groups=age)
    report({"map": regressor(1.0)}, Masked(Gaussian()), (X, mask), groups=age)
    plain, masked = (options["groups"]["group"].tolist() for _, options in handed_over)
    assert plain == age.tolist()
    assert masked == np.repeat(age, 2).reshape(N, 2)[mask].tolist()
    with pytest.raises(ValueError, match=r"Found groups of shape \(3,\) for 30 examples"):
        report({"map": regressor(1.0)}, Gaussian(), X, groups=[1, 2, 3])
