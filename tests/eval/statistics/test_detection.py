"""Detection metrics against scikit-learn, with ties and weights of both samples."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from laplace_kit.eval import metrics
from laplace_kit.eval.statistics import detection

RNG = np.random.default_rng(0)
INSIDE, OUTSIDE = np.round(RNG.normal(size=40), 1), np.round(RNG.normal(1, 1, 25), 1)
IN_WEIGHTS, OUT_WEIGHTS = (RNG.integers(0, 3, (2, num)).astype(float) for num in (40, 25))


def sums():
    return detection.detection_sums(
        detection.detection_scores(INSIDE, OUTSIDE), IN_WEIGHTS, OUT_WEIGHTS
    )


@pytest.mark.parametrize(
    ("function", "expected"),
    [(detection.auroc, roc_auc_score), (detection.aupr, average_precision_score)],
)
def test_areas_against_scikit_learn(function, expected):
    truth, scores = np.repeat([0, 1], [40, 25]), np.concatenate([INSIDE, OUTSIDE])
    weights = np.concatenate([IN_WEIGHTS, OUT_WEIGHTS], axis=1)
    known = [expected(truth, scores, sample_weight=of) for of in weights]
    np.testing.assert_allclose(function(sums()), known, rtol=1e-12)


def test_false_positive_rate_is_that_of_the_metric():
    known = [
        float(metrics.fpr95(INSIDE, OUTSIDE, in_weights=of, out_weights=also))
        for of, also in zip(IN_WEIGHTS, OUT_WEIGHTS, strict=True)
    ]
    np.testing.assert_allclose(detection.fpr95(sums()), known, rtol=1e-6)


def test_a_curve_begins_at_zero_and_ends_at_one():
    false, true = detection.roc_curve(sums())
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    area = np.trapezoid(true, false)
    assert area == pytest.approx(float(detection.auroc(sums())[0]))
