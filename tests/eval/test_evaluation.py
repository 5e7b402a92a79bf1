"""Metrics by likelihood: against NumPy, SciPy and scikit-learn on predictives made by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
import twins
from scipy import integrate, stats
from sklearn.metrics import log_loss

import laplace_kit as lk
from laplace_kit.eval.evaluation import (
    as_classes,
    evaluate,
    negative_log_likelihood,
    observed_rows,
)
from laplace_kit.eval.predictive import Predictive
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    FromLoss,
    Gaussian,
    HeteroscedasticGaussian,
    Masked,
    MultivariateGaussian,
    Poisson,
)
from laplace_kit.targets import BinaryTargets, ClassTargets, NormalTargets, Outputs

N = 6
RNG = np.random.default_rng(0)
F = RNG.normal(size=(N, 2))
F_VAR = RNG.uniform(0.1, 1.0, size=(N, 2))


def regression_predictive() -> Predictive:
    mean, var = jnp.asarray(F), jnp.asarray(F_VAR)
    return Predictive(NormalTargets(Outputs(mean, var), jnp.full_like(var, 0.2)))


def of_classes(f, f_var, probs) -> Predictive:
    return Predictive(ClassTargets(Outputs(f, f_var), probs))


def of_binary_labels(f, f_var, probs) -> Predictive:
    return Predictive(BinaryTargets(Outputs(f, f_var), probs))


def test_classification(x64):
    probs = RNG.dirichlet(np.ones(3), size=N)
    y = RNG.integers(0, 3, N)
    predictive = of_classes(jnp.log(probs), jnp.zeros((N, 3)), jnp.asarray(probs))
    found = evaluate(Categorical(), predictive, jnp.asarray(y))
    assert found["nll"] == pytest.approx(log_loss(y, probs, labels=[0, 1, 2]))
    assert found["accuracy"] == pytest.approx(np.mean(probs.argmax(axis=1) == y))
    assert found["brier"] == pytest.approx(np.mean(np.sum((probs - np.eye(3)[y]) ** 2, axis=1)))
    assert all(isinstance(value, float) for value in found.values())
    soft = evaluate(Categorical(), predictive, jnp.eye(3)[y])
    assert soft["nll"] == pytest.approx(found["nll"])


@pytest.mark.parametrize(("dtype", "num_classes"), [("uint8", 300), ("int8", 200)])
def test_labels_in_a_dtype_that_does_not_count_to_all_classes(dtype, num_classes, x64):
    probs = RNG.dirichlet(np.ones(num_classes), size=N)
    y = np.asarray([3, 44, 99, 100, 126, 127], dtype)
    predictive = of_classes(jnp.log(probs), jnp.zeros((N, num_classes)), jnp.asarray(probs))
    found = evaluate(Categorical(), predictive, jnp.asarray(y))
    assert found["nll"] == pytest.approx(-np.log(probs[np.arange(N), y]).mean())
    one_hot = np.eye(num_classes)[y]
    assert found["brier"] == pytest.approx(np.mean(np.sum((probs - one_hot) ** 2, axis=1)))


def test_classification_at_several_positions_counts_each(x64):
    probs = RNG.dirichlet(np.ones(3), size=(N, 2))
    y = RNG.integers(0, 3, (N, 2))
    predictive = of_classes(jnp.log(probs), jnp.zeros((N, 2, 3)), jnp.asarray(probs))
    found = evaluate(Categorical(), predictive, jnp.asarray(y))
    rows, labels = probs.reshape(-1, 3), y.ravel()
    assert found["nll"] == pytest.approx(log_loss(labels, rows, labels=[0, 1, 2]))
    assert found["accuracy"] == pytest.approx(np.mean(rows.argmax(axis=1) == labels))


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 2)])
def test_binary(shape, x64):
    p = RNG.uniform(0.05, 0.95, size=shape)
    y = RNG.integers(0, 2, shape)
    predictive = of_binary_labels(jnp.log(p / (1 - p)), jnp.zeros(shape), jnp.asarray(p))
    found = evaluate(Bernoulli(), predictive, jnp.asarray(y))
    assert found["nll"] == pytest.approx(log_loss(y.ravel(), p.ravel()))
    assert found["accuracy"] == pytest.approx(np.mean((p > 0.5) == y))
    rows, labels = as_classes(Bernoulli(), predictive, jnp.asarray(y))
    np.testing.assert_allclose(rows[:, 1], p.ravel())
    np.testing.assert_array_equal(labels, y.ravel())


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int8", "float16", "bfloat16"])
def test_binary_labels_of_any_dtype(dtype, x64):
    p, y = RNG.uniform(0.05, 0.95, size=N), np.arange(N) % 2
    predictive = of_binary_labels(jnp.log(p / (1 - p)), jnp.zeros(N), jnp.asarray(p))
    found = evaluate(Bernoulli(), predictive, jnp.asarray(y, dtype))
    assert found["nll"] == pytest.approx(log_loss(y, p))
    assert found["accuracy"] == pytest.approx(np.mean((p > 0.5) == y))


def test_binary_targets_in_between_are_rounded_for_accuracy_alone(x64):
    p, y = RNG.uniform(0.05, 0.95, (2, N, 3))
    predictive = of_binary_labels(jnp.log(p / (1 - p)), jnp.zeros((N, 3)), jnp.asarray(p))
    found = evaluate(Bernoulli(), predictive, jnp.asarray(y))
    cross_entropy = -y * np.log(p) - (1 - y) * np.log(1 - p)
    assert found["nll"] == pytest.approx(cross_entropy.mean())
    assert found["brier"] == pytest.approx(2 * np.mean((p - y) ** 2))
    assert found["accuracy"] == pytest.approx(np.mean(np.round(p) == np.round(y)))
    assert evaluate(Bernoulli(), predictive, jnp.asarray(p))["ece"] == pytest.approx(0.0, abs=1e-12)


def test_smoothing_is_for_the_loss_alone(x64):
    probs = RNG.dirichlet(np.ones(3), size=N)
    y = jnp.asarray(RNG.integers(0, 3, N))
    predictive = of_classes(jnp.log(probs), jnp.zeros((N, 3)), jnp.asarray(probs))
    found = evaluate(Categorical(label_smoothing=0.2), predictive, y)
    assert found == evaluate(Categorical(), predictive, y)


# --- numbers --------------------------------------------------------------------------------------


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
    predictive = Predictive(Poisson().targets(Outputs(jnp.asarray(F), jnp.asarray(F_VAR))))
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
    predictive = Predictive(likelihood.targets(Outputs(jnp.asarray(F), jnp.asarray(F_VAR))))
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
    predictive = Predictive(likelihood.targets(Outputs(jnp.asarray(F), jnp.asarray(F_VAR))))
    loss = negative_log_likelihood(likelihood, predictive, jnp.asarray(y))
    assert float(loss) == evaluate(likelihood, predictive, jnp.asarray(y))["nll"]


@pytest.mark.parametrize("with_cov", [True, False])
def test_correlated_noise_is_judged_jointly(with_cov, x64):
    y = RNG.normal(size=(N, 2))
    root = RNG.normal(size=(N, 2, 2))
    f_cov = root @ np.swapaxes(root, 1, 2)
    f_var = np.einsum("ncc->nc", f_cov)
    noise = np.asarray([[0.5, 0.3], [0.3, 0.4]])
    mean, var = jnp.asarray(F), jnp.asarray(f_var)
    likelihood = MultivariateGaussian(jnp.asarray(noise))
    outputs = Outputs(mean, var, jnp.asarray(f_cov) if with_cov else None)
    found = evaluate(likelihood, Predictive(likelihood.targets(outputs)), jnp.asarray(y))
    covs = (f_cov if with_cov else np.stack([np.diag(v) for v in f_var])) + noise
    normals = [stats.multivariate_normal(m, cov) for m, cov in zip(F, covs, strict=True)]
    losses = [-normal.logpdf(target) for normal, target in zip(normals, y, strict=True)]
    assert found["nll"] == pytest.approx(np.mean(losses), rel=1e-10)
    std = np.sqrt(np.einsum("ncc->nc", covs))
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((F - y) ** 2)))
    assert found["chi_squared"] == pytest.approx(np.mean(((F - y) / std) ** 2))


# --- what is missing ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("event", [(4,), (2, 3)])
@pytest.mark.parametrize("kind", ["ignore_index", "mask", "soft labels"])
def test_missing_labels_drop_out(kind, event, x64):
    """For sequences and images."""
    probs = RNG.dirichlet(np.ones(3), size=(N, *event))
    y = RNG.integers(0, 3, (N, *event))
    seen = RNG.uniform(size=y.shape) < 0.6
    seen[0] = True
    predictive = of_classes(jnp.log(probs), jnp.zeros(probs.shape), jnp.asarray(probs))
    if kind == "ignore_index":
        likelihood, targets = Categorical(ignore_index=-1), jnp.asarray(np.where(seen, y, -1))
    else:
        labels = np.eye(3)[y] if kind == "soft labels" else y
        likelihood, targets = Masked(Categorical()), (jnp.asarray(labels), jnp.asarray(seen))
    left = of_classes(*[jnp.asarray(probs[seen])] * 3)
    found = evaluate(likelihood, predictive, targets)
    assert found == pytest.approx(evaluate(Categorical(), left, jnp.asarray(y[seen])))
    assert found["nll"] == pytest.approx(log_loss(y[seen], probs[seen], labels=[0, 1, 2]))


def test_missing_yes_and_no(x64):
    p, y = RNG.uniform(0.05, 0.95, (N, 3)), RNG.integers(0, 2, (N, 3))
    seen = RNG.uniform(size=y.shape) < 0.6
    f = jnp.log(p / (1 - p))
    predictive = of_binary_labels(f, jnp.zeros((N, 3)), jnp.asarray(p))
    found = evaluate(Masked(Bernoulli()), predictive, (jnp.asarray(y), jnp.asarray(seen)))
    assert found["nll"] == pytest.approx(log_loss(y[seen], p[seen]))
    assert found["accuracy"] == pytest.approx(np.mean((p[seen] > 0.5) == y[seen]))


@pytest.mark.parametrize("inner", [Gaussian(), HeteroscedasticGaussian(), Poisson()])
def test_missing_numbers_drop_out(inner, x64):
    """Sums over an example's outputs have fewer terms; an example of nothing is none."""
    y = jnp.asarray(RNG.poisson(2.0, size=(N, 2)).astype(float))
    seen = np.asarray([[1, 1], [0, 1], [0, 0], [1, 0], [1, 1], [0, 0]])
    predictive = regression_predictive()
    if isinstance(inner, HeteroscedasticGaussian):
        wide = jnp.concatenate([predictive.f_mean, 0 * predictive.f_mean], axis=1)
        spread = jnp.concatenate([predictive.f_var, 0 * predictive.f_var], axis=1)
        predictive = Predictive(inner.targets(Outputs(wide, spread)))
    if isinstance(inner, Poisson):
        predictive = Predictive(inner.targets(predictive.targets.outputs))
    targets = (y.at[2].set(1e3), jnp.asarray(seen))
    found = evaluate(Masked(inner), predictive, targets)
    mean, var = np.asarray(predictive.mean), np.asarray(predictive.var)
    where = seen.astype(bool)
    residual = (np.asarray(y) - mean)[where]
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(residual**2)))
    assert found["chi_squared"] == pytest.approx(np.mean(residual**2 / var[where]))
    if not isinstance(inner, Poisson):
        losses = -stats.norm(mean, np.sqrt(var)).logpdf(y)
        assert found["nll"] == pytest.approx(losses[where].sum() / 4)
    ones = (y, jnp.ones((N, 2)))
    assert evaluate(Masked(inner), predictive, ones) == pytest.approx(
        evaluate(inner, predictive, y)
    )
    rows = observed_rows(Masked(inner), predictive, targets, y)
    np.testing.assert_array_equal(rows[:, 0], np.asarray(y)[where])


