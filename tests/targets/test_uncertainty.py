"""The two parts of the uncertainty against integration and simulation, and that they add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from scipy import integrate, special, stats

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
from laplace_kit.targets.expectation import drawn_expectation

N, C = 3, 4
RNG = np.random.default_rng(0)
F = RNG.normal(size=(N, C))
ROOT = 0.6 * RNG.normal(size=(N, C, C))
F_COV = ROOT @ ROOT.transpose(0, 2, 1)
F_VAR = np.einsum("ncc->nc", F_COV)
NOISE = np.asarray([[1.0, 0.3], [0.3, 0.5]])


def predictive_of(likelihood, f=F, f_var=F_VAR, f_cov=None) -> Predictive:
    moments = [None if part is None else jnp.asarray(part) for part in (f, f_var, f_cov)]
    return from_gaussian(likelihood, *moments, link="probit", key=None, num_samples=2)


def entropy(p):
    return -np.sum(special.xlogy(p, p), axis=-1)


# --- numbers and counts ---------------------------------------------------------------------------


def given_outputs(likelihood, f):
    """Return mean and variance of the targets at outputs, from their definitions."""
    if isinstance(likelihood, Poisson):
        return np.exp(f), np.exp(f)
    if isinstance(likelihood, HeteroscedasticGaussian):
        return f[..., :2], np.exp(-f[..., 2:])
    if isinstance(likelihood, MultivariateGaussian):
        return f, np.broadcast_to(np.diag(NOISE), f.shape)
    return f, np.full(f.shape, likelihood.noise_std**2)


@pytest.mark.parametrize(
    ("make", "num_outputs"),
    [
        (lambda: Gaussian(0.7), C),
        (lambda: Masked(Gaussian(0.7)), C),
        (lambda: MultivariateGaussian(jnp.asarray(NOISE)), 2),
        (HeteroscedasticGaussian, C),
        (Poisson, C),
    ],
)
def test_parts_of_numbers_are_those_of_a_simulation(make, num_outputs, x64):
    likelihood = make()
    cov = F_COV[:, :num_outputs, :num_outputs]
    predictive = predictive_of(likelihood, F[:, :num_outputs], F_VAR[:, :num_outputs], cov)
    found = predictive.uncertainty()
    twins.assert_close(found.total_var, predictive.var)
    assert found.predictive_entropy is None
    blocks, num = 40, 5000
    z = np.random.default_rng(1).normal(size=(blocks, num, N, num_outputs))
    root = np.linalg.cholesky(cov + 1e-12 * np.eye(num_outputs))
    f = F[:, :num_outputs] + np.einsum("ncd,bknd->bknc", root, z)
    mean, var = given_outputs(predictive.likelihood, f)
    for part, drawn in [
        (found.epistemic_var, mean.var(axis=1, ddof=1)),
        (found.aleatoric_var, var.mean(axis=1)),
    ]:
        error = drawn.std(axis=0, ddof=1) / np.sqrt(blocks)
        assert np.all(np.abs(part - drawn.mean(axis=0)) < 5 * error + 1e-9)


# --- classes --------------------------------------------------------------------------------------


def binary_parts(mean, std):
    """Return the parts of one binary label by adaptive integration."""

    def average(fn):
        if std == 0:
            return fn(mean)
        return integrate.quad(
            lambda z: fn(mean + std * z) * stats.norm.pdf(z), -9, 9, points=[-mean / std]
        )[0]

    p = average(special.expit)
    expected = average(lambda f: entropy(special.expit(np.asarray([f, -f]))))
    aleatoric = average(lambda f: special.expit(f) * special.expit(-f))
    return aleatoric, p * (1 - p) - aleatoric, expected, entropy(np.asarray([p, 1 - p])) - expected


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-8), ("float32", 1e-4)])
def test_binary_labels_against_integration(dtype, rtol):
    mean, std = np.asarray([[0.3, -2.0], [4.0, 1.0]]), np.asarray([[0.0, 0.5], [3.0, 5.0]])
    expected = np.vectorize(binary_parts)(mean, std)
    with twins.precision(dtype):
        found = predictive_of(Bernoulli(), mean.astype(dtype), (std**2).astype(dtype)).uncertainty()
        for part, value in zip(jax.tree.leaves(found), expected, strict=True):
            twins.assert_close(part, value, rtol=rtol)


def test_small_variances_are_not_lost_in_single_precision():
    """To first order: the logit's variance by the square of p (1 - p), and by half of it."""
    f, var = np.float32([[0.0], [1.0], [-3.0]]), np.full((3, 1), 1e-6, np.float32)
    found = predictive_of(Bernoulli(), f, var).uncertainty()
    slope = special.expit(f) * special.expit(-f)
    np.testing.assert_allclose(found.mutual_information, slope * var / 2, atol=3e-7)
    np.testing.assert_allclose(found.epistemic_var, slope**2 * var, rtol=1e-3)


def test_sums_of_half_precision_do_not_stop_growing():
    f, var = np.float32([[0.5], [-1.0]]), np.float32([[1.0], [2.0]])
    precise = predictive_of(Bernoulli(), f, var).uncertainty()
    found = predictive_of(Bernoulli(), *(jnp.asarray(a, jnp.bfloat16) for a in (f, var)))
    for a, b in zip(jax.tree.leaves(found.uncertainty()), jax.tree.leaves(precise), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2)


