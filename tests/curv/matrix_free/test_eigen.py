"""Extreme eigenpairs against the dense decomposition, at both ends of the spectrum."""

import jax
import numpy as np
import pytest
import twins
from matrices import rotated

from laplace_kit import curv
from laplace_kit.curv.matrix_free.eigen import eigenpairs

KEY = jax.random.key(0)
P, NUM = 40, 4

SPECTRA = {
    "decaying": np.concatenate([10.0 ** -np.linspace(0, 2, P - 4), -(0.5 ** np.arange(4))]),
    "triples": np.repeat(np.linspace(3, 1, 14), 3)[:P],
    "identity": np.ones(P),
    "rank_five": np.where(np.arange(P) < 5, np.arange(P, 0, -1), 0.0),
    "zero": np.zeros(P),
    "mostly_negative": np.concatenate([[3.0, 1.0], -np.linspace(1, 2, P - 2)]),
}


def check(pairs, operator, spectrum, which, *, num=NUM, rtol=1e-8):
    """Check eigenpairs, and that their residuals are what they claim."""
    spectrum = np.sort(spectrum)[::-1]
    expected = {
        "largest": spectrum[:num],
        "smallest": spectrum[-num:],
        "both": np.r_[spectrum[:num], spectrum[-num:]],
    }[which]
    size = max(np.abs(spectrum).max(), 1e-30)
    values, vectors = (np.asarray(a, np.float64) for a in (pairs.values, pairs.vectors))
    np.testing.assert_allclose(values, expected, atol=rtol * size)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(values)), atol=1e-5)
    actual = np.linalg.norm(
        vectors @ np.asarray(operator.dense) - values[:, None] * vectors, axis=1
    )
    np.testing.assert_allclose(pairs.residuals, actual, atol=rtol * size)
    assert pairs.converged.all()


@pytest.mark.accelerator
@pytest.mark.parametrize("name", SPECTRA)
def test_equals_the_dense_decomposition(name, x64):
    operator = rotated(SPECTRA[name])
    for which in ("largest", "smallest", "both"):
        pairs = eigenpairs(operator, NUM, key=KEY, which=which)
        check(pairs, operator, SPECTRA[name], which)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_at_every_scale_in_single_precision(scale):
    """ARPACK's own tolerance would be absolute for what is small."""
    spectrum = scale * SPECTRA["mostly_negative"]
    operator = rotated(spectrum, "float32")
    pairs = eigenpairs(operator, NUM, key=KEY, which="both")
    check(pairs, operator, spectrum, "both", rtol=1e-4)


def test_on_the_host_in_single_precision():
    operator = rotated(SPECTRA["mostly_negative"], "float32", in_memory=False)
    pairs = eigenpairs(operator, NUM, key=KEY, which="both")
    assert pairs.values.dtype == pairs.vectors.dtype == "float32"
    check(pairs, operator, SPECTRA["mostly_negative"], "both", rtol=1e-4)


def test_of_a_model(x64):
    problem = twins.problem("mlp", "float64")
    matrix = twins.dense(twins.hessian, "mlp")
    pairs = eigenpairs(curv.HessianOperator(*problem.args), 2, key=KEY, which="both")
    values = np.linalg.eigvalsh(matrix)[::-1]
    np.testing.assert_allclose(pairs.values, values[[0, 1, -2, -1]], rtol=1e-7)
    assert np.all(pairs.residuals <= 1.5e-8 * np.abs(values).max())


def test_a_looser_tolerance_takes_fewer_products(x64):
    """The residuals bound the error of each value."""
    operator = rotated(np.linspace(1, 2, P))
    loose, tight = (eigenpairs(operator, 2, key=KEY, tolerance=tol) for tol in (1e-2, 1e-10))
    assert loose.num_products < tight.num_products
    for pairs, tolerance in ((loose, 1e-2), (tight, 1e-10)):
        assert np.all(pairs.residuals <= 2 * tolerance)
        distance = np.abs(np.asarray(pairs.values)[:, None] - np.linspace(1, 2, P)).min(axis=1)
        assert np.all(distance <= pairs.residuals + 1e-14)


@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_large_numbers_are_decomposed_densely(which, x64):
    operator = rotated(SPECTRA["decaying"])
    pairs = eigenpairs(operator, P // 2, key=KEY, which=which)
    check(pairs, operator, SPECTRA["decaying"], which, num=P // 2)
    assert pairs.num_products == P


def test_what_has_not_converged_says_so(x64):
    operator = rotated(1e-3 * np.linspace(1, 2, P))
    options = {"key": KEY, "tolerance": 1e-12, "max_iterations": 2}
    with pytest.warns(RuntimeWarning, match=r"3 of 4 eigenpairs have not converged.*raise `tol"):
        pairs = eigenpairs(operator, NUM, **options)
    assert len(pairs.values) == 1  # those that have not are left out
    assert pairs.converged.all()
    assert np.abs(pairs.values - 1e-3 * np.linspace(1, 2, P)).min() <= 1e-12 * 2e-3
    with pytest.raises(RuntimeError, match=r"no eigenpair within a tolerance of 1e-12 in 1 iter"):
        eigenpairs(operator, NUM, **options | {"max_iterations": 1})


def test_wrong_options():
    operator = rotated(np.ones(30), "float32")
    with pytest.raises(ValueError, match=r"which='larges'.*mean 'largest'"):
        eigenpairs(operator, 2, key=KEY, which="larges")
    with pytest.raises(ValueError, match=r"rank=31, expected a number from 1 to P=30"):
        eigenpairs(operator, 31, key=KEY)
    with pytest.raises(ValueError, match=r"max_iterations=0, expected a whole number"):
        eigenpairs(operator, 2, key=KEY, max_iterations=0)
    for tolerance in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=rf"tolerance={tolerance}, expected a number between"):
            eigenpairs(operator, 2, key=KEY, tolerance=tolerance)
