"""Evaluation and reports of a posterior: its predictions of labelled data, measured."""

import json

import exact
import jax.numpy as jnp
import numpy as np
import pytest
import twins

import laplace_kit as lk


def model(params, x):
    return jnp.tanh(x @ params["kernel"]) @ params["head"]


def problem(num=9):
    rng = np.random.default_rng(0)
    kernel, head = rng.normal(size=(2, 3)), rng.normal(size=(3, 2))
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "head": jnp.asarray(head, jnp.float32)}
    return params, rng.normal(size=(num, 2)).astype(np.float32), rng.integers(0, 2, num)


def fitted() -> lk.Laplace:
    params, x, y = problem()
    return lk.fit(model, params, (x, y), likelihood="categorical", structure="diagonal")


def test_evaluate_in_memory_and_over_a_stream():
    la = fitted()
    _, x, y = problem()
    found = la.evaluate((x, y))
    assert found == la.evaluate(twins.Loader(x, y, batch_size=4))
    probs = np.asarray(la.predict(x).probs)
    assert found["nll"] == pytest.approx(-np.log(probs[np.arange(9), y]).mean(), rel=1e-5)


class OnePass:
    """A loader whose `__iter__` goes on where the last pass ended, with twos of the rows."""

    def __init__(self, x, y):
        self.batches = iter(twins.batches(x, y, 2, 2, 2, 2, 1))

    def __iter__(self):
        return self.batches


def test_one_pass_is_enough_for_evaluation(tmp_path):
    la = fitted()
    _, x, y = problem()
    expected = la.evaluate((x, y))
    assert la.evaluate(OnePass(x, y)) == expected
    assert la.evaluate(iter(OnePass(x, y))) == expected
    report = la.report(OnePass(x, y), tmp_path, shifted={"wide": OnePass(2 * x, y)})
    assert report.metrics["laplace"]["nll"] == pytest.approx(expected["nll"])
    wide = la.evaluate((2 * x, y))["nll"]
    assert report.metrics["shifted"]["wide"]["laplace"]["nll"] == pytest.approx(wide)


def test_fit_refuses_what_has_one_pass():
    params, x, y = problem()
    with pytest.raises(TypeError, match=r"one-shot iterator \(OnePass\).*list\(data\)"):
        lk.fit(model, params, OnePass(x, y), likelihood="categorical")


def test_missing_targets_of_a_report_may_be_nan(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)).astype(np.float32)
    y = rng.normal(size=(40, 2)).astype(np.float32)
    mask = rng.uniform(size=y.shape) < 0.7
    params, masked = problem()[0], lk.Masked(lk.Gaussian(0.5))
    y = np.where(mask, y, np.nan)
    la = lk.fit(model, params, (x, (y, mask)), likelihood=masked, structure="diagonal")
    found = la.report((x, (y, mask)), tmp_path).metrics["laplace"]
    mean = np.asarray(la.predict(x).mean)
    assert found["rmse"] == pytest.approx(np.sqrt(np.nanmean((y - mean) ** 2)), rel=1e-5)


def test_targets_that_do_not_suit_the_outputs(tmp_path):
    la = fitted()
    _, x, y = problem()
    for call in (la.evaluate, lambda data: la.report(data, tmp_path)):
        with pytest.raises(
            ValueError, match=r"found targets of shape \(9, 1\) for outputs \(9, 2\)"
        ):
            call((x, y[:, None]))
    with pytest.raises(ValueError, match=r"out of range; expected integer labels.*use y - 1"):
        la.evaluate((x, y + 1))


def test_report_compares_with_the_mode(tmp_path):
    la = fitted()
    _, x, y = problem()
    sets = {"shifted": {"wide": (2 * x, y)}, "ood": {"far": 9 * x}}
    report = la.report((x, y), tmp_path, **sets)
    written = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert written["laplace"]["nll"] == pytest.approx(la.evaluate((x, y))["nll"])
    at_mode = np.asarray(la.predict_at_mode(x).probs)
    expected = -np.log(at_mode[np.arange(9), y]).mean()
    assert written["map"]["nll"] == pytest.approx(expected, rel=1e-5)
    assert set(written["ood"]) == {"far"}
    assert set(written["shifted"]) == {"wide"}
    assert "prior precision" in report.index.read_text(encoding="utf-8")
    assert set(la.report((x, y), tmp_path / "one", ood=9 * x).metrics["ood"]) == {"ood"}


def test_targets_are_looked_at_before_they_are_scored():
    la = exact.fitted("diagonal", "float32")
    x, y = twins.problem("mlp").x, np.array(twins.problem("mlp").y)
    y[2] = 3
    with pytest.raises(
        ValueError, match=r"out of range; expected integer labels.*example 2 .*drop"
    ):
        la.evaluate((x, y))


class Columns(np.ndarray):
    """An array with named columns, as a DataFrame has them."""

    columns = ("length", "width")

    def to_numpy(self):
        return np.asarray(self)


class Animals:
    """An array of categories."""

    dtype = "category"
    categories = ("cat", "dog")

    def __init__(self, codes):
        self.codes = np.asarray(codes, np.int8)


def test_a_report_shows_the_names_that_the_data_carry(tmp_path):
    la = fitted()
    _, x, y = problem()
    named = la.report((x.view(Columns), Animals(y)), tmp_path / "carried")
    assert named.metrics["names"] == {"classes": ["cat", "dog"], "features": ["length", "width"]}
    given = la.report(
        (x, y),
        tmp_path / "given",
        class_names=["a", "b"],
        feature_names=["c", "d"],
        target_name="e",
    )
    assert given.metrics["names"] == {
        "classes": ["a", "b"],
        "features": ["c", "d"],
        "targets": ["e"],
    }
    assert given.metrics["laplace"] == named.metrics["laplace"]
    with pytest.raises(ValueError, match="Found 3 of class_names"):
        la.report((x, y), tmp_path / "refused", class_names=["a", "b", "c"])
