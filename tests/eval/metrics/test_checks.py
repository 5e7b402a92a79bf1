"""What metrics refuse, and what becomes of it where values are not known."""

import jax
import numpy as np
import pytest
from predictions import classification, regression

from laplace_kit.eval import metrics as mt

CALIBRATION = (
    mt.expected_calibration_error,
    mt.maximum_calibration_error,
    mt.adaptive_calibration_error,
    mt.classwise_calibration_error,
    mt.debiased_calibration_error,
)
BINNED = (*CALIBRATION, mt.reliability_bins, mt.equal_mass_bins, mt.brier_decomposition)
CLASSIFICATION = (
    mt.negative_log_likelihood,
    mt.accuracy,
    mt.brier_score,
    mt.aurc,
    *CALIBRATION,
)
WITH_SPREAD = (mt.gaussian_nll, mt.chi_squared, mt.crps_gaussian, mt.pit_gaussian)


@jax.jit
def classification_metrics(probs, y):
    return [metric(probs, y) for metric in CLASSIFICATION]


@pytest.mark.parametrize("wrong", ["beyond", "negative", "unknown"])
def test_unknown_values_under_jit_give_nan(wrong):
    probs, labels = classification(num_examples=20, dtype="float32")
    if wrong == "unknown":
        probs[3] = np.nan
    else:
        labels[3] = {"beyond": 4, "negative": -1}[wrong]
    assert np.isnan(classification_metrics(probs, labels)).all()


def test_unknown_scores_and_numbers_under_jit_give_nan():
    probs, labels = classification(num_examples=20, dtype="float32")
    known, unknown = probs[:, 0], np.where(np.arange(20) == 3, np.nan, probs[:, 0])

    @jax.jit
    def of_numbers(mean, y):
        pit = mt.pit_gaussian(mean, 1.0, y)
        return [
            mt.interval_coverage(mean, 1.0, y, 0.5),
            mt.quantile_calibration_error(pit),
            *mt.pit_uniformity_test(pit),
        ]

    @jax.jit
    def of_scores(inside, outside):
        curve = mt.roc_curve(inside, outside)
        areas = [metric(inside, outside) for metric in (mt.auroc, mt.aupr, mt.fpr95)]
        return [*areas, curve.true_positive_rate[0], mt.aurc(probs, labels, confidence=outside)]

    assert np.isnan(of_numbers(unknown, known)).all()
    assert np.isnan(of_scores(known, unknown)).all()
    assert np.isnan(of_scores(unknown, known)[:-1]).all()
    assert np.isfinite(of_scores(known, known)).all()


@pytest.mark.parametrize("metric", [*CLASSIFICATION, *BINNED, mt.top_k_accuracy])
def test_wrong_shapes_of_labels(metric):
    probs, labels = classification(dtype="float32")
    with pytest.raises(ValueError, match=r"y of shape \(200, 1\).*\(200,\).*y\[:, 0\]"):
        metric(probs, labels[:, None])
    with pytest.raises(ValueError, match=r"y of shape \(199,\).*probs of shape \(200, 4\)"):
        jax.jit(metric)(probs, labels[:-1])
    with pytest.raises(ValueError, match=r"probs of shape \(200,\).*\(N, C\).*jnp\.stack"):
        metric(probs[:, 0], labels)
    with pytest.raises(ValueError, match=r"probs of shape \(0, 4\).*at least one example"):
        metric(probs[:0], labels[:0])


def test_wrong_values_of_labels():
    probs, labels = classification(dtype="float32")
    with pytest.raises(ValueError, match=r"dtype float32.*expected integers.*astype\(int\)"):
        mt.accuracy(probs, labels.astype("float32"))
    labels[7] = 4
    with pytest.raises(ValueError, match=r"label 4 at y\[7\], expected integers from 0 to 3"):
        mt.negative_log_likelihood(probs, labels)
    with pytest.raises(ValueError, match=r"y\[0\] with the sum 0.*expected numbers from 0 to 1"):
        mt.brier_score(probs, np.zeros_like(probs))


