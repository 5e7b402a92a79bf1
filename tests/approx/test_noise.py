"""Another noise is another factor of every sum over the data, in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import laplace_kit as lk
from laplace_kit.approx import DiagonalStructure, Expansion
from laplace_kit.approx.noise import noise_factor, residuals_of, with_scaled_noise
from laplace_kit.likelihood import Categorical, Gaussian, Masked, MultivariateGaussian
from laplace_kit.tree import replace

RESIDUALS = np.random.default_rng(0).normal(size=(7, 2))
STDS = np.array([0.4, 1.5])


def expansion(stds=STDS) -> Expansion:
    log_likelihood = norm.logpdf(RESIDUALS, scale=stds).sum()
    structure = DiagonalStructure(jnp.asarray([2.0, 3.0]) / stds[0] ** 2)
    gradient = jnp.asarray([1.0, -1.0]) / stds[0] ** 2
    return Expansion(jnp.asarray(log_likelihood), gradient, structure, num_data=7)


@pytest.mark.parametrize("form", ["deviations", "covariance"])
def test_residuals_follow_from_the_log_likelihood(form, x64):
    covariance = MultivariateGaussian(np.diag(STDS**2))
    likelihood = Gaussian(STDS) if form == "deviations" else covariance
    found = residuals_of(likelihood, expansion(), (2,))
    assert float(found.squares) == pytest.approx(np.sum((RESIDUALS / STDS) ** 2))
    assert found.count == 14
    gained = norm.logpdf(RESIDUALS, scale=3 * STDS).sum() - expansion().log_likelihood
    assert float(found.log_likelihood(2 * np.log(3))) == pytest.approx(float(gained))


def test_masked_residuals_are_those_observed(x64):
    mask = np.array([[1, 0], [1, 1], [0, 0], [1, 0], [1, 1], [1, 0], [1, 1]])
    losses = np.where(mask, norm.logpdf(RESIDUALS, scale=STDS), 0)
    counted = replace(
        expansion(),
        log_likelihood=jnp.asarray(losses.sum()),
        num_entries=jnp.asarray(mask.sum(axis=0), float),
    )
    found = residuals_of(Masked(Gaussian(STDS)), counted, (2,))
    assert float(found.squares) == pytest.approx(np.sum(mask * (RESIDUALS / STDS) ** 2))
    assert found.count == mask.sum()
    scaled, changed = with_scaled_noise(
        Masked(Gaussian(STDS)), counted, jnp.asarray(3.0), event=(2,)
    )
    np.testing.assert_allclose(scaled.likelihood.noise_std, 3 * STDS)
    losses = np.where(mask, norm.logpdf(RESIDUALS, scale=3 * STDS), 0)
    assert float(changed.log_likelihood) == pytest.approx(losses.sum())
    np.testing.assert_array_equal(changed.num_entries, counted.num_entries)
    with pytest.raises(ValueError, match=r"without the numbers of observed entries.*fit it again"):
        residuals_of(Masked(Gaussian(STDS)), expansion(), (2,))


@pytest.mark.parametrize("known", [False, True])
def test_scaled_noise_is_that_of_another_likelihood(known, x64):
    given = Gaussian(STDS, known=known)
    likelihood, found = with_scaled_noise(given, expansion(), jnp.asarray(3.0), event=(2,))
    expected = expansion(3 * STDS)
    np.testing.assert_allclose(likelihood.noise_std, 3 * STDS)
    assert likelihood.known == known
    assert float(found.log_likelihood) == pytest.approx(float(expected.log_likelihood))
    np.testing.assert_allclose(found.gradient, expected.gradient)
    np.testing.assert_allclose(found.structure.diagonal, expected.structure.diagonal)
    assert found.num_data == 7


def test_an_empirical_fisher_matrix_goes_with_the_square(x64):
    power = lk.EmpiricalFisher().noise_power
    _, found = with_scaled_noise(
        Gaussian(STDS), expansion(), jnp.asarray(3.0), event=(2,), power=power
    )
    np.testing.assert_allclose(found.structure.diagonal, expansion().structure.diagonal / 3**4)
    assert lk.GGN().noise_power == 1


def test_a_factor_is_one_for_all_outputs():
    assert float(noise_factor(Gaussian(STDS), 2 * STDS)) == pytest.approx(2)
    for wrong in (-STDS, STDS + 1, np.ones(3)):
        with pytest.raises(ValueError, match=r"Found noise_std=.*with noise_std="):
            noise_factor(Gaussian(STDS), wrong)
    assert float(noise_factor(Masked(Gaussian(STDS)), 2 * STDS)) == pytest.approx(2)
    for likelihood in (Categorical(), Masked(Categorical())):
        with pytest.raises(TypeError, match=r"Found a Categorical likelihood.*lk\.Gaussian"):
            noise_factor(likelihood, 1.0)
