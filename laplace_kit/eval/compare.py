"""The report of a posterior against its own mode: Laplace next to the MAP."""

import os
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from laplace_kit.eval.evaluate import as_classes, observed_rows, two_classes
from laplace_kit.eval.page import Report
from laplace_kit.eval.predictive import Predictive
from laplace_kit.eval.report import (
    ClassPredictions,
    RegressionPredictions,
    classification_report,
    regression_report,
)
from laplace_kit.likelihood import Bernoulli, Categorical, Likelihood, unmasked

Predict = Callable[[PyTree], Predictive]


def compare_report(
    predict: Mapping[str, Predict],
    likelihood: Likelihood,
    x: PyTree,
    y: PyTree,
    directory: str | os.PathLike,
    *,
    shifted: Mapping[str, tuple] | None = None,
    ood: Mapping[str, PyTree] | None = None,
    title: str,
    card: Mapping[str, str],
) -> Report:
    """Predict with every predictor on the same inputs and write the report.

    Parameters
    ----------
    predict
        By name, functions from inputs to a `Predictive`.
    likelihood
        Decides between a classification and a regression report.
    x, y
        The labelled test set.
    directory
        Where to write.
    shifted
        Further labelled sets `(x, y)` by name (classification).
    ood
        Unlabelled out-of-distribution inputs by name (classification).
    title, card
        The page's heading, and facts about the posterior.

    Returns
    -------
    report
        The numbers and the files.

    Raises
    ------
    TypeError, ValueError
        If the likelihood has no predictive to report on, or `ood` or `shifted` is given for one
        that is not a classification.
    """
    shifted, ood = shifted or {}, ood or {}
    kind, targets = unmasked(likelihood, y)
    if isinstance(kind, Categorical | Bernoulli):
        predictions, labels = {}, {}
        for name, predict_one in predict.items():
            probs, targets = as_classes(likelihood, predict_one(x), y)
            on_shifted = {}
            for where, (shifted_x, shifted_y) in shifted.items():
                on_shifted[where], labels[where] = as_classes(
                    likelihood, predict_one(shifted_x), shifted_y
                )
            on_ood = {where: _rows(kind, predict_one(z)) for where, z in ood.items()}
            predictions[name] = ClassPredictions(probs, on_shifted, on_ood)
        return classification_report(
            predictions, targets, directory, shifted_labels=labels, title=title, card=card
        )
    if shifted or ood:
        raise ValueError(
            f"Found shifted or out-of-distribution sets ({[*shifted, *ood]}) for a "
            f"{type(kind).__name__} likelihood, expected them for classification only; "
            "write a report for each set instead."
        )
    predictions = {}
    for name, predict_one in predict.items():
        predictive = predict_one(x)
        predictions[name] = _regression(likelihood, predictive, y)
        rows = observed_rows(likelihood, predictive, y, targets)
    inputs = x if hasattr(x, "shape") and len(rows) == len(x) else None
    return regression_report(
        predictions, np.asarray(rows), directory, x=inputs, title=title, card=card
    )


def _rows(likelihood: Likelihood, predictive: Predictive):
    if isinstance(likelihood, Bernoulli):
        return two_classes(predictive.probs)
    return predictive.probs.reshape(-1, predictive.probs.shape[-1])


def _regression(likelihood: Likelihood, predictive: Predictive, y: PyTree) -> RegressionPredictions:
    if predictive.mean is None:
        raise TypeError(
            f"Found a {type(likelihood).__name__} likelihood, which defines no predictive "
            "distribution of the targets, expected Gaussian, Poisson, Categorical or Bernoulli for "
            "a report; use la.evaluate for its loss."
        )
    mean, var, epistemic_var = (
        observed_rows(likelihood, predictive, y, values)
        for values in (predictive.mean, predictive.var, predictive.epistemic_var)
    )
    return RegressionPredictions(mean, jnp.sqrt(var), jnp.sqrt(epistemic_var))


def named_sets(ood: PyTree, x: PyTree) -> dict[str, PyTree]:
    """Read one out-of-distribution set, or a mapping of several; inputs may be mappings too."""
    if ood is None:
        return {}
    several = isinstance(ood, Mapping) and not (isinstance(x, Mapping) and set(ood) == set(x))
    return dict(ood) if several else {"ood": ood}