def test_other_masks_and_targets_do_not_compile_again(x64):
    predictive, likelihood = regression_predictive(), Masked(Gaussian())
    y, mask = jnp.asarray(RNG.normal(size=(N, 2))), jnp.ones((N, 2), int)
    whole = negative_log_likelihood(likelihood, predictive, (y, mask))
    others = (2 * y, mask.at[0, 0].set(0))
    with twins.compilations() as compiled:
        part = negative_log_likelihood(likelihood, predictive, others)
    assert not compiled
    assert part != whole


def test_a_fit_to_what_was_observed(x64):
    """Outputs that are missing at random: the exact posterior of those that are there."""
    x, y = RNG.normal(size=(20, 3)), RNG.normal(size=(20, 2))
    seen = RNG.uniform(size=y.shape) < 0.7
    noise = np.asarray([0.5, 2.0])
    design = np.stack([np.kron(row[:, None], np.eye(2)) for row in x])  # (N, P, C)
    rows, std = np.moveaxis(design, 1, 2)[seen], np.broadcast_to(noise, y.shape)[seen]
    precision = (rows / std[:, None] ** 2).T @ rows + 0.5 * np.eye(6)
    theta = np.linalg.solve(precision, rows.T @ (y[seen] / std**2))
    la = lk.fit(
        lambda p, x: x @ p,
        jnp.asarray(theta.reshape(3, 2)),
        (x, (np.where(seen, y, -99.0), seen)),
        likelihood=Masked(Gaussian(jnp.asarray(noise))),
        structure="full",
        prior_precision=0.5,
    )
    cov = np.diag(std**2) + rows @ rows.T / 0.5
    evidence = stats.multivariate_normal.logpdf(y[seen], np.zeros(len(cov)), cov)
    assert float(la.log_marginal_likelihood()) == pytest.approx(evidence, rel=1e-8)
    predicted = la.predict(x)
    twins.assert_close(
        predicted.f_cov, np.einsum("npc,pq,nqd->ncd", design, np.linalg.inv(precision), design)
    )
    found = la.evaluate((x, (y, seen)))
    mean, var = (np.asarray(a) for a in (predicted.mean, predicted.var))
    losses = -stats.norm(mean, np.sqrt(var)).logpdf(y)
    assert found["nll"] == pytest.approx(losses[seen].sum() / seen.any(axis=1).sum())


# --- what is refused ------------------------------------------------------------------------------


def test_targets_that_do_not_go_with_the_outputs():
    with pytest.raises(ValueError, match=r"Gaussian: found targets of shape \(6, 1\)"):
        negative_log_likelihood(Gaussian(), regression_predictive(), jnp.zeros((N, 1)))
    counts = Predictive(Poisson().targets(Outputs(jnp.asarray(F), jnp.asarray(F_VAR))))
    nan = negative_log_likelihood(Poisson(), counts, jnp.full((N, 2), -1.0))
    assert np.isnan(nan)


def test_labels_out_of_range_are_refused():
    predictive = of_classes(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"label 3 at y\[1\], expected integers from 0 to 2"):
        evaluate(Categorical(), predictive, jnp.asarray([0, 3]))
