"""What the metrics and abbreviations of a page mean, in a sentence each."""

from collections.abc import Mapping
from typing import Any

from laplace_kit.eval.report.registry import METRICS

_MEANINGS = {
    "accuracy": "Share of correct predictions.",
    "confidence": "Mean of the largest probability; equal to the accuracy if calibrated.",
    "nll": "Negative log-likelihood in nats, the mean of −log p(y): a proper score, which is best "
    "on average for the true probabilities. It penalises confident errors without bound.",
    "brier": "Squared distance between probabilities and label, summed over all classes, from 0 to "
    "2: a proper score. For two classes it is twice the mean squared error of P(y = 1).",
    "ece": "Expected calibration error: mean gap between confidence and accuracy in 15 bins of "
    "equal width. No proper score: base rates alone have an ECE of zero.",
    "ace": "Adaptive calibration error: the same in bins with equal numbers of predictions.",
    "mce": "Maximum calibration error: the largest gap of any bin; noisy.",
    "classwise_ece": "The calibration error of the probability of each class, averaged.",
    "debiased_ce": "Root mean squared gap, corrected for sampling noise.",
    "aurc": "Area under the risk-coverage curve: mean error rate if the least confident "
    "predictions are deferred.",
    "augrc": "Area under the share of predictions that are kept and wrong.",
    "smooth_ece": "Gap between confidence and accuracy, averaged by a kernel instead of bins.",
    "overconfidence": "Mean confidence minus accuracy, with its sign.",
    "spiegelhalter_z": "Brier score minus its expectation if calibrated, in standard deviations.",
    "ks_error": "Largest mean gap, up to any confidence.",
    "kuiper_error": "Largest mean gap, between any two confidences.",
    "miscalibration": "What isotonic recalibration would take off the Brier score of being right.",
    "discrimination": "How much better recalibrated confidences are than a constant one.",
    "roc_auc": "Probability that a positive example has a higher probability than a negative one.",
    "average_precision": "Mean precision over the positive examples, by decreasing probability.",
    "auroc": "Area under the ROC curve (receiver operating characteristic): the probability that "
    "an out-of-distribution input scores higher than one of the test set; 0.5 is chance.",
    "aupr": "Area under the precision-recall curve of detection.",
    "fpr95": "False positive rate at the threshold that detects 95% of such inputs.",
    "rmse": "Root mean squared error, in units of the target.",
    "crps": "Continuous ranked probability score, in units of the target: a proper score, the mean "
    "absolute error of a distribution.",
    "mae": "Mean absolute error, in units of the target.",
    "r_squared": "Share of the targets' variance that the means explain.",
    "sharpness": "Root of the mean predicted variance: the smaller the better, if calibrated.",
    "coverage_90": "Share of the targets inside the central 90% intervals; 0.9 if calibrated.",
    "width_90": "Mean width of the 90% intervals: the narrower the better, at the right coverage.",
    "chi_squared": "Mean of squared errors over predicted variances; 1 if these are right.",
    "quantile_error": "Root mean squared gap between nominal and observed frequency, over levels.",
}


def glossary(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the meanings of what the page shows, by its name there."""
    sets = [{name: metrics[name] for name in metrics["predictors"]}]
    sets += [of for kind in ("shifted", "ood") for of in metrics.get(kind, {}).values()]
    shown = {key for of in sets for values in of.values() for key in values}
    # Metrics by further scores share the words before the comma of their labels.
    names = {METRICS[key].label.split(",")[0] for key in shown}
    found = {
        METRICS[key].label.split(",")[0]: meaning
        for key, meaning in _MEANINGS.items()
        if key in METRICS and METRICS[key].label.split(",")[0] in names
    }
    if {"map", "laplace"} & {*metrics["predictors"]}:
        found["MAP"] = "Maximum a posteriori: the trained network, without weight uncertainty."
        found["Laplace"] = "The posterior around it: a normal distribution of the weights."
    if metrics["task"] == "regression":
        found["PIT"] = "Probability integral transform: the distribution function at the target."
    if "groups" in metrics:
        found["p of a group"] = (
            "Probability of as large a gap of any group if groups were random subsets, allowing "
            "for all of them."
        )
    found["p"] = "Probability of as large a gap for a calibrated predictor."
    return found
