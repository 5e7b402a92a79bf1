"""Thresholds that are controlled, on predictives and plain arrays, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from laplace_kit.eval.conformal import conformal_sets
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.risk import conformal_risk, control_risk, learn_then_test
from laplace_kit.likelihood import Categorical
from laplace_kit.targets import ClassTargets, Outputs

RNG = np.random.default_rng(0)


def drawn(rng, num, sharpness=3.0):
    p = special.expit(sharpness * rng.normal(size=num))
    return p, (rng.uniform(size=num) < p).astype(int)


def test_the_sentence_and_what_is_kept():
    p, y = drawn(RNG, 2000)
    found = control_risk(p, y, at_most=0.05)
    kept = found(p)
    assert kept.mean() == pytest.approx(found.share)
    wrong = (p > 0.5) != y
    assert wrong[kept].mean() == pytest.approx(found.observed)
    assert found.observed < 0.05
    left = 100 * (1 - found.share)
    assert str(found) == f"Hand on {left:.3g}%: at most 5% errors with 95% confidence."
    more = control_risk(p, y, at_most=0.05, method="fixed_sequence")
    assert more.share > found.share
    nothing = control_risk(p[:20], y[:20], at_most=0.01)
    assert nothing.share == 0
    assert not nothing(p).any()
    assert (
        str(nothing)
        == "These examples show no threshold with at most 1% errors with 95% confidence; take more."
    )


@pytest.mark.parametrize("risk", ["error", "precision", "recall", "abstention"])
def test_bounds_fail_rarely_on_new_examples(risk):
    """At most one time in ten, to four standard errors of 200 repetitions."""
    rng, failed = np.random.default_rng(1), 0
    new_p, new_y = drawn(rng, 20_000)
    wrong = (new_p > 0.5) != new_y
    bound = {"error": 0.1, "precision": 0.75, "recall": 0.8, "abstention": 0.3}[risk]
    name = "at_least" if risk in ("precision", "recall") else "at_most"
    shares = []
    for _ in range(200):
        p, y = drawn(rng, 200)
        found = control_risk(p, y, risk=risk, confidence=0.9, **{name: bound})
        kept = found(new_p)
        shares.append(found.share)
        if not kept.any():
            continue
        value = {
            "error": lambda kept=kept: bound - wrong[kept].mean(),
            "precision": lambda kept=kept: new_y[kept].mean() - bound,
            "recall": lambda kept=kept: kept[new_y == 1].mean() - bound,
            "abstention": lambda kept=kept: bound - (1 - kept.mean()),
        }[risk]()
        failed += value < 0
    assert failed / 200 < 0.1 + 4 * np.sqrt(0.09 / 200)
    assert 0.1 < np.mean(shares) < 0.95


def test_predictives_and_several_classes():
    probs = RNG.dirichlet(0.2 * np.ones(3), 800).astype("float32")
    y = (probs.cumsum(axis=1) < RNG.uniform(size=(800, 1))).sum(axis=1).clip(0, 2)
    device = jnp.asarray(probs)
    predictive = Predictive(ClassTargets(Outputs(0 * device, device), device), Categorical())
    found, plain = control_risk(predictive, y, at_most=0.1), control_risk(probs, y, at_most=0.1)
    assert found.threshold == plain.threshold
    np.testing.assert_array_equal(found(predictive), plain(probs))
    counts = RNG.integers(0, 3, 800)
    rows = np.repeat(np.arange(800), counts)
    weighted = control_risk(probs, y, at_most=0.1, weights=counts)
    repeated = control_risk(probs[rows], y[rows], at_most=0.1)
    assert weighted.threshold == repeated.threshold
    assert weighted.share == pytest.approx(repeated.share)


def test_learn_then_test_finds_no_bad_setting_often():
    """Risks of 0.1 and more must not pass for 0.1: at most 10% false findings."""
    rng, false, found = np.random.default_rng(2), 0, 0
    risks = np.array([0.02, 0.05, 0.1, 0.1, 0.12])
    for _ in range(300):
        losses = (rng.uniform(size=(300, 5)) < risks).astype(float)
        valid = learn_then_test(losses, at_most=0.1, confidence=0.9)
        false, found = false + valid[2:].any(), found + valid[0]
    assert false / 300 < 0.1 + 4 * np.sqrt(0.09 / 300)
    assert found / 300 > 0.95
    ordered = learn_then_test(losses, at_most=0.1, confidence=0.9, method="fixed_sequence")
    assert ordered[0]


def test_conformal_risk_of_misses_is_split_conformal():
    probs = RNG.dirichlet(np.ones(3), 99).astype("float32")
    y = RNG.integers(0, 3, 99)
    sets = conformal_sets(probs, y, level=0.9)
    own = 1 - probs[np.arange(99), y].astype(float)
    thresholds = np.sort(own)
    misses = (own[:, None] > thresholds).astype(float)
    setting = conformal_risk(misses, at_most=0.1)
    assert thresholds[setting] == pytest.approx(float(sets.threshold), abs=1e-6)


def test_the_expected_loss_is_controlled():
    """The mean over 400 calibrations of the share of missed labels, to four standard errors."""
    rng, risks = np.random.default_rng(3), []
    thresholds = np.linspace(1, 0, 101)
    for _ in range(400):
        scores = rng.uniform(size=(51, 6)) ** 0.5
        losses = (scores[:, :, None] < thresholds).mean(axis=1)
        setting = conformal_risk(losses[:50], at_most=0.1)
        risks.append(losses[50, setting])
    error = 4 * np.std(risks) / 20
    assert np.mean(risks) < 0.1 + error
    assert np.mean(risks) > 0.1 - error - 1 / 51 - 0.01


def test_refusals():
    p, y = drawn(RNG, 50)
    with pytest.raises(ValueError, match=r"expected only at_most=, a share such as 0.05"):
        control_risk(p, y)
    with pytest.raises(ValueError, match=r"expected only at_least=, a share such as 0.9"):
        control_risk(p, y, risk="recall", at_most=0.1)
    with pytest.raises(ValueError, match=r"Found at_most=5.0, expected a number between 0 and 1"):
        control_risk(p, y, at_most=5.0)
    with pytest.raises(ValueError, match=r"Found risk='recal', .* Did you mean 'recall'"):
        control_risk(p, y, risk="recal", at_least=0.9)
    three = np.full((50, 3), 1 / 3)
    with pytest.raises(ValueError, match="probabilities of 3 classes for risk='precision'"):
        control_risk(three, y, risk="precision", at_least=0.9)
    with pytest.raises(ValueError, match=r"Found losses of shape \(50,\)"):
        learn_then_test(p, at_most=0.1)
    with pytest.raises(ValueError, match="Found losses outside 0 to 1"):
        learn_then_test(2 + np.zeros((3, 2)), at_most=0.1)
    with pytest.raises(ValueError, match="losses that rise"):
        conformal_risk(np.array([[0.0, 1.0]]), at_most=0.1)
    with pytest.raises(ValueError, match=r"Found no setting for at_most=0.1"):
        conformal_risk(np.zeros((3, 2)), at_most=0.1)
