"""What follows from products alone: `@` from both sides, trace, exports to SciPy and lineax."""

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


@pytest.mark.parametrize("make", [ggn, hessian])
def test_trace_is_the_sum_of_the_diagonal(make, x64):
    operator = make()
    twins.assert_close(operator.trace(), jnp.trace(operator.to_dense()))


# --- products with `@` ----------------------------------------------------------------------------


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_products_from_both_sides(as_array, x64):
    operator, matrix = ggn(), twins.dense(twins.ggn, "mlp")
    rows = as_array(np.random.default_rng(0).normal(size=(3, 31)))
    twins.assert_close(operator @ rows[0], matrix @ rows[0])
    twins.assert_close(rows[0] @ operator, matrix @ rows[0])
    twins.assert_close(operator @ rows.T, matrix @ rows.T)
    twins.assert_close(rows @ operator, rows @ matrix)
    assert isinstance(rows @ operator, jax.Array)


def test_square_blocks_are_columns_on_the_right_and_rows_on_the_left(x64):
    operator, matrix = ggn(), twins.dense(twins.ggn, "mlp")
    block = np.random.default_rng(0).normal(size=(31, 31))

    @jax.jit
    def both(operator, block):
        return operator @ block, block @ operator

    columns, rows = both(operator, block)
    twins.assert_close(columns, matrix @ block)
    twins.assert_close(rows, block @ matrix)


def test_pytrees_are_vectors_on_both_sides(x64):
    problem = twins.problem("bare", "float64")
    operator = curv.GGNOperator(*problem.args)
    v = problem.vectors(1)[0]
    as_params = v.reshape(problem.params.shape)  # two axes, and yet no block of vectors
    for product in (operator @ as_params, as_params @ operator):
        twins.assert_close(product, (operator @ v).reshape(as_params.shape))


def test_a_column_of_parameters_is_both_a_vector_and_a_block(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    operator = curv.GGNOperator(twins.bare, jnp.ones((3, 1)), (x, x[:, :1]), "gaussian")
    v = jnp.arange(3.0)
    twins.assert_close(operator @ v[:, None], (operator @ v)[:, None])


def test_wrong_blocks_are_named():
    operator = ggn("float32")
    rows = np.ones((4, 31), np.float32)
    with pytest.raises(ValueError, match=r"shape \(4, 31\), expected .*op\.matmat with a leading"):
        operator @ rows
    with pytest.raises(ValueError, match=r"shape \(31, 4\), expected .*op\.matmat with a leading"):
        rows.T @ operator
    with pytest.raises(TypeError, match=r"product of two operators.*a @ \(b @ v\)"):
        operator @ operator


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
