"""What a likelihood makes of its outputs: noise, probabilities, rates; of moments or of draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit.eval.outputs import Predictive, from_gaussian, from_samples
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
from laplace_kit.targets import NoTargets, Outputs

N, K, EVENT = 3, 7, (2, 2)
RNG = np.random.default_rng(0)
SAMPLES = RNG.normal(size=(N, K, *EVENT))
F, F_VAR = RNG.normal(size=(N, *EVENT)), RNG.uniform(0.1, 1.0, (N, *EVENT))
NOISE = np.asarray([[0.3, 1.0], [2.0, 0.7]])
ROOT = RNG.normal(size=(4, 4))
COVARIANCE = ROOT @ ROOT.T + np.eye(4)


def of_moments(likelihood):
    options = {"link": "probit", "key": None, "num_samples": 2}
    return from_gaussian(likelihood, jnp.asarray(F), jnp.asarray(F_VAR), None, **options)


def of_draws(likelihood):
    return from_samples(likelihood, jnp.asarray(SAMPLES), True)


@pytest.mark.parametrize("predictive", [of_moments, of_draws])
@pytest.mark.parametrize(
    ("noise", "variance"),
    [
        (lambda: Gaussian(0.5), 0.25),
        (lambda: Gaussian(jnp.asarray(NOISE[0])), NOISE[0] ** 2),
        (lambda: Gaussian(jnp.asarray(NOISE)), NOISE**2),
        (lambda: MultivariateGaussian(jnp.asarray(COVARIANCE)), np.diag(COVARIANCE).reshape(2, 2)),
    ],
)
def test_noise_of_every_output_adds_to_its_variance(predictive, noise, variance, x64):
    found = predictive(noise())
    twins.assert_close(found.noise_var, np.broadcast_to(variance, (N, *EVENT)))
    twins.assert_close(found.mean, found.f_mean)
    twins.assert_close(found.epistemic_var, found.f_var)
    twins.assert_close(found.var, np.asarray(found.f_var) + variance)
    assert found.probs is None


@pytest.mark.parametrize("predictive", [of_moments, of_draws])
@pytest.mark.parametrize(
    "likelihood",
    [Gaussian(0.5), HeteroscedasticGaussian(), Categorical(), Bernoulli(), Poisson()],
)
def test_a_mask_over_the_targets_leaves_the_outputs_as_they_are(predictive, likelihood, x64):
    expected = predictive(likelihood)
    found = predictive(Masked(likelihood))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("full", [True, False])
def test_moments_of_draws_are_their_own(full, x64):
    found = from_samples(FromLoss(twins.log_cosh_loss), jnp.asarray(SAMPLES), full)
    twins.assert_close(found.f_mean, SAMPLES.mean(axis=1))
    twins.assert_close(found.f_var, SAMPLES.var(axis=1, ddof=1))
    assert found.mean is found.probs is found.var is None
    if full:
        flat = SAMPLES.reshape(N, K, 4)
        twins.assert_close(found.f_cov, np.stack([np.cov(draws.T) for draws in flat]))
    else:
        assert found.f_cov is None


def test_predicted_noise_is_averaged_as_a_variance(x64):
    found = of_draws(HeteroscedasticGaussian())
    twins.assert_close(found.mean, SAMPLES[..., :1].mean(axis=1))
    twins.assert_close(found.epistemic_var, SAMPLES[..., :1].var(axis=1, ddof=1))
    twins.assert_close(found.noise_var, np.exp(-SAMPLES[..., 1:]).mean(axis=1))


# --- the likelihood, and what follows from it -----------------------------------------------------

F_ROOT = RNG.normal(size=(N, 4, 4))
F_COV = F_ROOT @ F_ROOT.transpose(0, 2, 1)


@pytest.mark.parametrize(
    "likelihood",
    [
        Gaussian(0.5),
        MultivariateGaussian(jnp.asarray(COVARIANCE)),
        HeteroscedasticGaussian(),
        Categorical(),
        Bernoulli(),
        Poisson(),
        FromLoss(twins.log_cosh_loss),
    ],
)
def test_predictives_know_what_their_targets_are(likelihood):
    for predictive in (of_moments(likelihood), of_draws(likelihood)):
        assert predictive.likelihood is likelihood
    assert of_moments(Masked(Gaussian())).likelihood.noise_std == 1.0


def of_covariances(likelihood) -> Predictive:
    options = {"link": "probit", "key": None, "num_samples": 2}
    f_var = np.einsum("ncc->nc", F_COV).reshape(N, *EVENT)
    return from_gaussian(likelihood, *map(jnp.asarray, (F, f_var, F_COV)), **options)


def test_covariances_of_the_targets_add_the_noise(x64):
    twins.assert_close(of_covariances(Gaussian(0.5)).cov, F_COV + 0.25 * np.eye(4))
    each = of_covariances(Gaussian(jnp.asarray(NOISE)))
    twins.assert_close(each.cov, F_COV + np.diag(NOISE.ravel() ** 2))
    correlated = of_covariances(MultivariateGaussian(jnp.asarray(COVARIANCE)))
    twins.assert_close(correlated.cov, F_COV + COVARIANCE)
    # Outputs (2, 2) with a mean and a log-precision in each row: the means are outputs 0 and 2.
    predicted = of_covariances(HeteroscedasticGaussian())
    own = F_COV[:, [0, 2]][:, :, [0, 2]]
    noise = np.exp(-F + np.einsum("ncc->nc", F_COV).reshape(N, *EVENT) / 2)[..., 1]
    twins.assert_close(predicted.cov, own + noise[:, :, None] * np.eye(2))
    for predictive in (each, correlated, predicted):
        variances = jnp.einsum("ncc->nc", predictive.cov).reshape(predictive.var.shape)
        twins.assert_close(variances, predictive.var)


def test_covariances_are_none_where_they_are_not_known():
    assert of_moments(Gaussian()).cov is None
    assert of_covariances(Categorical()).cov is of_covariances(Poisson()).cov is None
    assert Predictive(NoTargets(Outputs(*map(jnp.asarray, (F, F**2, F_COV))))).cov is None


def test_a_predictive_passes_through_compiled_functions():
    predictive = of_covariances(Gaussian(0.5))
    found = jax.jit(lambda p: (p, p.quantile(0.9), p.cov))(predictive)
    assert jax.tree.structure(found[0]) == jax.tree.structure(predictive)
    twins.assert_close(found[1], predictive.quantile(0.9), dtype="float32")
    twins.assert_close(found[2], predictive.cov, dtype="float32")
