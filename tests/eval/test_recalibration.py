"""Temperatures and factors against scipy's optimum, and the laws that they make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from scipy import optimize, special, stats

from laplace_kit import tree
from laplace_kit.eval.evaluation import negative_log_likelihood
from laplace_kit.eval.outputs import Predictive, from_gaussian, with_joint_covariance
from laplace_kit.eval.recalibration import StdScaling, TemperatureScaling, recalibrate
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    FromLoss,
    Gaussian,
    HeteroscedasticGaussian,
    MultivariateGaussian,
    Poisson,
)
from laplace_kit.targets import BinaryTargets, ClassTargets, NoTargets, Outputs

RNG = np.random.default_rng(0)
N, C = 60, 3
LOGITS = 3 * RNG.normal(size=(N, C))
LABELS = np.asarray([RNG.choice(C, p=p) for p in special.softmax(LOGITS / 2.5, axis=1)])


def classifier(likelihood, probs, dtype=None) -> Predictive:
    probs = jnp.asarray(probs, dtype)
    kind = BinaryTargets if isinstance(likelihood, Bernoulli) else ClassTargets
    return Predictive(kind(Outputs(jnp.log(probs), 0 * probs), probs), likelihood)


def with_logits(likelihood, logits) -> Predictive:
    f = jnp.asarray(logits, jnp.float32)
    return from_gaussian(
        likelihood, f, jnp.zeros_like(f), None, link="probit", key=None, num_samples=1
    )


def nll_at(log_inverse, log_probs, targets):
    return -np.mean(np.sum(targets * special.log_softmax(np.exp(log_inverse) * log_probs, 1), 1))


def best(log_probs, targets):
    found = optimize.minimize_scalar(
        nll_at,
        bounds=(-4, 4),
        args=(log_probs, targets),
        options={"xatol": 1e-10},
        method="bounded",
    )
    return np.exp(-found.x)


# --- classes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-7), ("float32", 1e-4)])
def test_temperature_is_the_optimum_for_labels_hard_or_soft(dtype, rtol):
    soft = 0.7 * np.eye(C)[LABELS] + 0.3 * RNG.dirichlet(np.ones(C), N)
    probs = special.softmax(LOGITS, axis=1)
    with twins.precision(dtype):
        predictive = classifier(Categorical(), probs, dtype)
        for y, targets in ((LABELS, np.eye(C)[LABELS]), (soft, soft)):
            found = recalibrate(predictive, y)
            expected = best(np.log(probs), targets)
            np.testing.assert_allclose(found.temperature, expected, rtol=rtol)
            sharpened = special.softmax(LOGITS / expected, axis=1)
            twins.assert_close(found(predictive).probs, sharpened, rtol=rtol)


def test_what_is_missing_does_not_count():
    probs = special.softmax(LOGITS, axis=1)
    predictive = classifier(Categorical(ignore_index=-1), probs)
    seen = np.arange(N) % 3 > 0
    expected = recalibrate(classifier(Categorical(), probs[seen]), LABELS[seen]).temperature
    ignored = recalibrate(predictive, np.where(seen, LABELS, -1)).temperature
    masked = recalibrate(classifier(Categorical(), probs), (LABELS, seen)).temperature
    np.testing.assert_allclose([ignored, masked], [expected, expected], rtol=1e-5)


def test_binary_labels_are_two_classes(x64):
    f, y = 2 * RNG.normal(size=(N, 2)), RNG.integers(0, 2, (N, 2)).astype(float)
    predictive = classifier(Bernoulli(), special.expit(f))
    found = recalibrate(predictive, y)
    flat = f.ravel()
    log_probs = np.stack([special.log_expit(-flat), special.log_expit(flat)], axis=1)
    expected = best(log_probs, np.stack([1 - y.ravel(), y.ravel()], axis=1))
    np.testing.assert_allclose(found.temperature, expected, rtol=1e-6)
    twins.assert_close(found(predictive).probs, special.expit(f / expected), rtol=1e-6)


def test_bounds_and_what_has_no_optimum():
    probs = special.softmax(LOGITS, axis=1)
    with pytest.warns(UserWarning, match="at a bound, 0.01"):
        recalibrate(classifier(Categorical(), probs), probs.argmax(axis=1))
    with pytest.warns(UserWarning, match="at a bound, 100"):
        recalibrate(classifier(Categorical(), probs), probs.argmin(axis=1))
    flat = recalibrate(classifier(Categorical(), np.full((N, C), 1 / C)), LABELS)
    assert float(flat.temperature) == 1.0


@pytest.mark.parametrize("scale", [0.1, 3.0, 200.0])
def test_labels_that_are_all_right_are_at_the_bound_however_sure(scale):
    """Six rows, whose slope underflows before the bound is reached."""
    labels = np.arange(6) % C
    predictive = with_logits(Categorical(), scale * np.eye(C)[labels])
    with pytest.warns(UserWarning, match="at a bound, 0.01"):
        found = recalibrate(predictive, labels)
    np.testing.assert_allclose(found.temperature, 0.01, rtol=1e-5)


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()])
def test_logits_whose_probabilities_round_to_zero_have_the_right_temperature(likelihood):
    rng = np.random.default_rng(3)
    logits = rng.uniform(-150, 150, (300, C))
    if isinstance(likelihood, Bernoulli):
        y = (rng.random(logits.shape) < special.expit(logits / 36)).astype("float32")
        pairs = np.stack([0 * logits, logits], axis=-1).reshape(-1, 2)
        expected = best(pairs, np.eye(2)[y.ravel().astype(int)])
        tempered = special.expit(logits / expected)
    else:
        y = np.asarray([rng.choice(C, p=p) for p in special.softmax(logits / 36, axis=1)])
        expected = best(logits, np.eye(C)[y])
        tempered = special.softmax(logits / expected, axis=1)
    predictive = with_logits(likelihood, logits)
    found = recalibrate(predictive, y)
    np.testing.assert_allclose(found.temperature, expected, rtol=1e-4)
    np.testing.assert_allclose(found(predictive).probs, tempered, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found(predictive).logits, logits / expected, rtol=1e-3)
    # From the probabilities alone this cannot be known.
    probs_alone = tree.replace(predictive.targets, logits=None)
    clipped = recalibrate(tree.replace(predictive, targets=probs_alone), y)
    assert abs(float(clipped.temperature) / expected - 1) > 0.02


def test_classes_that_the_model_excludes():
    """Logits of minus infinity add nothing, unless they are the labels'."""
    logits = LOGITS.copy()
    logits[:, 2] = -np.inf
    labels = LABELS % 2
    found = recalibrate(with_logits(Categorical(), logits), labels)
    expected = best(LOGITS[:, :2], np.eye(2)[labels])
    np.testing.assert_allclose(found.temperature, expected, rtol=1e-4)
    with pytest.warns(UserWarning, match="at a bound, 100"):
        recalibrate(with_logits(Categorical(), logits), np.full(N, 2))