@pytest.mark.parametrize("f_cov", [F_COV, None])
def test_classes_against_a_simulation(f_cov, x64):
    predictive = predictive_of(Categorical(), f_cov=f_cov)
    found = predictive.uncertainty(jax.random.key(0), num_samples=4000)
    blocks, num = 40, 2500
    z = np.random.default_rng(1).normal(size=(blocks, num, N, C))
    cov = np.stack([np.diag(v) for v in F_VAR]) if f_cov is None else f_cov
    p = special.softmax(F + np.einsum("ncd,bknd->bknc", np.linalg.cholesky(cov), z), axis=-1)
    mean = p.mean(axis=1)
    expected = {
        "aleatoric_var": (p * (1 - p)).mean(axis=1),
        "epistemic_var": p.var(axis=1),
        "expected_entropy": entropy(p).mean(axis=1),
        "mutual_information": entropy(mean) - entropy(p).mean(axis=1),
    }
    for name, drawn in expected.items():
        spread = drawn.std(axis=0, ddof=1)
        # A block of 2500 is as noisy as 4000 draws are, and more.
        bound = 5 * spread * np.sqrt(1 / blocks + 1)
        assert np.all(np.abs(getattr(found, name) - drawn.mean(axis=0)) < bound), name


def test_parts_of_classes_add_up_to_the_total_of_the_same_draws(x64):
    key, num = jax.random.key(0), 64
    found = predictive_of(Categorical(), f_cov=F_COV).uncertainty(key, num_samples=num)
    p = drawn_expectation(jax.nn.softmax, jnp.asarray(F), jnp.asarray(F_COV), key, num)
    twins.assert_close(found.total_var, p * (1 - p))
    twins.assert_close(found.predictive_entropy, entropy(np.asarray(p)))


def test_known_logits_leave_nothing_to_the_weights(x64):
    found = predictive_of(Categorical(), f_var=np.zeros((N, C))).uncertainty(jax.random.key(0))
    p = special.softmax(F, axis=-1)
    twins.assert_close(found.aleatoric_var, p * (1 - p))
    twins.assert_close(found.expected_entropy, entropy(p))
    assert float(found.epistemic_var.max()) < 1e-28
    assert float(found.mutual_information.max()) < 1e-13


def test_two_classes_are_a_binary_label(x64):
    f = np.stack([np.zeros(3), [0.0, 1.0, -2.0]], axis=1)
    f_cov = np.zeros((3, 2, 2))
    f_cov[:, 1, 1] = [0.5, 2.0, 1.0]
    binary = predictive_of(Bernoulli(), f[:, 1], f_cov[:, 1, 1]).uncertainty()
    classes = predictive_of(Categorical(), f, np.einsum("ncc->nc", f_cov), f_cov)
    classes = classes.uncertainty(jax.random.key(0), num_samples=4000)
    np.testing.assert_allclose(classes.mutual_information, binary.mutual_information, rtol=0.1)
    np.testing.assert_allclose(classes.aleatoric_var[:, 1], binary.aleatoric_var, rtol=0.03)


def test_positions_keep_their_shape(x64):
    f = RNG.normal(size=(N, 2, 3))
    predictive = predictive_of(Categorical(), f, np.ones(f.shape), np.tile(np.eye(6), (N, 1, 1)))
    found = predictive.uncertainty(jax.random.key(0), num_samples=8)
    assert found.total_var.shape == (N, 2, 3)
    assert found.mutual_information.shape == found.predictive_entropy.shape == (N, 2)


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()])
def test_draws_of_the_weights_have_their_own_parts(likelihood, x64):
    samples = RNG.normal(size=(N, 7, C))
    predictive = from_samples(likelihood, jnp.asarray(samples), False)
    found = predictive.uncertainty()
    if isinstance(likelihood, Categorical):
        p = special.softmax(samples, axis=-1)
        of_labels = p
    else:
        p = special.expit(samples)
        of_labels = np.stack([1 - p, p], axis=-1)
    twins.assert_close(found.aleatoric_var, (p * (1 - p)).mean(axis=1))
    twins.assert_close(found.epistemic_var, p.var(axis=1))
    twins.assert_close(found.total_var, predictive.probs * (1 - predictive.probs))
    twins.assert_close(found.expected_entropy, entropy(of_labels).mean(axis=1))
    twins.assert_close(found.predictive_entropy, entropy(of_labels.mean(axis=1)))


# --- programs and errors --------------------------------------------------------------------------


def test_new_values_compile_nothing():
    def parts(shift):
        f, cov = np.float32(F + shift), np.float32(F_COV)
        moments = (np.float32(F_VAR), cov)
        classes = predictive_of(Categorical(), f, *moments).uncertainty(jax.random.key(0))
        return classes, predictive_of(Bernoulli(), f, *moments).uncertainty()

    jax.block_until_ready(parts(0.0))
    with twins.compilations() as names:
        jax.block_until_ready(parts(1.0))
    assert names == []


def test_what_has_no_distribution_is_refused():
    with pytest.raises(TypeError, match="FromLoss likelihood, from which no uncertainty"):
        predictive_of(FromLoss(twins.log_cosh_loss)).uncertainty()
    with pytest.raises(TypeError, match="without a likelihood"):
        Predictive(NoTargets(Outputs(jnp.zeros((2, 3)), jnp.zeros((2, 3))))).uncertainty()
    with pytest.raises(ValueError, match="no key"):
        predictive_of(Categorical()).uncertainty()
    with pytest.raises(ValueError, match="num_samples=0, expected a whole number of draws"):
        predictive_of(Categorical()).uncertainty(jax.random.key(0), num_samples=0)
