"""Independent Gaussian outputs: one noise, one for each output, or one that is predicted."""

import jax
import jax.numpy as jnp
import numpy as np
import output_space
import pytest
import scipy.stats
import twins

from laplace_kit.likelihood import Gaussian, HeteroscedasticGaussian
from laplace_kit.likelihood.base import check_targets

F = np.asarray([[0.3, -1.2, 0.8], [2.0, 0.1, -0.7]])
NOISE = np.asarray([0.3, 1.0, 2.5])


# --- noise that is known --------------------------------------------------------------------------


def loss_of_three(f, y):
    return -jax.scipy.stats.norm.logpdf(y, f, NOISE).sum()


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_a_noise_for_each_output(shape, x64):
    f, y = jnp.asarray(F), jnp.asarray(F[::-1].copy())
    noise = np.broadcast_to(NOISE, shape)
    likelihood = Gaussian(jnp.asarray(noise))
    expected = -scipy.stats.norm.logpdf(y, f, NOISE).sum()
    assert likelihood.negative_log_prob(f, y) == pytest.approx(expected, rel=1e-12)
    output_space.assert_derivatives(likelihood, f, y, loss_of_three)


def test_samples_have_the_noise_of_each_output(x64):
    f, num = jnp.asarray(F[0]), 20_000
    likelihood = Gaussian(jnp.asarray(NOISE))
    y = jax.jit(jax.vmap(likelihood.sample, (0, None)))(jax.random.split(jax.random.key(0), num), f)
    assert np.abs((y.mean(axis=0) - f) / (NOISE / num**0.5)).max() < 4
    assert np.abs(y.std(axis=0) / NOISE - 1).max() < 4 / (2 * num) ** 0.5
    output_space.assert_scores(likelihood, f, f)


@pytest.mark.parametrize("std", [0.7, NOISE])
def test_noise_is_a_leaf_to_differentiate(std, x64):
    f, y = jnp.asarray(F), jnp.asarray(F[::-1].copy())

    def loss(std):
        return Gaussian(std).negative_log_prob(f, y)

    found = jax.jit(jax.grad(loss))(std)
    each = -((F[::-1] - F) ** 2) / std**3 + 1 / std
    np.testing.assert_allclose(found, each.sum(axis=0) if np.ndim(std) else each.sum(), rtol=1e-12)
    assert jax.tree.leaves(Gaussian(std)) == [std]


@pytest.mark.parametrize(
    "noise_std", [0.0, -1.0, float("nan"), float("inf"), np.asarray([1.0, 0.0]), np.full(2, np.nan)]
)
def test_noise_must_be_positive(noise_std):
    with pytest.raises(ValueError, match=r"noise_std=.*expected positive, finite numbers"):
        Gaussian(noise_std)


@pytest.mark.parametrize(
    "noise_std", [1, 0.5, np.float64(2), np.float32(2), np.asarray(0.3), jnp.ones(()), np.ones(1)]
)
def test_noise_may_be_any_positive_scalar(noise_std):
    f = jnp.asarray([1.0])
    found = Gaussian(noise_std).hessian_mv(f, f, f)
    np.testing.assert_allclose(found, 1 / np.asarray(noise_std).reshape(1) ** 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("noise", "outputs"), [((2,), (5, 3)), ((3, 1), (5, 3)), ((1,), (5,)), ((2, 3), (5, 3))]
)
def test_noise_must_broadcast_to_the_outputs(noise, outputs):
    f = jax.ShapeDtypeStruct(outputs, jnp.float32)
    with pytest.raises(ValueError, match=r"Gaussian: found noise_std of shape .*one example") as e:
        check_targets(Gaussian(np.ones(noise)), f, f)
    assert str(noise) in str(e.value)
    assert str(outputs[1:]) in str(e.value)


