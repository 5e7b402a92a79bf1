"""Weights: counts are repetitions, proportions have no scale; for every metric there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from predictions import classification, regression

from laplace_kit.eval import metrics as mt
from laplace_kit.eval.metrics import weighting

NUM_BINS = 7
F32 = jnp.dtype("float32")


def examples(num=24, seed=0):
    """Return the arrays that the metrics read, with ties, along one axis of examples."""
    rng = np.random.default_rng(seed)
    probs, labels = classification(num, 3, seed)
    probs[num // 2 :] = probs[: num - num // 2]
    mean, std, y = regression((num, 2), seed)
    p = rng.integers(0, 9, num) / 8
    return {
        "probs": probs,
        "labels": labels,
        "mean": mean,
        "std": std,
        "y": y,
        "draws": np.moveaxis(y + rng.normal(size=(5, num, 2)), 0, 1),
        "p": p,
        "binary": rng.integers(0, 2, num),
        "scores": rng.integers(0, 6, num) / 4,
    }


@jax.jit
def one_sample_metrics(data, weights):
    of_classes = (data["probs"], data["labels"])
    of_numbers = (data["mean"], data["std"], data["y"])
    of_two = (data["p"], data["binary"])
    draws = jnp.moveaxis(data["draws"], 1, 0)
    pit = mt.pit_gaussian(*of_numbers)
    doubt = {"confidence": data["scores"], "weights": weights}
    return {
        "nll": mt.negative_log_likelihood(*of_classes, weights=weights),
        "accuracy": mt.accuracy(*of_classes, weights=weights),
        "top_2": mt.top_k_accuracy(*of_classes, 2, weights=weights),
        "brier": mt.brier_score(*of_classes, weights=weights),
        "brier_parts": mt.brier_decomposition(*of_classes, NUM_BINS, weights=weights),
        "bins": mt.reliability_bins(*of_classes, NUM_BINS, weights=weights),
        "mass_bins": mt.equal_mass_bins(*of_classes, NUM_BINS, weights=weights),
        "ece": mt.expected_calibration_error(*of_classes, NUM_BINS, weights=weights),
        "mce": mt.maximum_calibration_error(*of_classes, NUM_BINS, weights=weights),
        "ace": mt.adaptive_calibration_error(*of_classes, NUM_BINS, weights=weights),
        "classwise": mt.classwise_calibration_error(*of_classes, NUM_BINS, weights=weights),
        "squared": mt.squared_calibration_error(*of_classes, NUM_BINS, weights=weights),
        "debiased": mt.debiased_calibration_error(*of_classes, NUM_BINS, weights=weights),
        "aurc": mt.aurc(*of_classes, weights=weights),
        "augrc": mt.augrc(*of_classes, weights=weights),
        "aurc_of_doubt": mt.aurc(*of_classes, **doubt),
        "gaussian_nll": mt.gaussian_nll(*of_numbers, weights=weights),
        "rmse": mt.rmse(data["mean"], data["y"], weights=weights),
        "r_squared": mt.r_squared(data["mean"], data["y"], weights=weights),
        "energy_score": mt.energy_score(draws, data["y"], weights=weights),
        "mae": mt.mae(data["mean"], data["y"], weights=weights),
        "crps": mt.crps_gaussian(*of_numbers, weights=weights),
        "crps_samples": mt.crps_samples(draws, data["y"], weights=weights),
        "sharpness": mt.sharpness(data["std"], weights=weights),
        "chi_squared": mt.chi_squared(*of_numbers, weights=weights),
        "coverage": mt.interval_coverage(*of_numbers, (0.3, 0.8), weights=weights),
        "width": mt.interval_width(data["std"], (0.3, 0.8), weights=weights),
        "uniformity": mt.pit_uniformity_test(pit, weights=weights),
        "quantiles": mt.quantile_calibration_error(pit, weights=weights),
        "binary_brier": mt.binary_brier_score(*of_two, weights=weights),
        "binary_parts": mt.binary_brier_decomposition(*of_two, NUM_BINS, weights=weights),
        "binary_bins": mt.binary_reliability_bins(*of_two, NUM_BINS, weights=weights),
    }


@jax.jit
def two_sample_metrics(inside, outside, weights):
    metrics = (mt.auroc, mt.aupr, mt.fpr95)
    return [m(inside, outside, in_weights=weights[0], out_weights=weights[1]) for m in metrics]


def curves(data, weights):
    """Return curves without the points that differ in nothing, which repetition multiplies."""
    of_classes = (data["probs"], data["labels"])
    risks = mt.risk_coverage_curve(*of_classes, confidence=data["scores"], weights=weights)
    shifted = data["scores"] + 0.25
    of_detection = {"in_weights": weights, "out_weights": weights}
    roc = mt.roc_curve(data["scores"], shifted, **of_detection)
    return [np.unique(np.stack(curve), axis=1) for curve in (risks, roc)]


def assert_same(found, expected, atol=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, expected)


def counts(seed, num=24, total=48):
    return np.random.default_rng(seed).multinomial(total, np.ones(num) / num)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_counts_repeat_examples_in_every_metric():
    data = examples()
    for seed in range(4):
        k = counts(seed)
        assert 0 in k
        repeated = {name: np.repeat(array, k, axis=0) for name, array in data.items()}
        assert_same(one_sample_metrics(data, k), one_sample_metrics(repeated, None))
        inside, outside = data["scores"], data["scores"][::-1] + 0.25
        rows = np.repeat(inside, k), np.repeat(outside, k[::-1])
        found = two_sample_metrics(inside, outside, (k, k[::-1]))
        assert_same(found, two_sample_metrics(*rows, (None, None)))
        assert_same(curves(data, k)[0], curves(repeated, None)[0])
        assert_same(curves(data, k)[1], curves(repeated, None)[1])


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_proportions_have_no_scale():
    data, proportions = examples(), np.random.default_rng(1).uniform(0.1, 2, size=24)

    def metrics(weights):
        found = one_sample_metrics(data, weights)
        # But the bins say how much is in them.
        return found | {name: found[name][2:] for name in ("bins", "binary_bins")}

    assert_same(metrics(1e-3 * proportions), metrics(proportions))
    assert_same(metrics(np.full(24, 0.1)), metrics(None))


def test_every_metric_of_the_package_is_tested_here():
    """Every function with weights is called in one of the dictionaries above."""
    import inspect

    source = inspect.getsource(inspect.getmodule(examples))
    with_weights = [
        name
        for name, function in vars(mt).items()
        if inspect.isfunction(function)
        and {"weights", "in_weights"} & set(inspect.signature(function).parameters)
        and not name.startswith("bootstrap")
    ]
    assert len(with_weights) > 30
    assert [name for name in with_weights if f"mt.{name}" not in source] == []


def test_as_counts():
    assert weighting.as_counts(weighting.checked(None, 3, F32)).dtype == jnp.int32
    mask = weighting.as_counts(weighting.checked(np.array([True, False]), 2, F32))
    np.testing.assert_array_equal(mask, [1, 0])
    # Two that weigh the same and one that weighs nothing are two examples, whatever the weight.
    found = weighting.as_counts(weighting.checked(np.array([0.3, 0.3, 0]), 3, F32))
    np.testing.assert_allclose(found, [1, 1, 0], rtol=1e-6)
    with pytest.raises(ValueError, match=r"weights of shape \(2,\) for 3 examples.*\(3,\)"):
        weighting.checked(np.ones(2), 3, F32)


@pytest.mark.parametrize("wrong", [[-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0], [0.0, 0.0]])
def test_weights_that_are_none(wrong):
    probs, labels = np.array([[0.5, 0.5], [0.2, 0.8]], "float32"), np.array([0, 1])
    with pytest.raises(ValueError, match=r"weights (with an entry that is|that sum to zero)"):
        mt.accuracy(probs, labels, weights=np.array(wrong))
    found = jax.jit(mt.maximum_calibration_error)(probs, labels, weights=np.array(wrong))
    assert np.isnan(found)
