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


def test_targets_that_do_not_suit_the_outputs(tmp_path):
    la = fitted()
    _, x, y = problem()
    for call in (la.evaluate, lambda data: la.report(data, tmp_path)):
        with pytest.raises(
            ValueError, match=r"found targets of shape \(9, 1\) for outputs \(9, 2\)"
        ):
            call((x, y[:, None]))
    with pytest.raises(ValueError, match=r"targets out of range; expected integer labels.*drop"):
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
