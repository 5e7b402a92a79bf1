"""A law of a user's own, integrated over uncertain outputs, and everything that asks for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from scipy import special, stats

import laplace_kit as lk
from laplace_kit.eval.batches import predict_over, split
from laplace_kit.likelihood import Factorized
from laplace_kit.targets import Law, Outputs, mixture
from laplace_kit.tree import pytree_dataclass

RNG = np.random.default_rng(0)


@pytree_dataclass()
class WeibullLaw(Law):
    """Waiting times with the scale exp(f) and one shape; exponential where the shape is one."""

    shape: float | jax.Array

    def mean(self, f):
        return jnp.exp(f + jax.lax.lgamma(1 + 1 / jnp.asarray(self.shape, f.dtype)))

    def variance(self, f):
        second = jnp.exp(2 * f + jax.lax.lgamma(1 + 2 / jnp.asarray(self.shape, f.dtype)))
        return second - self.mean(f) ** 2

    def log_prob(self, f, y):
        z = self.shape * (jnp.log(y) - f)
        return jnp.log(self.shape) + z - jnp.log(y) - jnp.exp(z)

    def cdf(self, f, y):
        return -jnp.expm1(-((jnp.maximum(y, 0) * jnp.exp(-f)) ** self.shape))

    def sample(self, key, f):
        return jnp.exp(f) * jax.random.exponential(key, f.shape, f.dtype) ** (1 / self.shape)


@pytree_dataclass()
class Weibull(Factorized):
    shape: float | jax.Array = 1.0

    def entry_shape(self, event):
        return event

    def entry_losses(self, f, y):
        return -WeibullLaw(self.shape).log_prob(f, y)

    def valid_entries(self, f, y):
        return y > 0

    def to_outputs(self, entries, f):
        return entries

    def hessian_mv(self, f, y, u):
        return self.shape**2 * (y * jnp.exp(-f)) ** self.shape * u

    def hessian_sqrt_mv(self, f, y, w):
        return self.shape * (y * jnp.exp(-f)) ** (self.shape / 2) * w

    def sample(self, key, f):
        return WeibullLaw(self.shape).sample(key, f)

    def check_shapes(self, outputs, targets):
        if targets.shape != outputs:
            raise ValueError("Weibull: found targets of another shape than outputs.")

    def targets(self, outputs):
        return mixture(outputs, WeibullLaw(self.shape))

    @property
    def support(self):
        return "positive numbers"


# --- the distribution -----------------------------------------------------------------------------

F, VAR = np.asarray([[0.3, -1.0], [2.0, 0.0]]), np.asarray([[0.5, 0.01], [2.0, 0.0]])
Y = np.asarray([[1.0, 3.0], [0.1, 0.5]])


def log_average(log_fn, f, var):
    """Sum over a grid that is fine next to the outputs' spread and to the law."""
    if var == 0:
        return log_fn(f)
    grid = np.linspace(f - 14 * var**0.5, f + 14 * var**0.5, 40_001)
    return special.logsumexp(log_fn(grid) + stats.norm.logpdf(grid, f, var**0.5)) + np.log(
        grid[1] - grid[0]
    )


@pytest.mark.parametrize("shape", [1.0, 2.5])
def test_the_output_is_integrated_out(shape, x64):
    found = Weibull(shape).targets(Outputs(jnp.asarray(F), jnp.asarray(VAR)))
    log_p, at_most = found.log_prob(jnp.asarray(Y)), found.cdf(jnp.asarray(Y))

    def law(f):
        return stats.weibull_min(shape, scale=np.exp(f))

    for n, c in np.ndindex(2, 2):
        f, var, y = F[n, c], VAR[n, c], Y[n, c]
        density = log_average(lambda z, y=y: law(z).logpdf(y), f, var)
        assert float(log_p[n, c]) == pytest.approx(density, abs=1e-8)
        distribution = log_average(lambda z, y=y: law(z).logcdf(y), f, var)
        assert float(at_most[n, c]) == pytest.approx(np.exp(distribution), abs=1e-8)
    gamma = special.gamma(1 + 1 / shape)
    np.testing.assert_allclose(found.mean, gamma * np.exp(F + VAR / 2), rtol=1e-9)
    expected = gamma**2 * np.exp(2 * F + VAR) * np.expm1(VAR)
    np.testing.assert_allclose(found.epistemic_var, expected, rtol=1e-8, atol=1e-12)
    own = (special.gamma(1 + 2 / shape) - gamma**2) * np.exp(2 * F + 2 * VAR)
    np.testing.assert_allclose(found.aleatoric_var, own, rtol=1e-8)
    q = jnp.asarray([0.05, 0.5, 0.99])
    for level, values in zip(q, found.quantile(q), strict=True):
        np.testing.assert_allclose(found.cdf(values), np.full((2, 2), level), rtol=1e-9)


