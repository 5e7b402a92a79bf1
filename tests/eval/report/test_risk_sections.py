"""Guarantees beside the risk-coverage curve agree with `control_risk`."""

import numpy as np
import pytest

from laplace_kit.eval.report.risk_sections import (
    controlled_errors,
    risk_sentences,
    with_guarantees,
)
from laplace_kit.eval.report.section import Section
from laplace_kit.eval.risk import control_risk

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(0.2 * np.ones(3), 2000)
Y = (PROBS.cumsum(axis=1) < RNG.uniform(size=(2000, 1))).sum(axis=1).clip(0, 2)


def test_bounds_below_the_error_rate_are_controlled():
    error = (PROBS.argmax(axis=1) != Y).mean()
    (found,) = controlled_errors({"map": PROBS}, Y, None).values()
    assert [of["at_most"] for of in found] == [b for b in (0.01, 0.02, 0.05, 0.1, 0.2) if b < error]
    for of in found:
        control = control_risk(PROBS, Y, at_most=of["at_most"])
        if control.share == 0:
            assert of["handed_on"] is None
        else:
            assert of["handed_on"] == pytest.approx(1 - control.share)
            assert of["threshold"] == control.threshold
    words = risk_sentences({"map": found})
    assert "at most 5% errors" in words
    assert "Each with 95% confidence for new examples" in words
    assert "hand on " in words


def test_bounds_that_no_threshold_has_are_said_so():
    found = controlled_errors({"map": PROBS}, RNG.integers(0, 3, 2000), None)
    assert all(of["handed_on"] is None for of in found["map"])
    assert "these examples show no threshold with at most 20% errors" in risk_sentences(found)


def test_nothing_is_said_where_nothing_is_known():
    certain = np.eye(3)[Y]
    found = controlled_errors({"map": certain}, Y, None)
    assert found == {"map": []}
    section = Section("Risk", "A note.", ())
    assert with_guarantees(section, found).note == "A note."