def test_logits_are_not_probabilities():
    probs, labels = classification(dtype="float32")
    with pytest.raises(ValueError, match=r"probs\[0\] with the sum.*jax\.nn\.softmax\(logits\)"):
        mt.negative_log_likelihood(np.log(probs), labels)
    with pytest.raises(ValueError, match=r"probs\[2\] with the sum nan"):
        mt.accuracy(np.where(np.arange(200)[:, None] == 2, np.nan, probs), labels)
    with pytest.raises(ValueError, match=r"probs\[0\] with the sum.*jax\.nn\.softmax\(logits\)"):
        mt.entropy_score(np.log(probs))
    with pytest.raises(ValueError, match=r"p outside 0 to 1.*jax\.nn\.sigmoid\(logits\)"):
        mt.from_binary(np.log(probs[:, 0]))


@pytest.mark.parametrize("metric", BINNED)
def test_num_bins_must_be_positive(metric):
    with pytest.raises(ValueError, match=r"num_bins=0, expected a whole number of bins"):
        metric(*classification(dtype="float32"), num_bins=0)


@pytest.mark.parametrize("metric", WITH_SPREAD)
def test_wrong_regression_arguments(metric):
    mean, std, y = regression((5,), dtype="float32")
    with pytest.raises(ValueError, match=r"y of shape \(5, 1\).*mean of shape \(5,\).*reshape"):
        metric(mean, std, y[:, None])
    with pytest.raises(ValueError, match=r"(var|std) of shape \(5, 1\).*the same shape"):
        metric(mean, std[:, None], y)
    with pytest.raises(ValueError, match=r"(var|std) with an entry that is not positive.*noise"):
        metric(mean, std - 10, y)
    with pytest.raises(
        ValueError, match=r"mean of shape \(0,\).*at least one example.*mean\[None\]"
    ):
        metric(mean[:0], std[:0], y[:0])


def test_other_wrong_arguments():
    mean, std, y = regression((5,), dtype="float32")
    probs, labels = classification(5, dtype="float32")
    with pytest.raises(ValueError, match=r"y of shape \(5, 1\).*same shape"):
        mt.rmse(mean, y[:, None])
    with pytest.raises(ValueError, match=r"levels outside 0 to 1.*divide percentages"):
        mt.interval_coverage(mean, std, y, np.array([50, 90]))
    with pytest.raises(ValueError, match=r"pit outside 0 to 1"):
        mt.pit_uniformity_test(y + 10)
    with pytest.raises(ValueError, match=r"std with an entry that is not positive"):
        mt.sharpness(-std)
    with pytest.raises(ValueError, match=r"in_scores of shape \(0,\), expected one score per"):
        mt.auroc(mean[:0], y)
    with pytest.raises(ValueError, match=r"out_scores of shape \(5, 1\)"):
        mt.aupr(mean, y[:, None])
    with pytest.raises(ValueError, match=r"a NaN in out_scores"):
        mt.fpr95(mean, y * np.nan)
    with pytest.raises(ValueError, match=r"confidence of shape \(4,\) for 5 examples"):
        mt.aurc(probs, labels, confidence=mean[:-1])
    with pytest.raises(ValueError, match=r"samples of shape \(5,\) for y of shape \(5,\).*S, 5\)"):
        mt.crps_samples(mean, y)
    with pytest.raises(ValueError, match=r"1 sample for fair=True, expected at least 2"):
        mt.crps_samples(mean[None], y, fair=True)


def test_wrong_binary_arguments():
    p, y = np.array([0.2, 0.7], "float32"), np.array([0, 1])
    with pytest.raises(ValueError, match=r"p of shape \(2, 2\).*probs\[:, 1\]"):
        mt.binary_brier_score(np.stack([p, p]), y)
    with pytest.raises(ValueError, match=r"y of shape \(2, 1\) for p of shape \(2,\)"):
        mt.binary_brier_score(p, y[:, None])
    with pytest.raises(ValueError, match=r"labels y outside 0 to 1, expected 0 or 1.*renumber"):
        mt.binary_reliability_bins(p, y + 1)
    assert np.isnan(jax.jit(mt.binary_brier_score)(p, y + 1))
