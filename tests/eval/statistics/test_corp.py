"""Isotonic reliability against scikit-learn, and the exact decomposition of the Brier score."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss

from laplace_kit.eval.statistics import corp
from laplace_kit.eval.statistics.weighting import ranked

RNG = np.random.default_rng(0)
P = np.round(RNG.uniform(size=200), 2)
Y = (RNG.uniform(size=200) < P**2).astype(float)


def fitted(weights):
    used = weights > 0
    model = IsotonicRegression().fit(P[used], Y[used], sample_weight=weights[used])
    return model.predict(P)


@pytest.mark.parametrize(
    "weights", [np.ones(200), RNG.integers(0, 3, 200) * 1.0, RNG.uniform(size=200)]
)
def test_curve_and_terms_are_those_of_scikit_learn(weights):
    found = corp.corp_reliability(P, Y, weights)
    recalibrated = fitted(weights)
    at = np.searchsorted(found.probability, P[weights > 0])
    np.testing.assert_allclose(found.frequency[at], recalibrated[weights > 0], atol=1e-9)
    score, best, constant = (
        brier_score_loss(Y, np.clip(p, 0, 1), sample_weight=weights)
        for p in (P, recalibrated, np.full(200, np.average(Y, weights=weights)))
    )
    assert found.score == pytest.approx(score)
    assert found.miscalibration == pytest.approx(score - best)
    assert found.discrimination == pytest.approx(constant - best)
    assert found.uncertainty == pytest.approx(constant)
    assert found.counts.sum() == pytest.approx(weights.sum())


def test_rows_of_weightings_are_apart():
    rows = np.stack([np.ones(200), RNG.integers(0, 4, 200), RNG.uniform(size=200)])
    found = corp.corp_terms(ranked(P), Y, rows)
    for index, weights in enumerate(rows):
        one = corp.corp_reliability(P, Y, weights)
        terms = [of[index] for of in found]
        np.testing.assert_allclose(terms, one[-3:], rtol=1e-9, atol=1e-12)


def test_terms_of_perfect_and_of_constant_predictions():
    perfect = corp.corp_reliability(Y, Y, np.ones(200))
    assert perfect.score == perfect.miscalibration == 0
    assert perfect.discrimination == pytest.approx(perfect.uncertainty)
    constant = corp.corp_reliability(np.full(200, 0.5), Y, np.ones(200))
    assert constant.discrimination == pytest.approx(0, abs=1e-12)
    assert constant.miscalibration == pytest.approx((0.5 - Y.mean()) ** 2)


def test_soft_outcomes_have_their_own_variance():
    soft = RNG.uniform(size=200)
    found = corp.corp_reliability(P, soft, np.ones(200))
    sum_of_terms = found.miscalibration - found.discrimination + found.uncertainty
    assert found.score == pytest.approx(sum_of_terms)
    assert found.uncertainty == pytest.approx(soft.var())


def test_miscalibration_of_calibrated_predictions_vanishes():
    """About 2 / N^(2/3) in the limit: the mean of 50 repetitions, with its standard error."""
    rng, means = np.random.default_rng(1), []
    for num in (250, 4000):
        found = []
        for _ in range(50):
            p = rng.uniform(size=num)
            y = (rng.uniform(size=num) < p).astype(float)
            found.append(corp.corp_reliability(p, y, np.ones(num)).miscalibration)
        means.append(np.mean(found))
        assert 4 * np.std(found) / np.sqrt(50) < 0.4 * means[-1]
    assert means[1] < 0.3 * means[0]
