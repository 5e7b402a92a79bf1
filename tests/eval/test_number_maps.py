"""Factors of both parts of the variance, and of levels, against what made the data."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.recalibration import recalibrate
from laplace_kit.likelihood import Gaussian
from laplace_kit.targets import ClassTargets, NormalTargets, Outputs

RNG = np.random.default_rng(0)
N = 3000
MEAN, EPISTEMIC = RNG.normal(size=(N, 1)), RNG.uniform(0.1, 2, (N, 1))
ALEATORIC = np.full((N, 1), 0.5)
NOISE = RNG.normal(size=(N, 1))
Y = MEAN + np.sqrt((0.5 * EPISTEMIC) ** 2 + (2 * ALEATORIC) ** 2) * NOISE


def regression(mean, epistemic, aleatoric):
    mean, v, s2 = (jnp.asarray(of, jnp.float32) for of in (mean, epistemic**2, aleatoric**2))
    return Predictive(NormalTargets(Outputs(mean, v), s2), Gaussian())


def nll(a, b, y, weights=None):
    std = np.sqrt((a * EPISTEMIC) ** 2 + (b * ALEATORIC) ** 2)
    return np.average(-stats.norm.logpdf(y, MEAN, std)[:, 0], weights=weights)


@pytest.mark.parametrize("weights", [None, RNG.integers(0, 3, N)])
def test_factors_of_both_parts_are_the_optimum(weights):
    found = recalibrate((MEAN, EPISTEMIC, ALEATORIC), Y, method="parts", weights=weights)
    best = optimize.minimize(lambda z: nll(*np.exp(z), Y, weights), [0, 0], options={"gtol": 1e-9})
    np.testing.assert_allclose([found.epistemic, found.aleatoric], np.exp(best.x), rtol=1e-3)
    np.testing.assert_allclose([found.epistemic, found.aleatoric], [0.5, 2], rtol=0.2)
    _, epistemic, aleatoric = found((MEAN, EPISTEMIC, ALEATORIC))
    np.testing.assert_allclose(epistemic, float(found.epistemic) * EPISTEMIC)
    np.testing.assert_allclose(aleatoric, float(found.aleatoric) * ALEATORIC)


def test_parts_of_a_predictive_with_missing_targets():
    predictive, seen = regression(MEAN, EPISTEMIC, ALEATORIC), (np.arange(N) % 3 > 0)[:, None]
    found = recalibrate(predictive, (Y.astype("float32"), seen), method="parts")
    plain = recalibrate(
        tuple(of[seen[:, 0]] for of in (MEAN, EPISTEMIC, ALEATORIC)), Y[seen[:, 0]], method="parts"
    )
    np.testing.assert_allclose(found.epistemic, plain.epistemic, rtol=1e-3)
    new = found(predictive)
    variance = (float(plain.epistemic) * EPISTEMIC) ** 2 + (float(plain.aleatoric) * ALEATORIC) ** 2
    np.testing.assert_allclose(new.var, variance, rtol=1e-2)
    np.testing.assert_array_equal(new.mean, predictive.mean)


def test_levels_become_those_of_the_data():
    """Heavier tails than normal: new data reach the levels, to four standard errors."""
    std = np.full((N, 1), 1.0)
    heavy = MEAN + RNG.standard_t(2, (N, 1))
    found = recalibrate((MEAN, std), heavy, method="quantiles")
    y = MEAN + RNG.standard_t(2, (N, 1))
    new = found((MEAN, std))
    for level in (0.5, 0.9):
        low, high = new.interval(level)
        covered = ((low <= y) & (y <= high)).mean()
        assert abs(covered - level) < 4 * np.sqrt(2 * level * (1 - level) / N)
    assert stats.kstest(new.cdf(y).ravel(), "uniform").pvalue > 1e-3
    levels = np.array([0.05, 0.3, 0.8])
    again = [new.cdf(q)[0, 0] for q in new.quantile(levels)]
    np.testing.assert_allclose(again, levels, atol=1e-6)
    predictive = regression(MEAN, 0 * MEAN + 0.6, 0 * MEAN + 0.8)
    same = recalibrate(predictive, heavy.astype("float32"), method="quantiles")(predictive)
    np.testing.assert_allclose(same.quantile(levels), new.quantile(levels), atol=2e-3)
    np.testing.assert_allclose(
        same.cdf(y.astype("float32")), new.cdf(y), atol=0.02
    )  # tails of float32


def test_weights_of_quantiles_repeat_targets():
    weights, std = RNG.integers(0, 3, N), np.ones((N, 1))
    found = recalibrate((MEAN, std), Y, method="quantiles", weights=weights)
    rows = np.repeat(np.arange(N), weights)
    repeated = recalibrate((MEAN[rows], std[rows]), Y[rows], method="quantiles")
    np.testing.assert_allclose(found.observed, repeated.observed)


def test_plain_moments_are_scaled():
    std, weights = np.sqrt(EPISTEMIC**2 + ALEATORIC**2), RNG.uniform(size=N)
    found = recalibrate((MEAN, std), Y, weights=weights)
    expected = np.sqrt(np.average(np.square((Y - MEAN) / std)[:, 0], weights=weights))
    assert float(found.scale) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(found((MEAN, std))[1], expected * std, rtol=1e-5)
    same = recalibrate(regression(MEAN, EPISTEMIC, ALEATORIC), Y.astype("f"), weights=weights)
    assert float(same.scale) == pytest.approx(expected, rel=1e-4)


def test_refusals():
    with pytest.raises(ValueError, match="zero everywhere, expected both"):
        recalibrate((MEAN, 0 * MEAN, ALEATORIC), Y, method="parts")
    with pytest.raises(TypeError, match=r"expected a predictive or three arrays, \(mean, epis"):
        recalibrate((MEAN, ALEATORIC), Y, method="parts")
    with pytest.raises(ValueError, match="residuals that are all zero"):
        recalibrate((MEAN, EPISTEMIC, ALEATORIC), MEAN, method="parts")
    with pytest.raises(ValueError, match="Found targets of shape"):
        recalibrate((MEAN, EPISTEMIC, ALEATORIC), Y[:, 0], method="parts")
    with pytest.raises(ValueError, match="Found y of shape"):
        recalibrate((MEAN, EPISTEMIC), Y[:, 0])
    probs = jnp.full((4, 2), 0.5)
    labels = Predictive(ClassTargets(Outputs(probs, probs), probs), None)
    with pytest.raises(ValueError, match="Found method='parts', expected one of 'temperature'"):
        recalibrate(labels, jnp.zeros(4, int), method="parts")
    with pytest.raises(ValueError, match="between 0 and 1"):
        recalibrate((MEAN, EPISTEMIC), Y, method="quantiles")((MEAN, EPISTEMIC)).quantile(1.5)
