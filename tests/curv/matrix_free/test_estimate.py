"""Random estimates against the dense matrix: without bias, and with honest standard errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from matrices import Matrix, rotated

from laplace_kit import curv
from laplace_kit.curv.matrix_free.estimate import (
    estimate_diagonal,
    estimate_frobenius_norm_squared,
    estimate_trace,
)

KEY = jax.random.key(0)
SPECTRUM = np.concatenate([4 * 0.7 ** np.arange(20), -0.3 * np.ones(4)])

# The estimator, the quantity, and how far its standard error may be from that over keys.
ESTIMATORS = {
    "trace": (estimate_trace, np.trace, 0.1),
    "trace, normal": (functools.partial(estimate_trace, probes="normal"), np.trace, 0.1),
    "trace, sphere": (functools.partial(estimate_trace, probes="sphere"), np.trace, 0.1),
    "trace, sparse signs": (
        functools.partial(estimate_trace, probes="sparse_signs"),
        np.trace,
        0.1,
    ),
    "xtrace": (functools.partial(estimate_trace, method="xtrace"), np.trace, 0.35),
    "diagonal": (estimate_diagonal, np.diag, 0.1),
    "xdiag": (functools.partial(estimate_diagonal, method="xdiag"), np.diag, 0.2),
    "frobenius": (estimate_frobenius_norm_squared, lambda a: np.sum(a**2), 0.1),
}


@functools.partial(jax.jit, static_argnums=0)
def over_keys(estimator, operator, keys):
    """Return an estimate for each key; in a loop, as XLA's QR of many matrices may hang."""
    return jax.lax.map(lambda key: estimator(operator, key=key, num_samples=10), keys)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_unbiased_with_honest_errors(name, x64):
    """Over a thousand keys, in one program."""
    estimator, quantity, tolerance = ESTIMATORS[name]
    operator = rotated(SPECTRUM)
    expected = quantity(np.asarray(operator.dense))
    keys = jax.random.split(KEY, 1000)
    found = over_keys(estimator, operator, keys)
    error = np.asarray(found.value) - expected
    of_the_mean = error.std(0) / np.sqrt(len(keys))
    assert np.all(np.abs(error.mean(0)) < 4 * of_the_mean)
    claimed = np.sqrt(np.mean(np.square(found.standard_error)))
    assert np.sqrt(np.mean(error**2)) == pytest.approx(claimed, rel=tolerance)


@pytest.mark.accelerator
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_diagonal_matrix_is_exact_with_signs(dtype):
    with twins.precision(dtype):
        values = jnp.arange(1.0, 8.0, dtype=dtype)
        operator = Matrix(jnp.diag(values))
        options = {"key": KEY, "num_samples": 2}
        found = [
            estimate_trace(operator, **options),
            estimate_diagonal(operator, **options),
            estimate_frobenius_norm_squared(operator, **options),
        ]
        expected = values.sum(), values, jnp.sum(values**2)
        for estimate, value in zip(found, expected, strict=True):
            assert estimate.value.dtype == dtype
            assert estimate.num_products == 2
            twins.assert_close(estimate.value, value, dtype=dtype)
            np.testing.assert_allclose(estimate.standard_error, 0, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_low_rank_is_exact_with_as_many_probes(scale):
    """In float32, at any scale: what is small is not taken for zero."""
    spectrum = scale * np.where(np.arange(40) < 5, np.arange(40, 0, -1), 0)
    operator = rotated(spectrum, "float32")
    for probes in ("normal", "signs"):
        options = {"key": KEY, "num_samples": 9, "probes": probes}
        trace = estimate_trace(operator, method="xtrace", **options)
        diagonal = estimate_diagonal(operator, method="xdiag", **options)
        twins.assert_close(trace.value, spectrum.sum(), dtype="float32")
        twins.assert_close(diagonal.value, np.diag(operator.dense), dtype="float32")
        assert trace.standard_error < 1e-4 * spectrum.sum()
        assert trace.num_products == 18


def test_half_of_the_dimension_is_exact(x64):
    operator = rotated(SPECTRUM)
    trace = estimate_trace(operator, key=KEY, num_samples=12, method="xtrace")
    diagonal = estimate_diagonal(operator, key=KEY, num_samples=24, method="xdiag")
    twins.assert_close(trace.value, SPECTRUM.sum())
    twins.assert_close(diagonal.value, np.diag(operator.dense))
    assert trace.standard_error < 1e-15  # rounding, if anything
    assert trace.num_products == diagonal.num_products == len(SPECTRUM)


@pytest.mark.parametrize("spectrum", [np.ones(24), np.tile([1.0, -1.0], 12)])
def test_flat_spectra(spectrum, x64):
    """If a low rank does not help, errors are larger than estimated, as is documented."""
    operator = rotated(spectrum)
    for estimator, exact in (
        (functools.partial(estimate_trace, method="xtrace", probes="signs"), spectrum.sum()),
        (functools.partial(estimate_diagonal, method="xdiag"), np.diag(operator.dense)),
    ):
        found = over_keys(estimator, operator, jax.random.split(KEY, 400))
        error = np.asarray(found.value) - exact
        claimed = np.sqrt(np.mean(np.square(found.standard_error)))
        assert 0.9 * claimed < np.sqrt(np.mean(error**2)) < 1.8 * claimed


@pytest.mark.parametrize("method", ["trace", pytest.param("xdiag", marks=pytest.mark.slow)])
def test_of_a_model_over_a_stream(method, x64):
    """The same key gives the same estimate, within its errors of the dense matrix."""
    problem = twins.problem("mlp", "float64")
    batches = twins.batches(problem.x, problem.y, 3, 3, 1)
    stream = curv.GGNOperator(problem.model_fn, problem.params, batches, problem.likelihood)
    in_memory = curv.GGNOperator(*problem.args)
    matrix = twins.dense(twins.ggn, "mlp")
    estimator, quantity, _ = ESTIMATORS[method]
    options = {"key": KEY, "num_samples": 8}
    found, other = (estimator(operator, **options) for operator in (stream, in_memory))
    twins.assert_close(found.value, other.value)
    twins.assert_close(found.standard_error, other.standard_error)
    error = np.abs(found.value - quantity(matrix))
    assert np.sqrt(np.mean(error**2)) < 3 * np.sqrt(np.mean(found.standard_error**2))


def test_differentiable_in_the_operator(x64):
    operator = rotated(SPECTRUM)

    def trace(factor):
        return estimate_trace(Matrix(factor**2 * operator.dense), key=KEY, num_samples=4).value

    twins.assert_close(jax.jit(jax.grad(trace))(0.5), trace(1.0))


def test_wrong_options():
    operator = rotated(np.ones(5), "float32")
    options = {"key": KEY}
    with pytest.raises(ValueError, match=r"method='xtrac'.*mean 'xtrace'"):
        estimate_trace(operator, method="xtrac", **options)
    with pytest.raises(ValueError, match=r"method='xtrace', expected one of 'hutchinson', 'xdiag'"):
        estimate_diagonal(operator, method="xtrace", **options)
    with pytest.raises(ValueError, match=r"probes='sign'.*mean 'signs'"):
        estimate_frobenius_norm_squared(operator, probes="sign", **options)
    with pytest.raises(ValueError, match=r"num_samples=1, expected 2 or more"):
        estimate_trace(operator, num_samples=1, method="xtrace", **options)
    with pytest.raises(ValueError, match=r"num_samples=6, expected at most P=5.*lower it"):
        estimate_diagonal(operator, num_samples=6, method="xdiag", **options)
