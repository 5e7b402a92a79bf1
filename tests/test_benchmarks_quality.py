"""The quality benchmarks train what they say, and score in the targets' own units."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.quality import classification, images, regression, targets
from benchmarks.quality.tables import Scores
from benchmarks.quality.training import (
    Recipe,
    Scale,
    init_mlp,
    nth,
    stack,
    train,
)


def squares(params, x, y):
    return 0.5 * (x @ params - y) ** 2


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def ridge(x, y, precision):
    return np.linalg.solve(x.T @ x + precision * np.eye(x.shape[1]), x.T @ y)


def test_scale_standardises_the_rows_it_is_made_of_and_leaves_constants_finite():
    rows = np.random.default_rng(0).normal(3.0, 2.0, (50, 2))
    rows[:, 1] = 7.0
    scaled = np.asarray(Scale.of(rows)(rows))
    np.testing.assert_allclose(scaled.mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), [1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(("batch_size", "tolerance"), [(40, 1e-4), (8, 3e-2)])
def test_training_finds_the_ridge_solution_of_every_split(batch_size, tolerance):
    """Splits differ in size and in prior precision; padding counts for nothing."""
    rng = np.random.default_rng(1)
    pairs = [(normal(rng, num, 3), normal(rng, num)) for num in (40, 25)]
    precision = jnp.asarray([0.5, 20.0])
    recipe = Recipe(num_steps=1500, batch_size=batch_size, learning_rate=2e-2)
    examples = stack(pairs)
    np.testing.assert_array_equal(examples.weight.sum(axis=1), [40, 25])
    found = train(squares, jnp.zeros((2, 3)), examples, precision, jax.random.key(0), recipe)
    for i, (x, y) in enumerate(pairs):
        expected = ridge(np.asarray(x), np.asarray(y), float(precision[i]))
        np.testing.assert_allclose(nth(found, i), expected, atol=tolerance)


def test_units_start_with_variance_one():
    (kernel, bias), _ = init_mlp(jax.random.key(0), (400, 300, 1))
    np.testing.assert_allclose(np.sqrt(400) * np.std(kernel), 1.0, rtol=0.01)
    assert not np.any(bias)


def test_mixture_has_the_moments_of_its_parts_together():
    means, variances = jnp.asarray([[0.0], [2.0], [4.0]]), jnp.asarray([[1.0], [2.0], [6.0]])
    mean, variance = regression._mixture(list(zip(means, variances, strict=True)))
    np.testing.assert_allclose(mean, [2.0])
    np.testing.assert_allclose(variance, [3.0 + 8.0 / 3.0], rtol=1e-6)


@pytest.mark.slow
def test_scores_are_in_the_targets_own_units(tmp_path, monkeypatch):
    """Targets ten times as large: the same networks, ten times the error, log 10 less density."""
    few = {name: regression.POST_HOC[name] for name in ("full", "diagonal")}  # each is compiled
    monkeypatch.setattr(regression, "POST_HOC", few)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 2)).astype(np.float32)
    y = np.sin(2 * x[:, :1]) + 0.1 * rng.normal(size=(40, 1))
    tests = rng.permutation(40)[:16].reshape(2, 8)
    np.savez(tmp_path / "uci_one.npz", x=x, y=y, test_index=tests)
    np.savez(tmp_path / "uci_ten.npz", x=x, y=10 * y, test_index=tests)
    np.savez(tmp_path / "uci_classes.npz", x=x, y=np.zeros(40, np.int32))
    setting = dataclasses.replace(
        regression.FULL,
        num_splits=1,
        num_starts=2,
        num_units=4,
        recipe=Recipe(num_steps=200, batch_size=16),
        num_refits=1,
    )
    scores = list(regression.run(tmp_path, setting))
    one, ten = ({s.method: s.values for s in scores if s.data_set == n} for n in ("one", "ten"))
    assert len(one) == len(ten) == len(scores) / 2 == 6
    assert set(targets.COMPARED) <= set(one)
    assert one["auto"] == one["full"]
    for method, values in one.items():
        assert np.isfinite(list(values.values())).all()
        shifted = np.asarray(values["log-likelihood"]) - np.log(10)
        np.testing.assert_allclose(ten[method]["log-likelihood"], shifted, rtol=1e-3)
        np.testing.assert_allclose(ten[method]["RMSE"], 10 * np.asarray(values["RMSE"]), rtol=1e-3)


# --- classification -------------------------------------------------------------------------------


def test_splits_are_disjoint_and_standardised_by_their_training_rows():
    x = np.random.default_rng(0).normal(3.0, 2.0, (40, 2))
    parts = classification.split(x, np.arange(40), seed=1)
    assert [len(rows) for rows, _ in parts] == [28, 6, 6]
    labels = np.concatenate([y for _, y in parts])
    np.testing.assert_array_equal(np.sort(labels), np.arange(40))
    np.testing.assert_allclose(parts.training[0].mean(axis=0), 0.0, atol=1e-5)


def test_rotation_by_a_right_angle_moves_pixels():
    x = np.random.default_rng(0).random((2, 5, 5, 1)).astype(np.float32)
    np.testing.assert_allclose(images.rotated(x, 90), np.rot90(x, axes=(1, 2)), atol=1e-6)


@pytest.mark.slow
def test_every_classifier_is_scored_and_none_that_is_tuned_is_worse_where_the_mode_is_overfitted():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    y = (x[:, 0] + rng.normal(size=200) > 0).astype(np.int32)
    splits = [classification.split(x, y, seed) for seed in range(2)]
    setting = classification.Setting(
        structures=("diagonal",), recipe=dataclasses.replace(classification.RECIPE, num_steps=500)
    )
    scores = {row.method: row for row in classification.scores("noise", splits, 0.01, setting)}
    assert list(scores) == [
        "MAP",
        "temperature scaling",
        "auto",
        "auto, training data alone",
        "diagonal",
        "last layer",
    ]
    losses = {method: np.mean(row.values["NLL"]) for method, row in scores.items()}
    assert all(losses[method] < losses["MAP"] for method in losses if method != "MAP")
    assert all(len(row.values["pooled ECE"]) == 1 for row in scores.values())


# --- targets --------------------------------------------------------------------------------------


def test_log_likelihoods_are_compared_with_the_literature():
    methods = {"auto": -1.3, "auto, mixture": -1.1, "evidence-trained": -1.25}
    rows = [
        Scores("yacht", method, {"log-likelihood": (mean - 0.1, mean + 0.1), "RMSE": (1.0, 1.0)})
        for method, mean in methods.items()
    ]
    line = targets.targets(rows).splitlines()[-1]
    assert line == "| yacht | -1.25 | -1.300 | -1.100 | -1.250 | auto, mixture; evidence-trained |"
    rows = [Scores("kin8nm", method, {"log-likelihood": (1.0,)}) for method in methods]
    assert targets.targets(rows).splitlines()[-1].endswith("| **none** |")


def of_classes(method, nll, error):
    return Scores("glass", method, {"NLL": nll, "ECE": (0.5, 0.5), "pooled ECE": (error,)})


@pytest.mark.parametrize(
    ("error", "verdict"), [(0.05, "yes"), (0.06, "**no**"), (0.2, "**no**"), (None, "small")]
)
def test_errors_of_classes_are_compared_with_the_mode(error, verdict):
    before = 0.1 if error else 0.02
    rows = [
        of_classes("MAP", (1.0, 2.0), before),
        of_classes("auto", (0.9, 1.7), error or 0.5),
    ]
    first, second = targets.targets(rows).split("\n\n")
    assert "| glass | 1.5000 | 1.3000 | -0.2000 ± 0.1000 | yes |" in first
    assert verdict in second.splitlines()[-1]


def test_another_library_is_compared_where_it_is_there():
    rows = [of_classes("MAP", (3.0,), 0.1), of_classes("auto", (1.1,), 0.1)]
    found = targets.targets([*rows, of_classes(targets.PEER, (1.0,), 0.1)])
    assert found.splitlines()[-1] == "| glass | 1.0000 | 1.1000 | +0.1000 | **no** |"
