"""Stochastic Lanczos quadrature against dense eigenvalues, and where the recurrence ends early."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.scipy import stats
from matrices import Diagonal, Matrix, rotated

from laplace_kit import curv
from laplace_kit.curv.matrix_free.quadrature import estimate_log_det, spectral_density

KEY = jax.random.key(0)
P = 24
SPECTRUM = 5 * 0.7 ** np.arange(P)


def broadened(spectrum, grid, width):
    return np.mean(stats.norm.pdf(grid[:, None], spectrum, width), axis=1)


def test_log_det_is_unbiased_with_honest_errors(x64):
    """All of the Krylov space: what is left is the probes' error."""

    def estimate(key):
        return estimate_log_det(operator, damping=0.5, key=key, num_samples=8, num_steps=P)

    operator = rotated(SPECTRUM)
    found = jax.jit(lambda keys: jax.lax.map(estimate, keys))(jax.random.split(KEY, 400))
    error = np.asarray(found.value) - np.log(SPECTRUM + 0.5).sum()
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(error))
    claimed = np.sqrt(np.mean(np.square(found.standard_error)))
    assert np.sqrt(np.mean(error**2)) == pytest.approx(claimed, rel=0.1)
    assert found.num_products == 8 * (P + 1)


@jax.jit
def log_det(operator, damping):
    return estimate_log_det(operator, damping=damping, key=KEY, num_samples=2)


@pytest.mark.accelerator
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exhausted_krylov_spaces_are_exact(dtype):
    """A multiple of the identity leaves nothing after the first step: no noise, no NaN."""
    with twins.precision(dtype):
        for scale, damping in itertools.product([0.0, 1.0, 7.0], [1e-3, 10.0]):
            found = log_det(Matrix(scale * jnp.eye(P, dtype=dtype)), damping)
            assert found.value.dtype == dtype
            expected = P * np.log(scale + damping)
            # An eigenvalue near one, whose logarithm is small, is still rounded as one is.
            rounding = 4 * P * np.finfo(dtype).eps / abs(expected)
            rtol = max(twins.TOLERANCE[dtype], rounding)
            twins.assert_close(found.value, expected, rtol=rtol)
            assert found.standard_error < 1e-4


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_low_rank_at_every_scale(scale, x64):
    spectrum = scale * np.where(np.arange(P) < 3, np.arange(P, 0, -1), 0)
    found = log_det(rotated(spectrum), 1e-6 * scale)
    exact = np.log(spectrum + 1e-6 * scale).sum()
    assert abs(found.value - exact) < 4 * found.standard_error


def test_a_million_parameters_in_single_precision():
    """Few large eigenvalues do not make rounding of the many small ones."""
    values = np.tile(np.float32([1, 2, 3]), 333_334)[:1_000_000]
    values[:100] = 3e3
    operator = Diagonal(jnp.asarray(values))
    found = estimate_log_det(operator, key=KEY, num_samples=2, num_steps=5)
    np.testing.assert_allclose(found.value, np.log(values).sum(dtype=float), rtol=2e-2)


def test_log_det_of_a_diagonal_matrix_is_exact_with_every_damping(x64):
    values, damping = np.linspace(1, 2, P), np.linspace(0, 3, P)
    operator = Matrix(jnp.diag(values))
    found = estimate_log_det(operator, damping=jnp.asarray(damping), key=KEY)
    twins.assert_close(found.value, np.log(values + damping).sum(), rtol=1e-9)
    assert found.standard_error < 1e-9


@pytest.mark.slow
def test_of_a_model_over_a_stream(x64):
    """A Gauss-Newton matrix of low rank, whose Krylov spaces are exhausted early."""
    problem = twins.problem("mlp", "float64")
    batches = twins.batches(problem.x, problem.y, 3, 3, 1)
    stream = curv.GGNOperator(problem.model_fn, problem.params, batches, problem.likelihood)
    in_memory = curv.GGNOperator(*problem.args)
    options = {"key": KEY, "num_samples": 4, "num_steps": 12}
    found = [estimate_log_det(op, damping=2.0, **options) for op in (stream, in_memory)]
    twins.assert_close(found[0].value, found[1].value)
    matrix = twins.dense(twins.ggn, "mlp")
    exact = np.linalg.slogdet(matrix + 2 * np.eye(len(matrix)))[1]
    assert abs(found[0].value - exact) < 3 * found[0].standard_error


def test_in_one_program(x64):
    problem = twins.problem("bare", "float64")

    @jax.jit
    def both(params, key, damping):
        operator = curv.GGNOperator(
            problem.model_fn, params, (problem.x, problem.y), problem.likelihood
        )
        return (
            estimate_log_det(operator, damping=damping, key=key, num_samples=2),
            spectral_density(operator, key=key, num_samples=2, num_steps=3),
        )

    first = both(problem.params, KEY, 1.0)
    other = 1.5 * problem.params, jax.random.key(1), 2.0
    with twins.compilations() as programs:
        both(*other)
    assert not programs
    operator = curv.GGNOperator(*problem.args)
    eager = estimate_log_det(operator, damping=1.0, key=KEY, num_samples=2)
    twins.assert_close(first[0].value, eager.value)