def test_other_values_do_not_compile_again():
    def ask(shift):
        outputs = Outputs(jnp.asarray(F + shift, jnp.float32), jnp.asarray(VAR, jnp.float32))
        found = Weibull(jnp.asarray(1.5 + shift, jnp.float32)).targets(outputs)
        y = jnp.asarray(Y, jnp.float32)
        return found.log_prob(y), found.cdf(y), found.quantile(jnp.asarray([0.1, 0.9]))

    jax.block_until_ready(ask(0.0))
    with twins.compilations() as names:
        jax.block_until_ready(ask(0.25))
    assert [name for name in names if "quantile" in name or "cdf" in name or "prob" in name] == []


# --- a likelihood of a user's own, from end to end ------------------------------------------------


def linear(params, x):
    return x @ params


def waiting_times(num, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, 2)).astype(np.float32)
    times = np.exp(x @ [[0.5], [-0.3]]) * rng.weibull(1.5, (num, 1))
    return x, times.astype(np.float32)


TRAIN, TEST = waiting_times(120, 0), waiting_times(80, 1)


@pytest.fixture(scope="module")
def fitted():
    params = jnp.asarray([[0.5], [-0.3]], jnp.float32)
    return lk.fit(linear, params, TRAIN, likelihood=Weibull(1.5), structure="full")


def test_tuning_by_data_minimises_the_loss_of_the_mixture():
    """A mode that few examples have led astray, so that some uncertainty is better than none."""
    few = tuple(part[:8] for part in TRAIN)
    params = jnp.asarray([[0.65], [-0.2]], jnp.float32)
    la = lk.fit(linear, params, few, likelihood=Weibull(1.5), structure="full")

    def loss(la):
        return float(-np.mean(la.predict(TEST[0]).log_prob(TEST[1])))

    tuned = la.tune(data=TEST)
    assert tuned.evaluate(TEST)["nll"] == pytest.approx(loss(tuned), rel=1e-5)
    best = min(loss(la.with_prior(float(10**power))) for power in np.linspace(-1, 5, 25))
    assert loss(tuned) <= best + 1e-5
    folds = la.tune(method="cross_validation", data=few, num_folds=4)
    assert folds.tuning.method == "cross_validation"
    assert np.isfinite(folds.tuning.objective).all()


def test_predictions_have_intervals_parts_transforms_and_conformal_intervals(fitted):
    pred = fitted.predict(TEST[0])
    low, high = pred.interval(0.8)
    np.testing.assert_allclose(pred.cdf(high) - pred.cdf(low), 0.8, rtol=1e-3)
    np.testing.assert_allclose(pred.uncertainty().total_var, pred.var)
    assert stats.kstest(np.asarray(lk.eval.pit(pred, TEST[1])).ravel(), "uniform").pvalue > 0.01
    ends = lk.eval.conformal_intervals(pred, TEST[1], level=0.9)(pred)
    inside = np.mean((ends[0] <= TEST[1]) & (TEST[1] <= ends[1]))
    assert 0.9 <= inside <= 0.93
    with pytest.raises(TypeError, match="no recalibration is defined"):
        lk.eval.recalibrate(pred, TEST[1])
    with pytest.raises(TypeError, match="expected classes"):
        pred.prediction_set()
    batches = predict_over(fitted.predict, split(TEST[0], 32))
    np.testing.assert_allclose(batches.quantile(0.3), pred.quantile(0.3), rtol=1e-5)
    assert fitted.predict(TEST[0], method="sampled", key=jax.random.key(0)).mean.shape == (80, 1)


def test_metrics_are_those_of_the_distribution(fitted):
    found, pred = fitted.evaluate(TEST), fitted.predict(TEST[0])
    low, high = pred.interval(0.9)
    y = TEST[1]
    assert set(found) == {"nll", "rmse", "chi_squared", "coverage_90"}
    assert found["coverage_90"] == pytest.approx(np.mean((low <= y) & (y <= high)))
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((y - pred.mean) ** 2)), rel=1e-5)
    mask = np.arange(80)[:, None] % 2
    masked = lk.fit(
        linear,
        fitted.params,
        (TRAIN[0], (TRAIN[1], np.ones((120, 1)))),
        likelihood=lk.Masked(Weibull(1.5)),
        structure="full",
    ).evaluate((TEST[0], (np.where(mask, y, np.nan).astype(np.float32), mask)))
    expected = -np.mean(np.asarray(pred.log_prob(y))[mask == 1])
    assert masked["nll"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_report_is_written(fitted, tmp_path):
    report = fitted.report(TEST, tmp_path)
    assert report.index.exists()
    assert report.metrics["laplace"]["rmse"] == pytest.approx(
        fitted.evaluate(TEST)["rmse"], rel=1e-5
    )