# --- numbers --------------------------------------------------------------------------------------

ROOT = 0.5 * RNG.normal(size=(N, 4, 4))
F_COV = ROOT @ ROOT.transpose(0, 2, 1)
F = RNG.normal(size=(N, 4))


def regression(likelihood, num_outputs=4) -> Predictive:
    f, f_cov = F[:, :num_outputs], F_COV[:, :num_outputs, :num_outputs]
    moments = map(jnp.asarray, (f, np.einsum("ncc->nc", f_cov), f_cov))
    return from_gaussian(likelihood, *moments, link="probit", key=None, num_samples=2)


def without_covariance(predictive) -> Predictive:
    outputs = tree.replace(predictive.targets.outputs, cov=None)
    return tree.replace(predictive, targets=tree.replace(predictive.targets, outputs=outputs))


def targets_of(predictive) -> np.ndarray:
    """Return targets whose residuals are too large by half, more so in the last output."""
    z = np.random.default_rng(1).normal(size=predictive.mean.shape)
    factor = np.linspace(1.5, 2.0, z.shape[1])
    return np.asarray(predictive.mean + jnp.sqrt(predictive.var) * factor * z)


@pytest.mark.parametrize("per_output", [False, True])
@pytest.mark.parametrize("likelihood", [Gaussian(0.7), HeteroscedasticGaussian()])
def test_scale_is_the_optimum(likelihood, per_output, x64):
    predictive = regression(likelihood)
    y = targets_of(predictive)
    found = recalibrate(predictive, y, per_output=per_output)
    squares = (y - predictive.mean) ** 2 / predictive.var
    expected = np.sqrt(squares.mean(axis=0 if per_output else None))
    twins.assert_close(found.scale, expected)
    scaled = found(predictive)
    twins.assert_close(scaled.var, predictive.var * expected**2)

    def nll(change):
        """The loss of the normal distribution with the moments of the scaled targets."""
        other = StdScaling(found.scale * change)(predictive)
        losses = -stats.norm(other.mean, np.sqrt(other.var)).logpdf(y)
        if isinstance(likelihood, Gaussian):
            exact = negative_log_likelihood(likelihood, other, y)
            assert float(exact) == pytest.approx(losses.sum(axis=1).mean(), rel=1e-10)
        return losses.mean()

    assert nll(1.0) < min(nll(0.98), nll(1.02))


@pytest.mark.parametrize("likelihood", [Gaussian(0.7), HeteroscedasticGaussian()])
def test_a_scaled_law_has_scaled_quantiles_and_covariances(likelihood, x64):
    predictive = regression(likelihood)
    scale = np.linspace(0.5, 2.0, predictive.mean.shape[1])
    scaled = StdScaling(jnp.asarray(scale))(predictive)
    mean = predictive.mean
    twins.assert_close(scaled.mean, mean)
    expected = mean + scale * (predictive.quantile(0.8) - mean)
    twins.assert_close(scaled.quantile(0.8), expected, rtol=1e-9)
    twins.assert_close(scaled.cov, predictive.cov * scale[:, None] * scale)
    found, before = scaled.uncertainty(), predictive.uncertainty()
    twins.assert_close(found.epistemic_var, before.epistemic_var * scale**2)
    twins.assert_close(found.aleatoric_var, before.aleatoric_var * scale**2)


