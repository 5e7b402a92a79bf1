"""Metrics by likelihood: against NumPy, SciPy and scikit-learn on predictives made by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
import twins
from scipy import integrate, stats
from sklearn.metrics import log_loss

from laplace_kit.eval.evaluate import as_classes, evaluate, negative_log_likelihood
from laplace_kit.eval.predictive import Predictive
from laplace_kit.likelihood import Bernoulli, Categorical, FromLoss, Gaussian, Poisson

N = 6
RNG = np.random.default_rng(0)
F = RNG.normal(size=(N, 2))
F_VAR = RNG.uniform(0.1, 1.0, size=(N, 2))


def regression_predictive() -> Predictive:
    mean, var = jnp.asarray(F), jnp.asarray(F_VAR)
    return Predictive(mean, var, mean=mean, epistemic_var=var, noise_var=jnp.full_like(var, 0.2))


def test_classification(x64):
    probs = RNG.dirichlet(np.ones(3), size=N)
    y = RNG.integers(0, 3, N)
    predictive = Predictive(jnp.log(probs), jnp.zeros((N, 3)), probs=jnp.asarray(probs))
    found = evaluate(Categorical(), predictive, jnp.asarray(y))
    assert found["nll"] == pytest.approx(log_loss(y, probs, labels=[0, 1, 2]))
    assert found["accuracy"] == pytest.approx(np.mean(probs.argmax(axis=1) == y))
    assert found["brier"] == pytest.approx(np.mean(np.sum((probs - np.eye(3)[y]) ** 2, axis=1)))
    assert all(isinstance(value, float) for value in found.values())
    soft = evaluate(Categorical(), predictive, jnp.eye(3)[y])
    assert soft["nll"] == pytest.approx(found["nll"])


def test_classification_at_several_positions_counts_each(x64):
    probs = RNG.dirichlet(np.ones(3), size=(N, 2))
    y = RNG.integers(0, 3, (N, 2))
    predictive = Predictive(jnp.log(probs), jnp.zeros((N, 2, 3)), probs=jnp.asarray(probs))
    found = evaluate(Categorical(), predictive, jnp.asarray(y))
    rows, labels = probs.reshape(-1, 3), y.ravel()
    assert found["nll"] == pytest.approx(log_loss(labels, rows, labels=[0, 1, 2]))
    assert found["accuracy"] == pytest.approx(np.mean(rows.argmax(axis=1) == labels))


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 2)])
def test_binary(shape, x64):
    p = RNG.uniform(0.05, 0.95, size=shape)
    y = RNG.integers(0, 2, shape)
    predictive = Predictive(jnp.log(p / (1 - p)), jnp.zeros(shape), probs=jnp.asarray(p))
    found = evaluate(Bernoulli(), predictive, jnp.asarray(y))
    assert found["nll"] == pytest.approx(log_loss(y.ravel(), p.ravel()))
    assert found["accuracy"] == pytest.approx(np.mean((p > 0.5) == y))
    rows, labels = as_classes(Bernoulli(), predictive, jnp.asarray(y))
    np.testing.assert_allclose(rows[:, 1], p.ravel())
    np.testing.assert_array_equal(labels, y.ravel())


def test_regression(x64):
    y = RNG.normal(size=(N, 2))
    found = evaluate(Gaussian(), regression_predictive(), jnp.asarray(y))
    normal = stats.norm(F, np.sqrt(F_VAR + 0.2))
    assert found["nll"] == pytest.approx(-normal.logpdf(y).sum(axis=1).mean())
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((F - y) ** 2)))
    inside = np.abs(y - F) <= stats.norm.ppf(0.95) * normal.std()
    assert found["coverage_90"] == pytest.approx(inside.mean())


def test_counts_integrate_the_rate_out(x64):
    y = RNG.poisson(2.0, size=(N, 2))
    rate = jnp.exp(jnp.asarray(F + F_VAR / 2))
    predictive = Predictive(
        jnp.asarray(F), jnp.asarray(F_VAR), mean=rate, epistemic_var=rate, noise_var=rate
    )
    found = evaluate(Poisson(), predictive, jnp.asarray(y))

    def marginal(mean, var, count):
        normal = stats.norm(mean, np.sqrt(var))
        bounds = normal.interval(1 - 1e-14)
        return integrate.quad(
            lambda f: stats.poisson.pmf(count, np.exp(f)) * normal.pdf(f), *bounds, epsabs=1e-12
        )[0]

    losses = -np.log(np.vectorize(marginal)(F, F_VAR, y))
    assert found["nll"] == pytest.approx(losses.sum(axis=1).mean(), rel=1e-5)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((np.asarray(rate) - y) ** 2)))


def test_another_loss_is_taken_at_the_mean_outputs(x64):
    y = RNG.normal(size=(N, 2))
    likelihood = FromLoss(twins.log_cosh_loss)
    predictive = Predictive(jnp.asarray(F), jnp.asarray(F_VAR))
    found = evaluate(likelihood, predictive, jnp.asarray(y))
    expected = np.log(np.cosh(F - y)).sum(axis=1) + 0.1 * F.sum(axis=1) ** 2
    assert found == {"loss": pytest.approx(expected.mean())}
    with pytest.raises(
        TypeError, match=r"FromLoss likelihood, which defines no predictive.*evidence"
    ):
        negative_log_likelihood(likelihood, predictive, jnp.asarray(y))


@pytest.mark.parametrize("likelihood", [Gaussian(), Categorical(), Bernoulli(), Poisson()])
def test_negative_log_likelihood_is_the_one_that_is_evaluated(likelihood, x64):
    y = RNG.integers(0, 2, (N, 2))
    y = y[:, 0] if isinstance(likelihood, Categorical) else y
    predictive = regression_predictive()
    if isinstance(likelihood, Categorical | Bernoulli):
        probs = RNG.dirichlet(np.ones(2), size=N)
        predictive = Predictive(jnp.log(probs), jnp.zeros((N, 2)), probs=jnp.asarray(probs))
    loss = negative_log_likelihood(likelihood, predictive, jnp.asarray(y))
    assert float(loss) == evaluate(likelihood, predictive, jnp.asarray(y))["nll"]


def test_labels_out_of_range_are_refused():
    predictive = Predictive(jnp.zeros((2, 3)), jnp.zeros((2, 3)), probs=jnp.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"label 3 at y\[1\], expected integers from 0 to 2"):
        evaluate(Categorical(), predictive, jnp.asarray([0, 3]))
