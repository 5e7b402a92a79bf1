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


@pytest.mark.parametrize("kind", ["full", "diagonal", "low_rank"])
def test_numbers_are_those_of_the_dense_matrix(kind, x64):
    structure, dense, smallest, residual = structures()[kind]
    precision = jnp.asarray(PRECISION)
    found = jax.jit(diagnose)(
        structure,
        structure.posterior(precision),
        gradient=jnp.asarray(GRADIENT),
        precision=precision,
        deviation=jnp.asarray(DEVIATION),
        jitter=jnp.asarray(0.25),
    )
    effective = np.trace(dense @ np.linalg.inv(dense + np.diag(PRECISION)))
    assert float(found.effective_parameters) == pytest.approx(effective, rel=1e-10)
    slope = np.linalg.norm(GRADIENT + PRECISION * DEVIATION)
    assert float(found.gradient_norm) == pytest.approx(slope, rel=1e-12)
    assert float(found.smallest_eigenvalue) == pytest.approx(smallest, rel=1e-9)
    assert float(found.largest_residual) == pytest.approx(residual, rel=1e-9, abs=1e-15)
    assert float(found.jitter) == 0.25