@pytest.mark.parametrize("full", [True, False])
def test_correlated_outputs_are_scaled_by_their_whitened_residuals(full, x64):
    noise = np.asarray([[1.0, 0.4], [0.4, 0.5]])
    predictive = regression(MultivariateGaussian(jnp.asarray(noise)), 2)
    if not full:
        predictive = without_covariance(predictive)
    y = targets_of(predictive)
    found = recalibrate(predictive, y)
    own = F_COV[:, :2, :2]
    cov = (own if full else own * np.eye(2)) + noise
    residual = y - F[:, :2]
    squares = np.einsum("nc,ncd,nd->n", residual, np.linalg.inv(cov), residual)
    twins.assert_close(found.scale, np.sqrt(squares.mean() / 2))
    scaled = found(predictive)
    if full:
        twins.assert_close(scaled.cov, cov * float(found.scale) ** 2)
    log_p = [
        stats.multivariate_normal(F[n, :2], cov[n] * float(found.scale) ** 2).logpdf(y[n])
        for n in range(N)
    ]
    nll = negative_log_likelihood(scaled.likelihood, scaled, y)
    twins.assert_close(nll, -np.mean(log_p))


def test_joint_covariances_and_missing_targets(x64):
    predictive = regression(Gaussian(0.7))
    joint = jnp.einsum("ncd,nm->ncmd", jnp.asarray(F_COV), jnp.eye(N))
    scaled = StdScaling(jnp.asarray([1.0, 2.0, 3.0, 4.0]))(with_joint_covariance(predictive, joint))
    twins.assert_close(jnp.einsum("ncnd->ncd", scaled.joint_cov), scaled.f_cov)
    y, mask = targets_of(predictive), RNG.integers(0, 2, (N, 4))
    found = recalibrate(predictive, (y, mask), per_output=True)
    squares = np.ma.masked_array((y - predictive.mean) ** 2 / predictive.var, mask == 0)
    twins.assert_close(found.scale, np.sqrt(squares.mean(axis=0)))


# --- programs and errors --------------------------------------------------------------------------


def test_recalibrations_are_pytrees_and_compile_once():
    predictive = classifier(Categorical(), special.softmax(LOGITS, axis=1))
    apply = jax.jit(lambda recalibration, p: recalibration(p).probs)
    apply(TemperatureScaling(jnp.asarray(2.0, jnp.float32)), predictive)
    recalibrate(predictive, LABELS)
    with twins.compilations() as names:
        found = recalibrate(classifier(Categorical(), special.softmax(LOGITS / 2, axis=1)), LABELS)
        apply(found, predictive)
    assert [name for name in names if "temper" in name or "lambda" in name] == []


def test_errors():
    with pytest.raises(TypeError, match="no recalibration"):
        recalibrate(regression(Poisson()), np.ones((N, 4)))
    with pytest.raises(TypeError, match="no recalibration"):
        recalibrate(regression(FromLoss(twins.log_cosh_loss)), F)
    with pytest.raises(TypeError, match="without a likelihood"):
        recalibrate(Predictive(NoTargets(Outputs(jnp.asarray(F), jnp.asarray(F)))), F)
    with pytest.raises(ValueError, match="share one temperature"):
        recalibrate(classifier(Categorical(), np.full((N, C), 1 / C)), LABELS, per_output=True)
    with pytest.raises(ValueError, match="keep their correlation"):
        recalibrate(regression(MultivariateGaussian(jnp.eye(4))), F, per_output=True)
    predictive = regression(Gaussian(0.7))
    with pytest.raises(ValueError, match="expected the same shape"):
        recalibrate(predictive, F[:, 0])
    with pytest.raises(ValueError, match="positive, finite"):
        recalibrate(predictive, np.asarray(predictive.mean))
    with pytest.raises(ValueError, match=r"first at example 0 .*expected finite numbers.*mask"):
        recalibrate(predictive, F * np.nan)
    uniform = classifier(Categorical(), np.full((N, C), 1 / C))
    with pytest.raises(ValueError, match="integer labels from 0"):
        recalibrate(uniform, LABELS + 1)
    with pytest.raises(ValueError, match="NaN among the predictive's logits"):
        recalibrate(classifier(Categorical(), np.full((N, C), np.nan)), LABELS)


def test_plain_probabilities_have_the_temperature_of_a_predictive():
    probs = special.softmax(LOGITS, axis=1)
    weights = RNG.integers(1, 4, N)
    repeated = np.repeat(np.arange(N), weights)
    expected = recalibrate(classifier(Categorical(), probs[repeated]), LABELS[repeated])
    for given in (probs, classifier(Categorical(), probs)):
        found = recalibrate(given, LABELS, weights=weights)
        np.testing.assert_allclose(found.temperature, expected.temperature, rtol=1e-3)
    tempered = special.softmax(np.log(probs) / float(found.temperature), axis=1)
    np.testing.assert_allclose(found(probs), tempered, rtol=1e-5)
    np.testing.assert_allclose(found(probs[:, 1] / 2).shape, (N,))
