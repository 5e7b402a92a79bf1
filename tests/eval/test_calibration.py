"""Calibration measures take predictives and plain arrays alike, and refuse what is neither."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from laplace_kit.eval import metrics
from laplace_kit.eval.calibration import (
    adversarial_calibration,
    calibration_tests,
    corp_reliability,
    smooth_reliability,
    uniformity_tests,
)
from laplace_kit.eval.outputs import Predictive
from laplace_kit.likelihood import Bernoulli, Categorical
from laplace_kit.targets import BinaryTargets, ClassTargets, NormalTargets, Outputs

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.ones(3), 120).astype("float32")
Y = (PROBS.cumsum(axis=1) < RNG.uniform(size=(120, 1))).sum(axis=1).clip(0, 2)


def classifier(probs):
    probs = jnp.asarray(probs)
    return Predictive(ClassTargets(Outputs(0 * probs, probs), probs), Categorical())


@pytest.mark.parametrize("measure", [calibration_tests, smooth_reliability, corp_reliability])
def test_predictives_and_arrays_agree(measure):
    weights = RNG.uniform(size=120)
    found = measure(classifier(PROBS), Y, weights=weights)
    for plain, labels in ((PROBS, Y), (PROBS.tolist(), Y.tolist()), (PROBS, np.eye(3)[Y])):
        other = measure(plain, labels, weights=weights)
        for ours, theirs in zip(found, other, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_missing_labels_do_not_count():
    mask = np.arange(120) % 3 > 0
    found = calibration_tests(classifier(PROBS), (Y, mask))
    np.testing.assert_allclose(found, calibration_tests(PROBS[mask], Y[mask]), rtol=1e-5)


def test_one_probability_is_that_of_class_one():
    p, y = PROBS[:, 0], (Y == 0)
    both = np.stack([1 - p, p], axis=1)
    single, as_two = calibration_tests(p, y), calibration_tests(both, y.astype(int))
    np.testing.assert_allclose(single.spiegelhalter, as_two.spiegelhalter, rtol=1e-5)
    assert single.kuiper != as_two.kuiper  # of class 1, and of the most probable class
    assert corp_reliability(p, y).score == pytest.approx(np.mean((p - y) ** 2), rel=1e-5)
    column = jnp.asarray(p[:, None])
    binary = Predictive(BinaryTargets(Outputs(column, column), column), Bernoulli())
    np.testing.assert_allclose(
        calibration_tests(binary, y[:, None] * 1.0), calibration_tests(both, y * 1), rtol=1e-4
    )


def test_uniformity_of_several_outputs():
    pit = RNG.uniform(size=(40, 2))
    found = uniformity_tests(pit)
    assert found.kolmogorov_smirnov.statistic == pytest.approx(
        stats.kstest(pit.ravel(), "uniform").statistic
    )
    weighted = uniformity_tests(pit, weights=np.arange(40) < 20)
    np.testing.assert_allclose(weighted, uniformity_tests(pit[:20]))


# --- random groups --------------------------------------------------------------------------------


def test_the_group_of_all_has_the_quantile_calibration_error():
    pit, weights = RNG.uniform(size=(60, 2)) ** 1.2, RNG.uniform(size=60)
    found = adversarial_calibration(pit, weights=weights, shares=[0.1, 1.0])
    expected = metrics.quantile_calibration_error(pit, weights=weights)
    assert found.errors[1] == pytest.approx(float(expected), rel=1e-5)
    assert found.errors[0] > found.errors[1]
    np.testing.assert_array_equal(
        found.errors, adversarial_calibration(pit, weights=weights, shares=[0.1, 1.0]).errors
    )


def test_errors_that_cancel_show_in_small_groups():
    """Half too low and half too high: calibrated together, and worse than calibrated ones apart."""
    half = RNG.uniform(size=500)
    cancelling = np.concatenate([half / 2, 1 - half / 2])
    shares = [0.02, 1.0]
    honest = adversarial_calibration(RNG.uniform(size=1000), shares=shares, seed=1).errors
    found = adversarial_calibration(cancelling, shares=shares, seed=1).errors
    assert found[1] < 0.03
    assert abs(found[0] / honest[0] - 1) < 0.5  # random groups hold both halves


# --- refusals -------------------------------------------------------------------------------------


def test_refusals():
    mean = jnp.zeros((4, 1))
    numbers = Predictive(NormalTargets(Outputs(mean, mean + 1), mean), None)
    with pytest.raises(TypeError, match="probabilities of classes"):
        calibration_tests(numbers, mean)
    with pytest.raises(TypeError, match="Found a pair of arrays, expected a predictive or prob"):
        smooth_reliability((mean, mean), mean)
    with pytest.raises(ValueError, match="sum to one"):
        corp_reliability(PROBS * 2, Y)
    with pytest.raises(ValueError, match="Found the label 3"):
        calibration_tests(PROBS, Y + 1)
    with pytest.raises(ValueError, match="outside 0 to 1"):
        uniformity_tests([1.2, 0.1])
    with pytest.raises(ValueError, match="Found pit of shape"):
        uniformity_tests([])
    with pytest.raises(ValueError, match=r"Found shares=.* above 0 and at most 1"):
        adversarial_calibration([0.1], shares=[10.0])
    with pytest.raises(ValueError, match="num_groups=0"):
        adversarial_calibration([0.1], num_groups=0)
