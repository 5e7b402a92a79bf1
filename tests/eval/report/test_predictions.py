"""Predictions are frozen, and what is not known is empty."""

import dataclasses

import numpy as np
import pytest

from laplace_kit.eval.report.predictions import ClassPredictions, RegressionPredictions


def test_what_is_not_given_is_empty_and_not_shared():
    first, second = (ClassPredictions(np.full((2, 2), 0.5)) for _ in range(2))
    assert first.shifted == first.ood == first.ood_epistemic == {}
    assert first.ood is not second.ood
    assert first.epistemic is None
    assert RegressionPredictions(np.zeros((2, 1)), np.ones((2, 1))).epistemic_std is None


def test_frozen():
    predictions = ClassPredictions(np.full((2, 2), 0.5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        predictions.probs = None
