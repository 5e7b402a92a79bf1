"""Operators handed to other libraries: SciPy's eigenvalues, lineax's solutions."""

import sys

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
import twins
from scipy.sparse.linalg import eigsh

from laplace_kit import curv

CG = lineax.CG(rtol=1e-12, atol=1e-12)


def ggn(dtype: str = "float64", **options):
    return curv.GGNOperator(*twins.problem("mlp", dtype).args, **options)


def hessian():
    return curv.HessianOperator(*twins.problem("mlp", "float64").args)


# --- SciPy ----------------------------------------------------------------------------------------


def test_scipy_finds_the_leading_eigenvalues(x64):
    operator = hessian().to_scipy()
    matrix = twins.dense(twins.hessian, "mlp")
    assert operator.dtype == np.float64
    found = eigsh(operator, k=3, v0=np.ones(31), return_eigenvectors=False)
    expected = np.linalg.eigvalsh(matrix)
    expected = expected[np.argsort(-np.abs(expected))[:3]]
    twins.assert_close(np.sort(found), np.sort(expected))
    vs = np.random.default_rng(0).normal(size=(31, 4))
    twins.assert_close(operator.matmat(vs), matrix @ vs)
    twins.assert_close(operator.rmatvec(vs[:, 0]), matrix @ vs[:, 0])


def test_scipy_in_single_precision():
    operator = ggn("float32").to_scipy()
    v = np.linspace(-1, 1, 31)  # float64, as SciPy's algorithms may send
    assert operator.dtype == np.float32
    twins.assert_close(operator.matvec(v), twins.dense(twins.ggn, "mlp") @ v, dtype="float32")


# --- lineax ---------------------------------------------------------------------------------------


def solution(operator, v):
    return lineax.linear_solve(operator.to_lineax(), v, CG).value


def test_lineax_solves_a_damped_system_and_compiles_once(x64):
    v = np.linspace(-1, 1, 31)
    matrix = twins.dense(twins.ggn, "mlp")
    found = solution(2.0 * ggn() + 0.5, jnp.asarray(v))
    twins.assert_close(found, np.linalg.solve(2 * matrix + 0.5 * np.eye(31), v), rtol=1e-8)
    with twins.compilations() as names:
        found = solution(3.0 * ggn() + 0.7, jnp.asarray(v))
    assert names == []
    twins.assert_close(found, np.linalg.solve(3 * matrix + 0.7 * np.eye(31), v), rtol=1e-8)


def test_a_solution_by_lineax_is_differentiable_under_jit(x64):
    matrix = twins.dense(twins.ggn, "mlp")
    v = jnp.linspace(-1, 1, 31)

    @jax.jit
    @jax.grad
    def derivative(damping, operator):
        damped = (operator + damping).to_lineax()  # its values are not known here
        assert not lineax.is_positive_semidefinite(damped)
        damped = lineax.TaggedLinearOperator(damped, lineax.positive_semidefinite_tag)
        return v @ lineax.linear_solve(damped, v, CG).value

    root = np.linalg.solve(matrix + 0.5 * np.eye(31), v)
    twins.assert_close(derivative(0.5, ggn()), -root @ root, rtol=1e-8)


def test_lineax_is_told_what_is_known(x64):
    semidefinite = {
        "ggn": (ggn(), True),
        "scaled": (ggn(scale=-1.0), False),
        "hessian": (hessian(), False),
        "fisher": (curv.EmpiricalFisherOperator(*twins.problem("bare", "float64").args), True),
        "loss": (curv.GGNOperator(*twins.problem("bare", "float64").args), False),
    }
    for operator, expected in semidefinite.values():
        exported = operator.to_lineax()
        assert lineax.is_symmetric(exported)
        assert lineax.is_positive_semidefinite(exported) == expected
        assert exported.in_structure().shape == operator.shape[:1]


def test_lineax_cannot_loop_over_a_stream():
    problem = twins.problem("mlp")
    data = twins.batches(problem.x, problem.y, 4, 3)
    operator = curv.GGNOperator(problem.model_fn, problem.params, data, problem.likelihood)
    with pytest.raises(TypeError, match=r"stream of batches, expected .*\(x, y\).*to_scipy"):
        operator.to_lineax()


def test_without_lineax_the_remedy_is_named(monkeypatch):
    operator = ggn("float32")
    monkeypatch.setitem(sys.modules, "lineax", None)
    with pytest.raises(ImportError, match=r"no lineax, expected .*pip install .*lineax"):
        operator.to_lineax()
