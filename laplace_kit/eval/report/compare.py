"""The report of a posterior against its own mode, and against any other predictions."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from laplace_kit.eval.evaluation import (
    as_classes,
    class_log_probs,
    observed_entries,
    observed_rows,
    weights_of_rows,
)
from laplace_kit.eval.given import numbers_of
from laplace_kit.eval.grouping import as_groupings
from laplace_kit.eval.inputs import round_up
from laplace_kit.eval.predictive import Predictive
from laplace_kit.eval.report import checks
from laplace_kit.eval.report.classification import classification_report
from laplace_kit.eval.report.look import DEFAULT_LOOK, Look
from laplace_kit.eval.report.names import NO_NAMES, Names
from laplace_kit.eval.report.page import PosteriorCard, Report
from laplace_kit.eval.report.predictions import ClassPredictions, RegressionPredictions
from laplace_kit.eval.report.regression import regression_report
from laplace_kit.eval.rows import filled_rows
from laplace_kit.host import fetch, fetch_array
from laplace_kit.likelihood import Likelihood
from laplace_kit.likelihood.masked import has_mask, targets_without_mask, without_mask
from laplace_kit.targets.uncertainty import Uncertainty
from laplace_kit.tree import replace

Predict = Callable[[PyTree], Predictive]


@runtime_checkable
class Predictor(Protocol):
    """An object with a method `predict`, such as another `Laplace`."""

    def predict(self, x: PyTree) -> Predictive:
        """Return the predictive distribution at inputs."""


# Probabilities; means and standard deviations; complete predictions; or an object that predicts.
Compared = (
    ArrayLike | tuple[ArrayLike, ArrayLike] | ClassPredictions | RegressionPredictions | Predictor
)


def compare_report(
    predict: Mapping[str, Predict],
    likelihood: Likelihood,
    x: PyTree,
    y: PyTree,
    directory: str | os.PathLike,
    *,
    weights: ArrayLike | None = None,
    compare: Mapping[str, Compared] | None = None,
    shifted: Mapping[str, tuple] | None = None,
    ood: Mapping[str, PyTree] | None = None,
    names: Names = NO_NAMES,
    card: PosteriorCard | Mapping[str, str] | None = None,
    groups: Any = None,
    look: Look = DEFAULT_LOOK,
    seed: int = 0,
    shared: bool = False,
) -> Report:
    """Write a report that compares several predictors on the same data.

    Parameters
    ----------
    predict
        Functions from inputs to a `Predictive`, by name; the first is the reference.
    likelihood
        Decides between a classification and a regression report.
    x, y
        The labelled test set.
    directory
        Output directory.
    weights
        The weights of its examples, `(N,)`; one each by default.
    compare
        Other predictions on the test set, by name: probabilities of the outputs' shape, or a pair
        of means and standard deviations of the targets' shape, `ClassPredictions` or
        `RegressionPredictions`, or an object whose `predict(x)` returns a `Predictive`, such as
        another `Laplace`. Only `ClassPredictions` and such objects can cover `shifted` and `ood`.
    shifted
        Further labelled sets `(x, y)` or `(x, y, weights)` by name (classification).
    ood
        Unlabelled out-of-distribution inputs by name (classification).
    names
        The names of classes, features and targets.
    card, look
        Facts about the posterior, and what the page looks like.
    groups
        The group of each example of the test set, `(N,)`, or several groupings by name.
    seed
        The seed of the resamples, of the 1,000 draws of the logits from which the epistemic part of
        the entropy of several classes is estimated, and of the probability integral transforms of
        counts.
    shared
        Whether all processes of a program make this report together: then process 0 writes it.

    Returns
    -------
    report
        The metrics and the files; every run with the same seed writes the same bytes.

    Raises
    ------
    TypeError, ValueError
        If the likelihood defines no predictive, if `ood` or `shifted` is given for regression or
        has inputs unlike those of the test set, if an entry of `compare` does not fit the targets,
        or if a name cannot be part of a file name.
    """
    checks.check_mapping("compare", compare)
    compare, shifted, ood = compare or {}, shifted or {}, ood or {}
    # Before predicting, which takes long.
    checks.usable_directory(directory)
    checks.check_predictors([*predict, *compare])
    for where, inputs in (*((where, of[0]) for where, of in shifted.items()), *ood.items()):
        _check_inputs(where, inputs, x)
    # Objects that predict do so on every set; other predictions are for the test set only.
    twice = [name for name in compare if name in predict]
    if twice:
        raise ValueError(
            f"Found {twice} in compare=, expected names other than {[*predict]}; choose others."
        )
    able = {name: of.predict for name, of in compare.items() if isinstance(of, Predictor)}
    predict, compare = {**predict, **able}, {n: of for n, of in compare.items() if n not in able}
    if likelihood.has_classes:
        return _classification(
            predict,
            compare,
            likelihood,
            (x, y, weights),
            directory,
            shifted,
            ood,
            names,
            card,
            groups,
            look,
            seed,
            shared,
        )
    if shifted or ood:
        raise ValueError(
            f"Found shifted or out-of-distribution sets ({[*shifted, *ood]}) for a "
            f"{type(without_mask(likelihood)).__name__} likelihood, expected them for "
            "classification only; write a report for each set instead."
        )
    data = (x, y, weights)
    options = names, card, groups, look, seed, shared
    return _regression(predict, compare, likelihood, data, directory, *options)


def _classification(
    predict,
    compare,
    likelihood,
    data,
    directory,
    shifted,
    ood,
    names,
    card,
    groups,
    look,
    seed,
    shared,
):
    x, y, weights = data
    predictions, labels, shifted_weights = {}, {}, {}
    for name, predict_one in predict.items():
        on_test = predict_one(x)
        probs, targets = as_classes(likelihood, on_test, y)
        on_shifted, shifted_logs = {}, {}
        for where, (z, labels_of_z, *given) in shifted.items():
            with checks.about(name, where):
                found = predict_one(z)
                rows = weights_of_rows(likelihood, found, labels_of_z, given[0] if given else None)
                if rows is not None:
                    shifted_weights[where] = rows
                on_shifted[where], labels[where] = as_classes(likelihood, found, labels_of_z)
                shifted_logs[where] = class_log_probs(likelihood, found, labels_of_z)
        on_ood = {}
        for where, z in ood.items():
            with checks.about(name, where):
                on_ood[where] = predict_one(z)
        ood_parts = {where: _uncertainty(of, seed) for where, of in on_ood.items()}
        parts, seen = _uncertainty(on_test, seed), partial(_seen, likelihood, on_test, y)
        predictions[name] = ClassPredictions(
            probs,
            on_shifted,
            {where: _all_rows(found) for where, found in on_ood.items()},
            epistemic=None if parts is None else seen(parts.mutual_information),
            ood_epistemic={
                where: fetch(of.mutual_information).reshape(-1)
                for where, of in ood_parts.items()
                if of is not None
            },
            aleatoric=None if parts is None else seen(parts.expected_entropy),
            log_probs=class_log_probs(likelihood, on_test, y),
            shifted_log_probs={w: logs for w, logs in shifted_logs.items() if logs is not None},
        )
    for name, of in compare.items():
        if isinstance(of, ClassPredictions):
            predictions[name] = of
            continue
        given = _given_probabilities(name, of, on_test)
        predictions[name] = ClassPredictions(as_classes(likelihood, given, y)[0])
    return classification_report(
        predictions,
        targets,
        directory,
        shifted_labels=labels,
        weights=weights_of_rows(likelihood, on_test, y, weights),
        shifted_weights=shifted_weights,
        x=_inputs_of_labels(likelihood, on_test, y, x),
        class_names=names.classes or None,
        feature_names=names.features or None,
        target_name=names.targets or None,
        title=look.title,
        data_name=look.data_name,
        date=look.date,
        picture_format=look.picture_format,
        costs=look.costs,
        card=card,
        groups=groups_of_rows(likelihood, on_test, y, groups),
        seed=seed,
        shared=shared,
    )


def _regression(
    predict, compare, likelihood, data, directory, names, card, groups, look, seed, shared
):
    (x, y, weights), targets = data, targets_without_mask(likelihood, data[1])
    predictions = {}
    for name, predict_one in predict.items():
        predictive = predict_one(x)
        predictions[name] = numbers_of(likelihood, predictive, y)
        rows = fetch_array(observed_rows(likelihood, predictive, y, targets))
    for name, of in compare.items():
        if isinstance(of, RegressionPredictions):
            predictions[name] = of
            continue
        mean, std = _given_moments(name, of, predictive)
        predictions[name] = RegressionPredictions(
            *(fetch(observed_rows(likelihood, predictive, y, values)) for values in (mean, std))
        )
    if has_mask(likelihood):  # a row for each observed entry
        weights = weights_of_rows(likelihood, predictive, y, weights)
    return regression_report(
        predictions,
        rows,
        directory,
        weights=weights,
        x=None if has_mask(likelihood) else fetch(x),  # a masked example has a row for each entry
        feature_names=names.features or None,
        target_name=names.targets or None,
        target_unit=names.unit or None,
        title=look.title,
        data_name=look.data_name,
        date=look.date,
        picture_format=look.picture_format,
        card=card,
        groups=groups_of_rows(likelihood, predictive, y, groups, is_by_label=has_mask(likelihood)),
        seed=seed,
        shared=shared,
    )


def _check_inputs(where: str, inputs: PyTree, x: PyTree) -> None:
    """Raise a `ValueError` unless inputs have the pytree structure and the ranks of `x`."""
    found, expected = (jax.tree.map(np.ndim, of) for of in (inputs, x))
    if found != expected:
        raise ValueError(
            f"Found the set {where!r} with inputs of shape {jax.tree.map(np.shape, inputs)}, "
            f"expected {jax.tree.map(np.shape, x)} as in the test set, except for the number of "
            "examples; pass inputs in the same form, and no labels in ood=."
        )


# --- predictives as rows --------------------------------------------------------------------------


def _all_rows(predictive: Predictive) -> Float[np.ndarray, "M C"]:
    probs = fetch(predictive.targets.class_probabilities)
    return probs.reshape(-1, probs.shape[-1])


def _uncertainty(predictive: Predictive, seed: int) -> Uncertainty | None:
    """Return the parts of the uncertainty, where there is more than one and they are known."""
    num = len(predictive.f_mean)
    if not (fetch_array(predictive.f_var) > 0).any():
        return None
    # Filled, so that few numbers of inputs are compiled for.
    filled = filled_rows(predictive, round_up(num))
    found = filled.uncertainty(jax.random.key(seed))
    if found.mutual_information is None:  # optional for labels of the user's own
        return None
    return jax.tree.map(lambda part: fetch(part)[:num], found)


def _seen(
    likelihood: Likelihood, predictive: Predictive, y: PyTree, values: Float[np.ndarray, "N *label"]
) -> Float[np.ndarray, " M"]:
    """Return one value for each label that is there."""
    seen = observed_entries(likelihood, predictive, y, values.shape)
    return fetch_array(values)[fetch_array(seen)]


def _given_probabilities(name: str, probs: ArrayLike, like: Predictive) -> Predictive:
    if np.shape(probs) != like.probs.shape:
        raise ValueError(
            f"Found {name!r} of shape {np.shape(probs)} in compare=, expected probabilities of "
            f"shape {like.probs.shape}, as the model's, for the test set in its order."
        )
    targets = replace(like.targets, probs=jnp.asarray(probs, like.probs.dtype), logits=None)
    return replace(like, targets=targets)


def _given_moments(name: str, moments, like: Predictive) -> tuple[Array, Array]:
    shapes = [np.shape(part) for part in moments] if isinstance(moments, tuple | list) else None
    if shapes != [like.mean.shape] * 2:
        raise ValueError(
            f"Found {name!r} of {'shapes ' + str(shapes) if shapes else type(moments).__name__} in "
            f"compare=, expected a pair of means and standard deviations, noise included, of shape "
            f"{like.mean.shape} each, the shape of the targets."
        )
    mean, std = (jnp.asarray(part, like.mean.dtype) for part in moments)
    return mean, std


def _inputs_of_labels(
    likelihood: Likelihood, predictive: Predictive, y: PyTree, x: PyTree
) -> PyTree | None:
    """Return the inputs of the labels that are there, on the host; `None` for several of each."""
    entries = predictive.targets.class_probabilities.shape[:-1]
    seen = fetch_array(observed_entries(likelihood, predictive, y, entries)).reshape(entries[0], -1)
    if seen.shape[1] != 1:
        return None
    return fetch(x) if seen.all() else jax.tree.map(lambda a: a[seen[:, 0]], fetch(x))


def groups_of_rows(
    likelihood: Likelihood,
    predictive: Predictive,
    y: PyTree,
    groups: Any,
    *,
    is_by_label: bool = True,
) -> dict[str, np.ndarray] | None:
    """Return the group of each row, by grouping: a row for each observed label, or example."""
    if groups is None:
        return None
    found = as_groupings(groups, len(predictive.f_mean))
    if not is_by_label:
        return {name: fetch_array([*of.names])[of.codes] for name, of in found.items()}
    return {
        name: fetch_array([*of.names])[
            fetch_array(weights_of_rows(likelihood, predictive, y, of.codes), int)
        ]
        for name, of in found.items()
    }


def named_sets(ood: PyTree, x: PyTree) -> dict[str, PyTree]:
    """Return out-of-distribution sets by name: one set, or a mapping; inputs may be mappings."""
    if ood is None:
        return {}
    several = isinstance(ood, Mapping) and not (isinstance(x, Mapping) and set(ood) == set(x))
    return dict(ood) if several else {"ood": ood}
