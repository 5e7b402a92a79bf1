"""Array-likes of every kind, and the precision that they are computed in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from predictions import classification
from scipy import stats
from sklearn import metrics as sk

from laplace_kit.eval import metrics as mt
from laplace_kit.eval.metrics.inputs import as_numbers, in_own_precision
from laplace_kit.likelihood import Gaussian

RNG = np.random.default_rng(0)


# --- precision ------------------------------------------------------------------------------------


def test_targets_far_from_zero_keep_their_digits():
    """Times in seconds since 1970, of which float32 knows every 128th."""
    mean = 1.7e9 + 1e6 * RNG.random(2000)
    y, std = mean + 28 * RNG.normal(size=2000), np.full(2000, 30.0)
    z = (y - mean) / std
    np.testing.assert_allclose(mt.rmse(mean, y), np.sqrt(np.mean((y - mean) ** 2)), rtol=1e-6)
    np.testing.assert_allclose(mt.mae(mean, y), np.abs(y - mean).mean(), rtol=1e-6)
    covered = np.abs(z) < stats.norm.ppf(0.95)
    np.testing.assert_allclose(mt.interval_coverage(mean, std, y, 0.9), covered.mean(), rtol=1e-6)
    np.testing.assert_allclose(mt.pit_gaussian(mean, std, y), stats.norm.cdf(z), rtol=1e-5)
    nll = -stats.norm.logpdf(y, mean, std).mean()
    np.testing.assert_allclose(mt.gaussian_nll(mean, std**2, y), nll, rtol=1e-6)


def test_scores_that_float32_cannot_tell_apart_keep_their_order():
    inside, outside = RNG.normal(-1e6, 0.02, 500), RNG.normal(-1e6 + 0.03, 0.02, 400)
    is_outside = np.repeat([0, 1], [500, 400])
    expected = sk.roc_auc_score(is_outside, np.concatenate([inside, outside]))
    np.testing.assert_allclose(mt.auroc(inside, outside), expected, rtol=1e-6)
    assert abs(float(mt.auroc(jnp.asarray(inside), jnp.asarray(outside))) - expected) > 0.01
    # Confidences that round to one.
    p = 1 - 10 ** RNG.uniform(-14, -8, 900)
    y = RNG.random(900) < 0.5 + 0.3 * np.argsort(np.argsort(p)) / 900
    np.testing.assert_allclose(mt.auroc(p[~y], p[y]), sk.roc_auc_score(y, p), rtol=1e-6)


def test_the_bootstrap_computes_in_the_same_precision_on_the_same_draws():
    y = 1.7e9 + RNG.normal(size=50)
    mean, key = y + 0.5, jax.random.key(0)
    found = mt.bootstrap(mt.rmse, mean, y, key=key, num_resamples=20)
    np.testing.assert_allclose(found.value, 0.5, rtol=1e-6)
    np.testing.assert_allclose([found.low, found.high], 0.5, rtol=1e-6)
    double = mt.bootstrap(mt.mae, y - 1.7e9, 0 * y, key=key, num_resamples=20)
    single = mt.bootstrap(
        mt.mae, np.float32(y - 1.7e9), np.float32(0 * y), key=key, num_resamples=20
    )
    np.testing.assert_allclose(double.standard_error, single.standard_error, rtol=1e-5)


@in_own_precision
def is_double(*arrays, weights=None):
    return bool(jax.config.jax_enable_x64)


def test_float64_on_the_host_alone_is_computed_in_float64():
    double, single, labels = np.zeros(2), np.zeros(2, "float32"), np.zeros(2, int)
    on_device = jnp.zeros(2)
    assert is_double(double)
    assert is_double(single, labels, weights=double)
    assert is_double({"nested": (double, None)}, jnp.asarray(labels), jax.random.key(0))
    assert not is_double(single, labels, 0.5)
    assert not is_double(on_device, double)
    assert not jax.jit(lambda a: jnp.asarray(is_double(a, double)))(labels)
    assert not jax.config.jax_enable_x64


def test_answers_have_the_precision_that_jax_is_set_to():
    probs, labels = classification(40)
    bins = mt.reliability_bins(probs, labels)
    assert [part.dtype for part in bins] == ["float32", "int32", "float32", "float32"]
    assert isinstance(mt.accuracy(probs, labels), jax.Array)
    # Nothing but constants is inside: these may keep their own precision, the answer not.
    assert jax.jit(lambda: mt.brier_score(probs, labels))().dtype == "float32"
    with jax.enable_x64(True):
        assert mt.brier_score(probs, labels).dtype == "float64"
        assert mt.brier_score(np.float32(probs), labels).dtype == "float32"


# --- array-likes ----------------------------------------------------------------------------------


class Frame:
    """The part of the interface of arrays that a DataFrame or a Series has."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


def test_lists_and_frames_are_arrays():
    probs, labels = classification(30)
    expected = -np.log(probs[np.arange(30), labels]).mean()
    for convert in (np.ndarray.tolist, Frame, lambda a: Frame(a.astype(object))):
        found = mt.negative_log_likelihood(convert(probs), convert(labels))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    weighted = mt.negative_log_likelihood(probs.tolist(), labels, weights=[1] * 29 + [0])
    losses = -np.log(probs[np.arange(29), labels[:29]])
    np.testing.assert_allclose(weighted, losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(mt.auroc([0.1, 0.4, 0.3], [0.2, 0.6]), 2 / 3, rtol=1e-6)
    found = mt.bootstrap(mt.mae, [1.0, 2.0], [1.5, 2.5], key=jax.random.key(0), num_resamples=5)
    assert float(found.value) == 0.5
    assert as_numbers("k", 3) == 3
    assert as_numbers("weights", None) is None


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64"])
def test_labels_of_a_dtype_that_cannot_count_the_classes(dtype):
    probs = RNG.dirichlet(np.ones(300), 40)
    labels = RNG.integers(0, 256, 40)
    expected = -np.log(probs[np.arange(40), labels]).mean()
    found = mt.negative_log_likelihood(probs, labels.astype(dtype))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    p, y = probs[:, 0], labels % 2
    np.testing.assert_allclose(
        mt.binary_brier_score(p, y.astype(dtype)), np.mean((p - y) ** 2), rtol=1e-5
    )


def test_labels_that_32_bits_cannot_hold_are_out_of_range():
    probs, _ = classification(20, dtype="float32")
    with pytest.raises(ValueError, match=r"label 4294967299 at y\[0\], expected integers from 0"):
        mt.accuracy(probs, np.full(20, 2**32 + 3))
    with pytest.raises(ValueError, match=r"labels y outside 0 to 1"):
        mt.binary_brier_score(probs[:, 0], np.full(20, 2**32 + 1))


def test_what_holds_no_numbers_is_refused():
    probs, _ = classification(20)
    with pytest.raises(TypeError, match=r"Found y of text .*np\.unique"):
        mt.accuracy(probs, ["cat"] * 20)
    with pytest.raises(TypeError, match=r"Found y as objects .*a Gaussian"):
        mt.accuracy(probs, np.array([Gaussian()] * 20))
    with pytest.raises(ValueError, match=r"Found probs of type list, which NumPy refuses"):
        mt.entropy_score([[0.5, 0.5], [1.0]])
    with pytest.raises(TypeError, match=r"Found std of dtype complex64, expected real numbers"):
        mt.sharpness(np.ones(3, "complex64"))
