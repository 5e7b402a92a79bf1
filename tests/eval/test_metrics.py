"""Metrics against scikit-learn, brute force in numpy and closed forms."""

import itertools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from laplace_kit.eval import metrics as mt

DTYPES = ("float32", "float64")
CLASSIFICATION = (
    mt.negative_log_likelihood,
    mt.accuracy,
    mt.brier_score,
    mt.expected_calibration_error,
    mt.maximum_calibration_error,
    mt.adaptive_calibration_error,
)
CALIBRATION = CLASSIFICATION[3:]
WITH_VARIANCE = (mt.gaussian_nll, mt.chi_squared)


def precision(dtype):
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


def tolerance(dtype, slack=100.0):
    return slack * float(np.finfo(dtype).eps)


def classification(num_examples=200, num_classes=4, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(0.5 * np.ones(num_classes), size=num_examples)
    labels = np.array([rng.choice(num_classes, p=p) for p in probs])
    return probs.astype(dtype), labels


def regression(shape=(50, 3), seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    mean, std = rng.normal(size=shape), rng.uniform(0.5, 2, size=shape)
    return tuple(a.astype(dtype) for a in (mean, std, mean + 1.3 * std * rng.normal(size=shape)))


def brute_force_gaps(probs, labels, edges):
    """Weight and |accuracy - confidence| of each occupied bin (lo, hi]."""
    confidence, hit = probs.max(axis=1), probs.argmax(axis=1) == labels
    gaps = []
    for lo, hi in itertools.pairwise(edges):
        inside = (confidence > lo) & (confidence <= hi)
        if inside.any():
            gaps.append((inside.mean(), abs(hit[inside].mean() - confidence[inside].mean())))
    return np.array(gaps).T


# --- classification --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [2, 4])
def test_scores_match_scikit_learn(num_classes, dtype):
    probs, labels = classification(num_classes=num_classes, dtype=dtype)
    one_hot = np.eye(num_classes, dtype=dtype)[labels]
    reference = probs.astype(float)
    expected = {
        mt.negative_log_likelihood: sklearn.metrics.log_loss(
            labels, reference / reference.sum(axis=1, keepdims=True), labels=range(num_classes)
        ),
        mt.accuracy: sklearn.metrics.accuracy_score(labels, probs.argmax(axis=1)),
        mt.brier_score: ((reference - one_hot) ** 2).sum(axis=1).mean(),
    }
    if num_classes == 2:
        positive = sklearn.metrics.brier_score_loss(labels, reference[:, 1])
        np.testing.assert_allclose(2 * positive, expected[mt.brier_score], rtol=1e-6)
    with precision(dtype):
        for metric, value in expected.items():
            for y in (labels, one_hot):
                found = metric(probs, y)
                assert found.dtype == dtype
                np.testing.assert_allclose(found, value, rtol=tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_bins", [1, 7, 1000])
def test_calibration_errors_match_brute_force(num_bins, dtype):
    probs, labels = classification(dtype=dtype)
    weights, gaps = brute_force_gaps(probs, labels, np.linspace(0, 1, num_bins + 1, dtype=dtype))
    order = np.argsort(probs.max(axis=1))
    adaptive = sum(
        abs((probs.argmax(axis=1) == labels)[group].mean() - probs.max(axis=1)[group].mean())
        * len(group)
        / len(order)
        for group in np.array_split(order, num_bins)
        if len(group)
    )
    expected = ((weights * gaps).sum(), gaps.max(), adaptive)
    with precision(dtype):
        for metric, value in zip(CALIBRATION, expected, strict=True):
            found = metric(probs, labels, num_bins)
            assert found.dtype == dtype
            np.testing.assert_allclose(found, value, atol=tolerance(dtype))


def test_reliability_bins_hold_what_they_say():
    probs = np.array([[1.0, 0], [0.5, 0.5], [0.75, 0.25], [0.2, 0.8]], "float32")
    bins = mt.reliability_bins(probs, np.array([0, 1, 0, 0]), num_bins=4)
    np.testing.assert_array_equal(bins.edges, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(bins.counts, [0, 1, 1, 2])  # (lo, hi]: an edge is in the lower
    np.testing.assert_allclose(bins.confidence, [0, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(bins.accuracy, [0, 0, 1, 0.5])


@pytest.mark.parametrize("num_classes", [1, 3])
def test_perfect_predictions(num_classes):
    probs = np.eye(num_classes, dtype="float32")[np.arange(30) % num_classes]
    labels = np.arange(30) % num_classes
    for metric in CLASSIFICATION:
        expected = 1.0 if metric is mt.accuracy else 0.0
        np.testing.assert_allclose(metric(probs, labels), expected, atol=1e-7)


def test_certain_and_wrong():
    probs, labels = np.array([[1.0, 0.0]] * 5, "float32"), np.ones(5, int)
    np.testing.assert_allclose(
        mt.negative_log_likelihood(probs, labels), -np.log(np.finfo("float32").tiny), rtol=1e-6
    )
    np.testing.assert_allclose(mt.brier_score(probs, labels), 2)
    for metric in CALIBRATION:
        np.testing.assert_allclose(metric(probs, labels), 1)


def test_soft_labels_give_the_cross_entropy():
    probs, _ = classification(dtype="float32")
    soft, _ = classification(seed=1, dtype="float32")
    expected = -(soft * np.log(probs)).sum(axis=1).mean()
    np.testing.assert_allclose(mt.negative_log_likelihood(probs, soft), expected, rtol=1e-5)


def test_the_order_of_tied_examples_does_not_matter():
    rng = np.random.default_rng(0)
    top = rng.choice([0.6, 0.75, 1.0], size=40).astype("float32")
    probs, labels = np.stack([top, 1 - top], axis=1), rng.integers(2, size=40)
    order = rng.permutation(40)
    for metric in CALIBRATION:
        found = metric(probs, labels, 5)
        np.testing.assert_allclose(metric(probs[order], labels[order], 5), found, atol=1e-6)


def test_a_calibrated_classifier_has_a_small_error():
    probs, labels = classification(num_examples=20_000, dtype="float32")
    assert mt.expected_calibration_error(probs, labels) < 0.02
    assert mt.adaptive_calibration_error(probs, labels) < 0.02


def test_a_million_examples_in_float32():
    rng = np.random.default_rng(0)
    top = rng.uniform(0.9, 1, size=1_000_000)
    probs, labels = np.stack([top, 1 - top], axis=1), (rng.uniform(size=top.size) > top).astype(int)
    _, gaps = brute_force_gaps(probs, labels, np.linspace(0, 1, 16))
    found = mt.maximum_calibration_error(probs.astype("float32"), labels)
    np.testing.assert_allclose(found, gaps.max(), atol=1e-5)


# --- auroc -----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    inside=hnp.arrays("float32", 12, elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0, np.inf])),
    outside=hnp.arrays("float32", 7, elements=st.sampled_from([-1.0, 0.0, 0.5, 3.0, -np.inf])),
)
def test_auroc_counts_pairs(inside, outside):
    wins = (outside[:, None] > inside) + 0.5 * (outside[:, None] == inside)
    np.testing.assert_allclose(mt.auroc(inside, outside), wins.mean(), atol=1e-6)
    np.testing.assert_allclose(mt.auroc(outside, inside), 1 - wins.mean(), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_auroc_matches_scikit_learn(dtype):
    rng = np.random.default_rng(0)
    inside = rng.normal(size=3000).round(1).astype(dtype)
    outside = rng.normal(0.7, 1, size=2000).round(1).astype(dtype)
    is_out = np.r_[np.zeros(3000), np.ones(2000)]
    expected = sklearn.metrics.roc_auc_score(is_out, np.r_[inside, outside])
    with precision(dtype):
        found = mt.auroc(inside, outside)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=tolerance(dtype))


# --- regression ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(50,), (10, 2, 3)])
def test_regression_matches_scipy(shape, dtype):
    mean, std, y = regression(shape, dtype=dtype)
    norm = scipy.stats.norm(mean.astype(float), std.astype(float))
    z = (y - mean) / std
    levels = np.array([0.1, 0.5, 0.95], dtype)
    inside = [np.abs(z) <= scipy.stats.norm.ppf((1 + q) / 2) for q in levels.astype(float)]
    with precision(dtype):
        found = (
            mt.gaussian_nll(mean, std**2, y),
            mt.chi_squared(mean, std**2, y),
            mt.rmse(mean, y),
            mt.interval_coverage(mean, std, y, levels),
        )
    expected = (
        -norm.logpdf(y).reshape(shape[0], -1).sum(axis=1).mean(),
        (z**2).mean(),
        np.sqrt(sklearn.metrics.mean_squared_error(y.ravel(), mean.ravel())),
        np.array(inside).reshape(3, -1).mean(axis=1),
    )
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(value, reference, rtol=tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_crps_is_the_integral_of_the_squared_gap_of_distributions(dtype):
    mean, std, y = regression((4,), dtype=dtype)
    grid = np.linspace(-30, 30, 600_001)
    integrals = [
        np.trapezoid((scipy.stats.norm.cdf(grid, m, s) - (grid >= t)) ** 2, grid)
        for m, s, t in zip(mean, std, y, strict=True)
    ]
    with precision(dtype):
        found = mt.crps_gaussian(mean, std, y)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, np.mean(integrals), atol=2e-4)
        np.testing.assert_allclose(
            mt.crps_gaussian(mean, np.full_like(std, 1e-6), y), np.abs(y - mean).mean(), atol=1e-5
        )


def test_calibrated_gaussians():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(20_000, 2)), rng.uniform(0.1, 3, size=(20_000, 2))
    y = mean + std * rng.normal(size=mean.shape)
    levels = np.linspace(0, 1, 11)
    np.testing.assert_allclose(mt.chi_squared(mean, std**2, y), 1, atol=0.03)
    np.testing.assert_allclose(mt.interval_coverage(mean, std, y, levels), levels, atol=0.01)


def test_a_scalar_spread_is_that_of_every_output():
    mean, _, y = regression(dtype="float32")
    full = np.full_like(mean, 0.7)
    for metric in (*WITH_VARIANCE, mt.crps_gaussian):
        np.testing.assert_allclose(metric(mean, 0.7, y), metric(mean, full, y), rtol=1e-6)
    assert mt.interval_coverage(mean, 0.7, y, 0.9) == mt.interval_coverage(mean, full, y, 0.9)


# --- under jit, and low precision ------------------------------------------------------------


def test_all_metrics_compile():
    probs, labels = classification(dtype="float32")
    for metric in CLASSIFICATION:
        np.testing.assert_allclose(jax.jit(metric)(probs, labels), metric(probs, labels), atol=1e-6)
    mean, std, y = regression(dtype="float32")
    for metric in (*WITH_VARIANCE, mt.crps_gaussian):
        np.testing.assert_allclose(jax.jit(metric)(mean, std, y), metric(mean, std, y), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(mt.rmse)(mean, y), mt.rmse(mean, y), rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(mt.auroc)(mean[:, 0], y[:, 1]), mt.auroc(mean[:, 0], y[:, 1])
    )
    coverage = jax.jit(mt.interval_coverage)(mean, std, y, 0.5)
    np.testing.assert_allclose(coverage, mt.interval_coverage(mean, std, y, 0.5), atol=1e-6)


def test_unknown_values_under_jit_give_nan():
    probs, labels = classification(num_examples=20, dtype="float32")
    beyond, negative, unknown = labels.copy(), labels.copy(), probs.copy()
    beyond[3], negative[3], unknown[3] = 4, -1, np.nan
    for metric in CLASSIFICATION:
        compiled = jax.jit(metric)
        assert np.isnan(compiled(probs, beyond))
        assert np.isnan(compiled(probs, negative))
        assert np.isnan(compiled(unknown, labels))
    assert np.isnan(jax.jit(mt.auroc)(unknown[:, 0], probs[:, 0]))
    assert np.isnan(jax.jit(mt.auroc)(probs[:, 0], unknown[:, 0]))
    assert np.isnan(jax.jit(mt.interval_coverage)(unknown, 1.0, probs, 0.5))


def test_half_precision_is_averaged_in_float32():
    probs, labels = classification(num_examples=2000, dtype="float32")
    half = jnp.asarray(probs, jnp.bfloat16)
    for metric in CLASSIFICATION:
        found = metric(half, labels)
        assert found.dtype == jnp.float32
        if metric is not mt.maximum_calibration_error:  # one example may change its bin
            np.testing.assert_allclose(found, metric(probs, labels), atol=0.02)


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", CLASSIFICATION)
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


@pytest.mark.parametrize("metric", [*CALIBRATION, mt.reliability_bins])
def test_num_bins_must_be_positive(metric):
    with pytest.raises(ValueError, match=r"num_bins=0, expected at least 1"):
        metric(*classification(dtype="float32"), num_bins=0)


@pytest.mark.parametrize("metric", [*WITH_VARIANCE, mt.crps_gaussian])
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
    with pytest.raises(ValueError, match=r"y of shape \(5, 1\).*same shape"):
        mt.rmse(mean, y[:, None])
    with pytest.raises(ValueError, match=r"levels outside 0 to 1.*divide percentages"):
        mt.interval_coverage(mean, std, y, np.array([50, 90]))
    with pytest.raises(ValueError, match=r"in_scores of shape \(0,\), expected one score per"):
        mt.auroc(mean[:0], y)
    with pytest.raises(ValueError, match=r"out_scores of shape \(5, 1\)"):
        mt.auroc(mean, y[:, None])
    with pytest.raises(ValueError, match=r"a NaN in out_scores"):
        mt.auroc(mean, y * np.nan)
