"""Reports ask the distribution of the targets: against SciPy, for every kind of target."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import laplace_kit as lk
from laplace_kit.eval.given import numbers_of
from laplace_kit.eval.outputs import from_gaussian
from laplace_kit.eval.report import (
    RegressionPredictions,
    distributions_of,
    measures,
    regression_report,
)
from laplace_kit.eval.report.compare import compare_report
from laplace_kit.eval.report.files import read_predictions
from laplace_kit.eval.statistics.numbers import TargetScores
from laplace_kit.likelihood import Masked

RNG = np.random.default_rng(0)
F = RNG.normal(1.0, 0.7, (60, 1))


def predictor(likelihood, spread=0.0):
    def predict(x):
        f = jnp.asarray(x)
        moments = (f, jnp.full_like(f, spread), None)
        return from_gaussian(likelihood, *moments, link="probit", key=None, num_samples=2)

    return predict


def poisson_mixture(f, spread):
    """Return `(pmf, cdf)` of counts up to 300 for Gaussian logarithms of the rates."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    rates = np.exp(f + np.sqrt(spread) * nodes)[:, None]
    known = stats.poisson(rates)
    counts = np.arange(300)[None, :, None]
    return (of(counts) @ weights / weights.sum() for of in (known.pmf, known.cdf))


@pytest.mark.usefixtures("x64")
def test_counts_with_uncertain_rates(tmp_path):
    spread = 0.3
    y = RNG.poisson(np.exp(F + np.sqrt(spread) * RNG.normal(size=F.shape))).astype(float)
    data = jnp.asarray(F), jnp.asarray(y)
    predict = {"laplace": predictor(lk.Poisson(), spread)}
    found = compare_report(predict, lk.Poisson(), *data, tmp_path).metrics
    pmf, cdf = poisson_mixture(F, spread)
    count, everyone = y[:, 0].astype(int), np.arange(len(y))
    low, high = ((cdf < level).sum(axis=1) for level in (0.05, 0.95))
    inside = (low <= count) & (count <= high)
    below = np.concatenate([np.zeros((len(y), 1)), cdf], axis=1)
    content = cdf[everyone, high] - below[everyone, low]
    crps = np.square(cdf - (np.arange(300) >= count[:, None])).sum(axis=1)
    values = found["laplace"]
    assert values["nll"] == pytest.approx(-np.log(pmf[everyone, count]).mean(), rel=1e-8)
    assert values["coverage_90"] == pytest.approx(inside.mean())
    assert values["width_90"] == pytest.approx((high - low).mean())
    assert values["crps"] == pytest.approx(crps.mean(), rel=2e-3)
    assert found["claims"]["laplace"]["claimed"] == pytest.approx(content.mean(), rel=1e-8)
    stream = np.random.SeedSequence(0, spawn_key=(100,))
    u = np.random.default_rng(stream).uniform(size=y.shape)[:, 0]
    lower = below[everyone, count]
    pit = lower + u * (cdf[everyone, count] - lower)
    levels = np.arange(1, 20) / 20
    error = np.sqrt(np.mean(((pit[:, None] <= levels).mean(axis=0) - levels) ** 2))
    assert values["quantile_error"] == pytest.approx(error, rel=1e-9)
    normal = measures.measure_regression(
        {"laplace": RegressionPredictions(*(np.asarray(a) for a in _moments(predict, F)))}, y
    )
    assert normal["laplace"]["nll"] != pytest.approx(values["nll"], rel=0.01)
    assert normal["laplace"]["rmse"] == pytest.approx(values["rmse"])


def _moments(predict, x):
    predictive = predict["laplace"](x)
    return predictive.mean, jnp.sqrt(predictive.var)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("likelihood", "known"),
    [
        (lk.StudentT(scale=0.5, degrees_of_freedom=3.0), stats.t(3.0, F, 0.5)),
        (lk.NegativeBinomial(dispersion=0.5), stats.nbinom(2.0, 2 / (2 + np.exp(F)))),
    ],
)
def test_noise_that_is_not_normal(likelihood, known, tmp_path):
    y = known.rvs(random_state=1).astype(float)
    data = jnp.asarray(F), jnp.asarray(y)
    values = compare_report(
        {"laplace": predictor(likelihood)}, likelihood, *data, tmp_path
    ).metrics["laplace"]
    log_prob = known.logpmf(y) if hasattr(known.dist, "pmf") else known.logpdf(y)
    low, high = known.interval(0.9)
    assert values["nll"] == pytest.approx(-log_prob.mean(), rel=1e-7)
    assert values["coverage_90"] == pytest.approx(((low <= y) & (y <= high)).mean())
    assert values["width_90"] == pytest.approx((high - low).mean(), rel=1e-7)
    assert values["chi_squared"] == pytest.approx(((y - known.mean()) ** 2 / known.var()).mean())


