"""The registry knows every metric, how it is computed, and which values are better."""

import numpy as np

from laplace_kit.eval.report.registry import LABEL, METRICS, evaluated
from laplace_kit.eval.report.scores import SCORES
from laplace_kit.eval.statistics.classification import class_scores, class_sums
from laplace_kit.eval.statistics.detection import detection_scores, detection_sums
from laplace_kit.eval.statistics.numbers import normal_scores, number_columns, number_sums


def test_every_metric_is_computed_from_sums_of_one_kind():
    rng, rows = np.random.default_rng(0), np.ones((2, 20))
    probs, y = rng.dirichlet(np.ones(3), 20), np.arange(20) % 3
    mean, std = rng.normal(size=(20, 2)), np.ones((20, 2))
    scores = normal_scores(mean, std, 0 * mean)
    ranked = detection_scores(np.arange(20.0), np.arange(20.0))
    found = [
        evaluated(class_sums(class_scores(probs, y), rows)),
        evaluated(number_sums(number_columns(mean, std, 0 * mean, scores, scores.cdf), rows)),
        *(evaluated(detection_sums(ranked, rows, rows), kind) for kind in (*SCORES, LABEL)),
    ]
    assert set().union(*found) == set(METRICS)
    assert all(values.shape == (2,) for of in found for values in of.values())


def test_what_the_verdict_compares_has_a_better_direction():
    compared = [name for name, metric in METRICS.items() if metric.in_verdict]
    assert compared == ["nll", "ece", "auroc", "crps"]
    assert all(METRICS[name].is_monotone for name in compared)


def test_names_of_scores_end_the_names_of_metrics():
    assert METRICS["auroc_epistemic"].label == "AUROC, epistemic"
    assert METRICS["fpr95"].label == "FPR95, largest probability"
    assert METRICS["aupr_entropy"].score == "entropy"