@pytest.mark.parametrize(
    ("noise", "outputs"),
    [((), (5,)), ((3,), (5, 3)), ((1,), (5, 3)), ((2, 1), (5, 2, 3)), ((3,), (5, 2, 3))],
)
def test_noise_that_broadcasts_passes(noise, outputs):
    f = jax.ShapeDtypeStruct(outputs, jnp.float32)
    check_targets(Gaussian(np.ones(noise)), f, f)
    losses = Gaussian(np.ones(noise)).entry_losses(jnp.zeros(outputs[1:]), jnp.zeros(outputs[1:]))
    assert losses.shape == outputs[1:]


# --- noise that is predicted ----------------------------------------------------------------------


def heteroscedastic() -> tuple:
    f = jnp.asarray([[0.3, -1.2, 0.8, 0.1], [1.0, 0.2, -2.0, 3.0]])
    return HeteroscedasticGaussian(), f, jnp.asarray([[0.5, -1.0], [1.2, 0.0]])


def test_log_probability_with_predicted_noise_is_that_of_scipy(x64):
    likelihood, f, y = heteroscedastic()
    density = scipy.stats.norm.logpdf(y, f[:, :2], np.exp(-np.asarray(f[:, 2:]) / 2))
    assert likelihood.negative_log_prob(f, y) == pytest.approx(-density.sum(), rel=1e-12)


def test_curvature_with_predicted_noise_is_the_expected_hessian(x64):
    """By quadrature over the targets; outputs do not interact, so that one node serves all."""
    likelihood, f, y = heteroscedastic()
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    targets = f[:, :2] + jnp.exp(-f[:, 2:] / 2) * nodes[:, None, None]
    of_target = jax.jit(jax.vmap(jax.hessian(likelihood.negative_log_prob), (None, 0)))
    hessians = of_target(f, targets)
    expected = np.tensordot(weights / weights.sum(), hessians, 1).reshape(8, 8)
    _, _, product, squared = output_space.forms(likelihood, f, y)
    twins.assert_close(product, expected)
    twins.assert_close(squared, expected)
    assert np.linalg.eigvalsh(hessians[0].reshape(8, 8)).min() < 0


def test_samples_with_predicted_noise_have_that_noise(x64):
    likelihood, f, y = heteroscedastic()
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.jit(jax.vmap(likelihood.sample, (0, None)))(keys, f)
    std = np.exp(-np.asarray(f[:, 2:]) / 2)
    assert np.abs((drawn.mean(axis=0) - f[:, :2]) / (std / 20_000**0.5)).max() < 4
    assert np.abs(drawn.std(axis=0) / std - 1).max() < 4 / 40_000**0.5
    output_space.assert_scores(likelihood, f[0], y[0])


@pytest.mark.parametrize(("outputs", "targets"), [((5, 3), (5, 1)), ((5, 4), (5, 4)), ((4,), (2,))])
def test_predicted_noise_wants_twice_as_many_outputs(outputs, targets):
    spec = jax.ShapeDtypeStruct(targets, jnp.float32)
    with pytest.raises(ValueError, match=r"expected outputs \(N, 2 C\), the C means before"):
        HeteroscedasticGaussian().check_shapes(outputs, spec)


def test_noise_is_known_if_it_is_given():
    unknown, guessed, given = Gaussian(), Gaussian(0.3, known=False), Gaussian(0.3)
    assert (unknown.known, guessed.known, given.known) == (False, False, True)
    assert (unknown.noise_std, guessed.noise_std, given.noise_std) == (1.0, 0.3, 0.3)
    assert not Gaussian(None, known=True).known
    f, y = jnp.asarray([0.5, -1.0]), jnp.zeros(2)
    assert unknown.negative_log_prob(f, y) == Gaussian(1.0).negative_log_prob(f, y)
    again = jax.tree.map(jnp.asarray, unknown)
    assert not again.known
    assert jax.tree.structure(again) == jax.tree.structure(Gaussian(2.0, known=False))