def test_files_keep_distributions(tmp_path):
    y = RNG.poisson(np.exp(F))
    data = jnp.asarray(F, jnp.float32), jnp.asarray(y)
    predict = {"map": predictor(lk.Poisson()), "laplace": predictor(lk.Poisson(), 0.1)}
    written = compare_report(predict, lk.Poisson(), *data, tmp_path)
    stored = read_predictions(tmp_path / "predictions.npz")
    again = measures.measure_regression(stored.predictions, stored.y)
    for name in predict:
        assert again[name] == pytest.approx(written.metrics[name], rel=1e-6)


@pytest.mark.usefixtures("x64")
def test_jointly_normal_targets_have_one_density_for_each_example():
    f, y = RNG.normal(size=(5, 2)), RNG.normal(size=(5, 2))
    cov = np.array([[1.0, 0.6], [0.6, 0.5]])
    likelihood = lk.MultivariateGaussian(cov)
    targets = predictor(likelihood)(f).targets
    found = distributions_of(targets, jnp.asarray(y))
    expected = stats.multivariate_normal(np.zeros(2), cov).logpdf(y - f)
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-10)
    np.testing.assert_allclose(found.cdf, stats.norm(f, np.sqrt(np.diag(cov))).cdf(y), rtol=1e-10)
    assert found.content.shape == (5, 2)


def test_missing_entries_have_no_rows():
    y = RNG.poisson(np.exp(F)).astype(np.float32)
    seen = RNG.uniform(size=y.shape) < 0.5
    likelihood = Masked(lk.Poisson())
    given = numbers_of(likelihood, predictor(likelihood)(F.astype(np.float32)), (y, seen))
    found = given.distributions
    expected = stats.poisson(np.exp(F[seen])).logpmf(y[seen])
    np.testing.assert_allclose(found.log_prob, expected, rtol=2e-5)
    assert found.cdf.shape == given.mean.shape == (seen.sum(), 1)


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("cdf", np.full((3, 1), 1.5), r"cdf and cdf_below of 'a' .*\(0, 0\)"),
        ("cdf_below", np.full((3, 1), 0.9), "cdf and cdf_below of 'a'"),
        ("low", np.full((3, 1), 9.0), "low and high of 'a'"),
        ("content", np.full((3, 1), -1.0), "content of 'a'"),
    ],
)
def test_what_no_distribution_implies(field, values, message, tmp_path):
    y = np.zeros((3, 1))
    targets = lk.Gaussian().targets(predictor(lk.Gaussian())(y).targets.outputs)
    given = replace(distributions_of(targets, jnp.asarray(y)), **{field: values})
    predictions = {"a": RegressionPredictions(y, np.ones_like(y), None, given)}
    with pytest.raises(ValueError, match=message):
        regression_report(predictions, y, tmp_path)


def test_distributions_of_other_targets(tmp_path):
    y = np.zeros((3, 1))
    targets = lk.Gaussian().targets(predictor(lk.Gaussian())(np.zeros((4, 1))).targets.outputs)
    given = distributions_of(targets, np.zeros((4, 1)))
    predictions = {"a": RegressionPredictions(y, np.ones_like(y), None, given)}
    with pytest.raises(ValueError, match=r"log_prob of shape \(4,\) for 'a', expected \(3,\)"):
        regression_report(predictions, y, tmp_path)


def test_transforms_are_uniform_for_data_that_were_made_with_the_same_seed():
    rng = np.random.default_rng(0)
    rates = np.exp(2 * rng.uniform(size=(3000, 1)))
    y, known = rng.poisson(rates), stats.poisson(rates)
    zero = np.zeros(y.shape)
    scores = TargetScores(zero[:, 0], known.cdf(y), known.cdf(y - 1), zero, zero, zero, zero)
    found = measures.integral_transforms(scores, 0)
    assert stats.kstest(found.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(found.ravel(), rates.ravel())[0, 1]) < 0.05
    assert (found != measures.integral_transforms(scores, 1)).any()
