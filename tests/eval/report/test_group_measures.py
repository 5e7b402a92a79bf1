"""Gaps between groups: the level of their tests for any number of groups, and what they find."""

import numpy as np
import pytest

from laplace_kit.eval.grouping import Groups
from laplace_kit.eval.report import ClassPredictions, group_measures
from laplace_kit.eval.report.group_measures import _gaps, measure_groups, worst_group
from laplace_kit.eval.statistics.weighting import checked


def random_groups(rng, num, sizes):
    return Groups(
        tuple(range(len(sizes))), rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_level_over_all_groups_of_skewed_and_rare_losses(monkeypatch, weighted):
    """Errors of 10% in groups of 8 and more, and heavy-tailed losses, in 300 data sets."""
    monkeypatch.setattr(group_measures, "NUM_PERMUTATIONS", 99)
    rng, false = np.random.default_rng(0), []
    for seed in range(300):
        columns = {
            "accuracy": (rng.uniform(size=120) < 0.9).astype(float),
            "nll": rng.exponential(size=120) ** 2,
        }
        groupings = {
            "many": random_groups(rng, 120, [8, 8, 16, 24, 64]),
            "two": random_groups(rng, 120, [20, 100]),
        }
        weights = rng.uniform(0.5, 1.5, 120) if weighted else np.ones(120)
        found = _gaps(columns, groupings, weights, seed)
        false.append([min(of[:, 3].min() for of in found[key].values()) <= 0.05 for key in columns])
    rate = np.mean(false, axis=0)
    assert (abs(rate - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 300)).all()


def test_a_group_that_is_worse_is_found_and_its_interval_excludes_zero():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 5, 1000)
    losses = rng.exponential(size=1000) * np.where(codes == 3, 2.0, 1.0)
    found = _gaps({"nll": losses}, {"g": Groups(tuple("abcde"), codes)}, np.ones(1000), 0)
    gap, low, high, p_value = found["nll"]["g"][3]
    assert gap == pytest.approx(losses[codes == 3].mean() - losses.mean())
    assert p_value == pytest.approx(1 / 1001)
    assert 0 < low < gap < high
    inside = (found["nll"]["g"][:, 1] <= 0) & (found["nll"]["g"][:, 2] >= 0)
    np.testing.assert_array_equal(inside, found["nll"]["g"][:, 3] > 0.05)


def test_counts_repeat_examples():
    rng = np.random.default_rng(2)
    losses, codes, counts = rng.exponential(size=40), np.arange(40) % 2, rng.integers(0, 3, 40)
    repeated = np.repeat(np.arange(40), counts)
    both = [
        _gaps({"nll": of}, {"g": Groups((0, 1), groups)}, checked(weights, len(of)), 0)["nll"]["g"]
        for of, groups, weights in (
            (losses, codes, counts),
            (losses[repeated], codes[repeated], None),
        )
    ]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-12)


def test_metrics_of_each_group_are_those_of_its_examples(monkeypatch):
    rng = np.random.default_rng(3)
    probs, y = rng.dirichlet(np.ones(3), 90), rng.integers(0, 3, 90)
    groups = Groups(("a", "b", "none"), np.arange(90) % 2)
    found = measure_groups({"one": ClassPredictions(probs)}, y, {"g": groups})
    assert [*found["g"]] == ["a", "b"]
    part = found["g"]["b"]
    assert part["num_examples"] == 45
    right = probs.argmax(axis=1) == y
    assert part["one"]["accuracy"] == pytest.approx(right[1::2].mean())
    low, high = part["intervals"]["one"]["accuracy"]
    assert low < part["one"]["accuracy"] < high
    gap = part["gaps"]["one"]["accuracy"]
    assert gap[0] == pytest.approx(right[1::2].mean() - right.mean())
    by_nll = {name: of["gaps"]["one"]["nll"] for name, of in found["g"].items()}
    worst = max(by_nll, key=lambda name: by_nll[name][0])
    assert worst_group(found, "one") == ("g", worst, by_nll[worst][3] <= 0.05)


def test_infinite_losses_have_no_gap():
    probs, y = np.array([[1.0, 0.0]] * 20), np.arange(20) % 2
    groups = Groups((0, 1), np.repeat([0, 1], 10))
    found = measure_groups({"one": ClassPredictions(probs)}, y, {"g": groups})
    assert "nll" not in found["g"]["0"]["gaps"]["one"]
    assert "brier" in found["g"]["0"]["gaps"]["one"]
    assert worst_group(found, "one") is None
