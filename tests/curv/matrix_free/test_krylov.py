"""Solvers against dense solutions, and what they say of systems that cannot be solved."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit.curv.matrix_free.krylov import Status, conjugate_gradients, lsmr, neumann_series

P, K = 12, 3
RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.normal(size=(P, P)))[0]
B = RNG.normal(size=(K, P)) * np.array([[1.0], [1e3], [1e-3]])
EVEN = np.linspace(1, 4, P)

SOLVERS = {"cg": conjugate_gradients, "lsmr": lsmr, "neumann": neumann_series}
solvers = pytest.mark.parametrize("solver", SOLVERS)


def matrix_of(spectrum) -> np.ndarray:
    return BASIS @ (np.asarray(spectrum)[:, None] * BASIS.T)


@partial(jax.jit, static_argnames="solver")
def run(solver, matrix, inverse, b, x0, tolerance, limit):
    return SOLVERS[solver](lambda x: x @ matrix, lambda r: r @ inverse, b, x0, tolerance, limit)


def solve(solver, matrix, b=B, *, inverse=None, x0=None, tolerance=1e-12, limit=500):
    """Solve in one program for each solver, whatever the matrix; rows of zeros are no start."""
    inverse = np.eye(P) if inverse is None else inverse
    x0 = np.zeros_like(b) if x0 is None else x0
    return run(solver, matrix, inverse, b, x0, tolerance, limit)


@solvers
def test_equals_the_dense_solution(solver, x64):
    matrix = matrix_of(EVEN)
    x, report = solve(solver, matrix)
    expected = np.linalg.solve(matrix, B.T).T
    for found, wanted in zip(x, expected, strict=True):  # rows of very different size
        twins.assert_close(found, wanted, rtol=1e-11)
    np.testing.assert_array_equal(report.status, Status.CONVERGED)
    actual = np.linalg.norm(B - x @ matrix, axis=1) / np.linalg.norm(B, axis=1)
    np.testing.assert_allclose(report.residual, actual, rtol=0.5)
    assert np.all(report.residual <= 1e-12)


@solvers
def test_preconditioners_change_the_way_and_not_the_answer(solver, x64):
    spectrum = 10 * EVEN
    matrix = matrix_of(spectrum)
    inverse = matrix_of(1 / (spectrum + RNG.normal(size=P)))
    x, report = solve(solver, matrix, inverse=inverse)
    twins.assert_close(x[0], np.linalg.solve(matrix, B[0]))
    assert np.all(report.status == Status.CONVERGED)
    assert np.all(report.iterations < solve(solver, matrix)[1].iterations)


@solvers
def test_the_inverse_as_preconditioner_takes_one_step(solver, x64):
    matrix = matrix_of(EVEN)
    _, report = solve(solver, matrix, inverse=np.linalg.inv(matrix), tolerance=1e-9)
    # The step of a series keeps a distance to the largest eigenvalue, here 1.
    assert np.all(report.iterations <= (9 if solver == "neumann" else 1))
    assert np.all(report.status == Status.CONVERGED)


def test_conjugate_gradients_take_a_step_for_each_eigenvalue(x64):
    spectrum = np.repeat([1.0, 5.0, 50.0], 4)
    b = np.stack([B[0], BASIS[:, 0], BASIS[:, 0] + BASIS[:, 7]])
    _, report = solve("cg", matrix_of(spectrum), b)
    np.testing.assert_array_equal(report.iterations, [3, 1, 2])


def test_a_series_is_the_sum_of_its_terms(x64):
    matrix, inverse = matrix_of(EVEN), matrix_of(1 / (EVEN + 1))
    x, report = neumann_series(
        lambda x: x @ matrix, lambda r: r @ inverse, jnp.asarray(B), None, 1e-12, 5, 0.7
    )
    power, expected = inverse @ B.T, 0
    for _ in range(5):
        expected = expected + 0.7 * power
        power = power - 0.7 * inverse @ matrix @ power
    twins.assert_close(x, expected.T)
    np.testing.assert_array_equal(report.status, Status.MAX_ITERATIONS)


# --- where to start -------------------------------------------------------------------------------


@solvers
def test_the_solution_is_a_start_with_nothing_left_to_do(solver, x64):
    matrix = matrix_of(EVEN)
    x0 = np.linalg.solve(matrix, B.T).T
    for factor in (1.0, -20.0):  # of a start only its direction counts
        x, report = solve(solver, matrix, x0=factor * x0, tolerance=1e-9)
        twins.assert_close(x[1], x0[1])
        np.testing.assert_array_equal(report.iterations, 0)
        np.testing.assert_array_equal(report.status, Status.CONVERGED)


def test_a_bad_start_is_no_worse_than_none(x64):
    matrix = matrix_of(EVEN)
    x, _ = solve("cg", matrix, x0=1e9 * RNG.normal(size=B.shape))
    twins.assert_close(x[2], np.linalg.solve(matrix, B[2]))


@solvers
def test_nothing_on_the_right_gives_nothing(solver, x64):
    b = np.stack([0 * B[0], B[1], 0 * B[2]])
    x, report = solve(solver, matrix_of(EVEN), b, x0=np.ones_like(b))
    np.testing.assert_array_equal(x[0], 0)
    assert np.all(report.status == Status.CONVERGED)
    np.testing.assert_array_equal(report.residual[::2], 0)


# --- what cannot be solved ------------------------------------------------------------------------


def test_negative_curvature_is_met(x64):
    indefinite = np.where(np.arange(P) == 3, -0.1, EVEN)
    _, report = solve("cg", matrix_of(indefinite))
    np.testing.assert_array_equal(report.status, Status.INDEFINITE)
    _, report = solve("neumann", matrix_of(indefinite))
    np.testing.assert_array_equal(report.status, Status.DIVERGED)
    x, report = solve("lsmr", matrix_of(indefinite))
    np.testing.assert_array_equal(report.status, Status.CONVERGED)
    twins.assert_close(x[0], np.linalg.solve(matrix_of(indefinite), B[0]))


def test_a_singular_matrix_is_told(x64):
    """A consistent system is solved nevertheless."""
    singular = matrix_of(np.where(np.arange(P) < 4, 0.0, EVEN))
    b = np.stack([B[0], singular @ B[0], B[0]])
    _, report = solve("cg", singular, b)
    assert report.status[1] == Status.CONVERGED
    assert report.status[0] in (
        Status.INDEFINITE,
        Status.ROUNDING,
        Status.MAX_ITERATIONS,
    )
    x, report = solve("lsmr", singular, b)
    found = [Status.INCONSISTENT, Status.CONVERGED, Status.INCONSISTENT]
    np.testing.assert_array_equal(report.status, found)
    twins.assert_close(x, b @ np.linalg.pinv(singular), rtol=1e-9)
    _, report = solve("neumann", singular, b)
    found = [Status.MAX_ITERATIONS, Status.CONVERGED, Status.MAX_ITERATIONS]
    np.testing.assert_array_equal(report.status, found)


def test_a_zero_matrix(x64):
    _, report = solve("cg", np.zeros((P, P)))
    np.testing.assert_array_equal(report.status, Status.INDEFINITE)
    np.testing.assert_array_equal(report.iterations, 0)
    _, report = solve("neumann", np.zeros((P, P)))
    np.testing.assert_array_equal(report.status, Status.MAX_ITERATIONS)
    x, report = solve("lsmr", np.zeros((P, P)))
    np.testing.assert_array_equal(report.status, Status.INCONSISTENT)
    np.testing.assert_array_equal(x, 0)


def test_an_indefinite_preconditioner_is_told(x64):
    _, report = solve("cg", matrix_of(EVEN), inverse=-np.eye(P))
    np.testing.assert_array_equal(report.status, Status.INDEFINITE_PRECONDITIONER)


@solvers
def test_steps_run_out(solver, x64):
    spectrum = np.geomspace(1, 1e6, P)
    _, report = solve(solver, matrix_of(spectrum), limit=4)
    np.testing.assert_array_equal(report.status, Status.MAX_ITERATIONS)
    np.testing.assert_array_equal(report.iterations, 4)


@pytest.mark.parametrize("solver", ["cg", "lsmr"])
def test_rounding_sets_a_floor(solver, x64):
    matrix = matrix_of(np.geomspace(1, 1e8, P))
    x, report = solve(solver, matrix, tolerance=1e-18)
    assert np.all(report.status == Status.ROUNDING)
    actual = np.linalg.norm(B - np.asarray(x) @ matrix, axis=1) / np.linalg.norm(B, axis=1)
    np.testing.assert_allclose(report.residual, actual, rtol=0.5)
    assert np.all(report.residual < 1e-6)


@solvers
def test_what_is_not_finite_is_told(solver, x64):
    b = np.where(np.arange(P) == 5, np.nan, B)
    _, report = solve(solver, matrix_of(EVEN), b)
    np.testing.assert_array_equal(report.status, Status.NOT_FINITE)


@solvers
def test_single_precision(solver):
    spectrum = np.geomspace(1, 100, P)
    arrays = [np.float32(a) for a in (matrix_of(spectrum), np.eye(P), B, 0 * B)]
    x, report = run(solver, *arrays, 1e-5, 5000)
    assert x.dtype == report.residual.dtype == np.float32
    assert np.all(report.status == Status.CONVERGED)
    twins.assert_close(x[1], np.linalg.solve(matrix_of(spectrum), B[1]), dtype="float32")
