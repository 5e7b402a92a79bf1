"""What all distributions of targets do: draws agree with the stated moments and quantiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import laplace_kit as lk
from laplace_kit import targets
from laplace_kit.eval.outputs import from_samples
from laplace_kit.targets import Outputs

RNG = np.random.default_rng(0)
N, C = 3, 2
F = RNG.normal(size=(N, C))
ROOT = 0.5 * RNG.normal(size=(N, C, C))
F_COV = ROOT @ ROOT.transpose(0, 2, 1)
NOISE = np.asarray([[1.0, 0.3], [0.3, 0.5]])
NUMBERS = {
    "gaussian": lambda: lk.Gaussian(jnp.asarray([0.5, 2.0])),
    "multivariate": lambda: lk.MultivariateGaussian(jnp.asarray(NOISE)),
    "heteroscedastic": lk.HeteroscedasticGaussian,
    "student_t": lambda: lk.StudentT(0.5, 9.0),
    "poisson": lk.Poisson,
    "negative_binomial": lambda: lk.NegativeBinomial(0.5),
}
LABELS = {
    "categorical": lk.Categorical,
    "bernoulli": lk.Bernoulli,
    "ordinal": lambda: lk.Ordinal(4),
}


def outputs() -> Outputs:
    return Outputs(*map(jnp.asarray, (F, np.einsum("ncc->nc", F_COV), F_COV)))


@pytest.mark.parametrize("name", NUMBERS)
def test_draws_of_numbers_have_the_stated_moments_and_quantiles(name, x64):
    found, num = NUMBERS[name]().targets(outputs()), 20_000
    assert isinstance(found, targets.NumberTargets)
    y = np.asarray(found.sample(jax.random.key(0), num))
    assert y.shape == (num, *found.mean.shape)
    error = np.sqrt(found.variance / num)
    assert np.abs((y.mean(axis=0) - found.mean) / error).max() < 4.5
    fourth = ((y - y.mean(axis=0)) ** 4).mean(axis=0)
    assert np.all(
        np.abs(y.var(axis=0) - found.variance) < 5 * np.sqrt(fourth / num) + 1e-3 * fourth**0.5
    )
    for level in (0.2, 0.9):
        quantile = np.asarray(found.quantile(jnp.asarray(level)))
        at_most = np.asarray(found.cdf(jnp.asarray(quantile)))
        if found.is_discrete:
            assert np.all(at_most >= level)
            assert np.all(np.asarray(found.cdf(jnp.asarray(quantile - 1))) < level)
        else:
            np.testing.assert_allclose(at_most, level, rtol=1e-9)
        assert np.abs((y <= quantile).mean(axis=0) - at_most).max() < 4.5 * 0.5 / num**0.5
    if found.covariance is not None:
        centred = (y - np.asarray(found.mean)).reshape(num, N, -1)
        drawn = np.einsum("knc,knd->ncd", centred, centred) / num
        np.testing.assert_allclose(drawn, found.covariance, atol=0.1 * float(found.variance.max()))


@pytest.mark.parametrize("name", ["gaussian", "student_t", "poisson", "negative_binomial"])
def test_densities_are_derivatives_or_differences_of_the_distribution_function(name, x64):
    found = NUMBERS[name]().targets(outputs())
    y = jnp.asarray([[0.0, 1.0], [2.0, 3.0], [1.0, 0.0]])
    if found.is_discrete:
        expected = found.cdf(y) - found.cdf(y - 1)
    else:
        expected = (found.cdf(y + 1e-4) - found.cdf(y - 1e-4)) / 2e-4
    np.testing.assert_allclose(np.exp(found.log_prob(y)), expected, rtol=1e-6)


@pytest.mark.parametrize("name", LABELS)
def test_draws_of_labels_have_the_stated_probabilities(name, x64):
    found, num = LABELS[name]().targets(outputs()), 20_000
    assert isinstance(found, targets.LabelTargets)
    y = np.asarray(found.sample(jax.random.key(0), num))
    probs = np.asarray(found.class_probabilities)
    np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-12)
    shares = (y[..., None] == np.arange(probs.shape[-1])).mean(axis=0)
    assert np.abs((shares - probs) / np.sqrt(probs * (1 - probs) / num)).max() < 4.5
    np.testing.assert_allclose(found.variance, found.mean * (1 - found.mean))
    for label in range(probs.shape[-1]):
        log_p = found.log_prob(jnp.full(probs.shape[:-1], label))
        np.testing.assert_allclose(np.exp(log_p), probs[..., label], rtol=1e-9)


@pytest.mark.parametrize("name", [*NUMBERS, *LABELS])
def test_draws_of_the_weights_give_the_same_kind_with_their_own_averages(name, x64):
    likelihood = (NUMBERS | LABELS)[name]()
    samples = jnp.asarray(RNG.normal(size=(N, 400, C)) * 0.5 + F[:, None])
    found = from_samples(likelihood, samples, True).targets
    moments = Outputs(samples.mean(axis=1), samples.var(axis=1))
    gaussian = likelihood.targets(moments)
    assert type(found) is type(gaussian)
    assert found.outputs.draws is None
    np.testing.assert_allclose(found.mean, gaussian.mean, rtol=0.2, atol=0.05)
    np.testing.assert_allclose(found.variance, gaussian.variance, rtol=0.3, atol=0.02)


def test_a_likelihood_without_a_distribution_says_so():
    found = lk.FromLoss(lambda f, y: jnp.sum((f - y) ** 2)).targets(outputs())
    assert isinstance(found, targets.NoTargets)
    for ask in (
        lambda: found.cdf(jnp.zeros(())),
        lambda: found.quantile(jnp.asarray(0.5)),
        lambda: found.sample(jax.random.key(0), 2),
        found.uncertainty,
        lambda: found.log_prob(jnp.zeros((N, C))),
    ):
        with pytest.raises(TypeError, match=r"Found a FromLoss likelihood.*targets\(outputs\)"):
            ask()
    with pytest.raises(TypeError, match="without a likelihood"):
        targets.NoTargets(outputs()).log_prob(jnp.zeros((N, C)))
    with pytest.raises(TypeError, match="MixtureTargets, for which no recalibration"):
        lk.Poisson().targets(outputs()).scaled(jnp.asarray(2.0))