@pytest.mark.parametrize("spectrum", [np.linspace(1, 3, 5), 2 * np.ones(5), np.zeros(5)])
def test_differentiable_in_damping_and_operator(spectrum, x64):
    """Exact for a diagonal matrix, and where the Krylov space is exhausted after one step."""

    def value(factor, damping):
        operator = Matrix(factor * jnp.diag(spectrum))
        return estimate_log_det(operator, damping=damping, key=KEY, num_samples=2).value

    found = jax.jit(jax.grad(value, (0, 1)))(1.0, 0.5)
    twins.assert_close(found[0], np.sum(spectrum / (spectrum + 0.5)))
    twins.assert_close(found[1], np.sum(1 / (spectrum + 0.5)))


def test_derivatives_of_a_low_rank_are_unbiased(x64):
    spectrum = np.where(np.arange(P) < 3, np.arange(P, 0, -1), 0)
    operator = rotated(spectrum)

    def value(damping, key):
        return estimate_log_det(operator, damping=damping, key=key, num_samples=4).value

    keys = jax.random.split(KEY, 200)
    found = jax.jit(lambda keys: jax.lax.map(lambda key: jax.grad(value)(0.5, key), keys))(keys)
    error = np.asarray(found) - np.sum(1 / (spectrum + 0.5))
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(keys))
    assert error.std() < 0.2 * np.sum(1 / (spectrum + 0.5))


@pytest.mark.parametrize("in_memory", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_density_within_its_errors(in_memory, x64):
    spectrum = np.concatenate([SPECTRUM, -np.linspace(1, 2, 6)])
    operator = rotated(spectrum, in_memory=in_memory)
    found = spectral_density(operator, key=KEY, num_samples=20, num_steps=len(spectrum), width=0.1)
    grid, density = np.asarray(found.grid), np.asarray(found.density)
    assert grid[0] < spectrum.min() < spectrum.max() < grid[-1]
    assert np.trapezoid(density, grid) == pytest.approx(1, rel=1e-4)
    error = density - broadened(spectrum, grid, found.width)
    claimed = np.sqrt(np.mean(np.square(found.standard_error)))
    assert np.sqrt(np.mean(error**2)) < 2 * claimed
    assert claimed < 0.2 * density.max()
    # Each probe's rule integrates polynomials exactly: here the mean of the eigenvalues.
    moments = np.sum(found.nodes * found.weights, axis=1)
    assert abs(moments.mean() - spectrum.mean()) < 3 * moments.std() / np.sqrt(19)
    twins.assert_close(found.weights.sum(1), np.ones(20))


def test_density_of_one_eigenvalue():
    """Its width is a hundredth of the value itself, and the probes agree."""
    found = spectral_density(rotated(np.full(P, 3.0), "float32"), key=KEY, num_samples=2)
    expected = broadened(np.full(P, 3.0), np.asarray(found.grid), found.width)
    assert found.width == pytest.approx(0.03, rel=1e-4)
    twins.assert_close(found.density, expected, rtol=1e-2)


def test_density_on_a_grid_of_the_callers():
    operator = rotated(SPECTRUM, "float32")
    grid = np.linspace(-1, 1, 50, dtype="float32")
    found = spectral_density(operator, key=KEY, num_samples=2, grid=grid, width=0.3)
    np.testing.assert_array_equal(found.grid, grid)
    assert found.density.shape == found.standard_error.shape == (50,)
    assert found.width == pytest.approx(0.3)
    assert found.num_products == 2 * P


def test_negative_curvature_is_refused(x64):
    operator = rotated(np.linspace(-1, 2, P))
    with pytest.raises(ValueError, match=r"Ritz value -0.9.*positive definite.*raise `damping`"):
        estimate_log_det(operator, damping=0.1, key=KEY)
    with pytest.raises(ValueError, match=r"positive definite"):
        estimate_log_det(rotated(np.ones(P)), damping=-1.5, key=KEY)
    assert np.isnan(jax.jit(lambda op: estimate_log_det(op, key=KEY).value)(operator))


def test_wrong_options():
    operator = rotated(SPECTRUM, "float32")
    with pytest.raises(ValueError, match=r"num_samples=1, expected 2 or more"):
        spectral_density(operator, key=KEY, num_samples=1)
    with pytest.raises(ValueError, match=r"num_steps=0, expected 1 or more"):
        estimate_log_det(operator, key=KEY, num_steps=0)
    with pytest.raises(ValueError, match=r"width=-1.0, expected a positive number"):
        spectral_density(operator, key=KEY, width=-1.0)
