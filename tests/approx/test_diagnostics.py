"""Diagnostics, against the dense matrices of a small curvature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laplace_kit.approx import DiagonalStructure, FullStructure, LowRankStructure
from laplace_kit.approx.diagnostics import diagnose

RNG = np.random.default_rng(0)
VECTORS = np.linalg.qr(RNG.normal(size=(5, 5)))[0].T
VALUES = np.array([9.0, 4.0, 2.0, 0.5, 0.1])
PRECISION, GRADIENT, DEVIATION = RNG.uniform(0.5, 2, 5), RNG.normal(size=5), RNG.normal(size=5)


def structures():
    matrix = VECTORS.T @ np.diag(VALUES) @ VECTORS
    rank_two = VECTORS[:2].T @ np.diag(VALUES[:2]) @ VECTORS[:2]
    residuals = jnp.asarray([0.09, 0.02])
    low_rank = LowRankStructure(
        jnp.asarray(VALUES[:2]), jnp.asarray(VECTORS[:2]), residuals, jnp.asarray(0.05)
    )
    return {
        "full": (FullStructure(jnp.asarray(matrix)), matrix, 0.1, 0.0),
        "diagonal": (
            DiagonalStructure(jnp.asarray(np.diag(matrix))),
            np.diag(np.diag(matrix)),
            np.diag(matrix).min(),
            0.0,
        ),
        "low_rank": (low_rank, rank_two, 0.05, 0.01),
    }


def measured(structure, precision=PRECISION, temperature=1.0, jitter=0.0):
    """Measure the posterior of this temperature in one compiled program."""
    precision, temperature = jnp.asarray(precision), jnp.asarray(temperature)
    return jax.jit(diagnose)(
        structure,
        structure.scaled(1 / temperature).posterior(precision / temperature),
        gradient=jnp.asarray(GRADIENT),
        precision=precision,
        deviation=jnp.asarray(DEVIATION),
        jitter=jnp.asarray(jitter),
        temperature=temperature,
    )


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("kind", ["full", "diagonal", "low_rank"])
def test_numbers_are_those_of_the_dense_matrix(kind, temperature, x64):
    """Whatever the temperature: it belongs to the covariance, not to the parameters."""
    structure, dense, smallest, residual = structures()[kind]
    found = measured(structure, temperature=temperature)
    cov = np.linalg.inv(dense + np.diag(PRECISION))
    assert float(found.effective_parameters) == pytest.approx(np.trace(dense @ cov), rel=1e-10)
    slope = GRADIENT + PRECISION * DEVIATION
    assert float(found.gradient_norm) == pytest.approx(np.linalg.norm(slope), rel=1e-12)
    assert float(found.mode_distance) == pytest.approx(np.sqrt(slope @ cov @ slope), rel=1e-10)
    assert float(found.smallest_eigenvalue) == pytest.approx(smallest, rel=1e-9)
    assert float(found.largest_residual) == pytest.approx(residual, rel=1e-9, abs=1e-15)
    assert found.jitter == 0


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_condition_number_is_exact_for_one_precision_and_else_a_bound(kind, x64):
    structure, dense, _, _ = structures()[kind]
    found = measured(structure, np.full(5, 0.7)).condition_number
    assert float(found) == pytest.approx(np.linalg.cond(dense + 0.7 * np.eye(5)), rel=1e-9)
    found = measured(structure).condition_number
    assert np.linalg.cond(dense + np.diag(PRECISION)) <= float(found)
    assert float(found) == pytest.approx(
        (np.linalg.eigvalsh(dense)[-1] + PRECISION.max())
        / (np.linalg.eigvalsh(dense)[0] + PRECISION.min()),
        rel=1e-9,
    )


def test_condition_number_of_an_indefinite_curvature_stays_positive(x64):
    """Negative eigenvalues count as zero: the prior outweighs them, or there is no posterior."""
    values = np.array([9.0, 4.0, 2.0, 0.5, -0.1])
    found = measured(DiagonalStructure(jnp.asarray(values)), np.full(5, 0.7))
    assert float(found.condition_number) == pytest.approx(9.7 / 0.7, rel=1e-12)
    assert float(found.smallest_eigenvalue) == -0.1


def test_jitter_is_told_and_the_condition_is_that_without_it(x64):
    found = measured(structures()["full"][0], np.full(5, 0.7), jitter=0.25)
    assert found.jitter == 0.25
    assert float(found.condition_number) == pytest.approx(9.7 / 0.8, rel=1e-9)


def test_distance_is_in_standard_deviations_of_one_parameter(x64):
    """A parabola whose mode is three of its standard deviations away, along one axis."""
    gradient = np.array([0.0, 3 * np.sqrt(4.5), 0.0, 0.0, 0.0])
    structure, precision = DiagonalStructure(jnp.full(5, 4.0)), jnp.full(5, 0.5)
    found = diagnose(
        structure,
        structure.posterior(precision),
        gradient=jnp.asarray(gradient),
        precision=precision,
        deviation=jnp.zeros(5),
        jitter=jnp.zeros(()),
        temperature=jnp.ones(()),
    )
    assert float(found.mode_distance) == pytest.approx(3.0, rel=1e-12)
