"""The Jacobian as an operator, in both directions, against `jax.jacobian`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import svds

from laplace_kit.curv.jacobian import JacobianOperator


def of_problem(problem, **options):
    return JacobianOperator(problem.model_fn, problem.params, problem.x, **options)


def dense(name: str) -> np.ndarray:
    matrix = twins.dense(twins.jacobian, name)
    return matrix.reshape(-1, matrix.shape[-1])


@jax.jit
def forms(operator, vs, us):
    return (
        (operator.to_dense(), operator @ vs[0], operator.matmat(vs)),
        (operator.T.to_dense(), operator.T @ us[0], operator.T.matmat(us)),
    )


@pytest.mark.accelerator
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float64") for name in twins.NAMES), *((name, "float32") for name in twins.MAIN)],
)
def test_operator_is_the_dense_matrix(name, dtype):
    with twins.precision(dtype):
        operator, matrix = of_problem(twins.problem(name, dtype), batch_size=4), dense(name)
        rng = np.random.default_rng(0)
        us, vs = (jnp.asarray(rng.normal(size=(3, num)), dtype) for num in matrix.shape)
        assert operator.shape == operator.T.shape[::-1] == matrix.shape
        assert operator.dtype == operator.T.dtype == dtype
        assert operator.T.T is operator
        found, transposed = forms(operator, vs, us)
        for array, expected in zip(found, (matrix, matrix @ vs[0], vs @ matrix.T), strict=True):
            twins.assert_close(array, expected, dtype=dtype)
        for array, expected in zip(
            transposed, (matrix.T, us[0] @ matrix, us @ matrix), strict=True
        ):
            twins.assert_close(array, expected, dtype=dtype)


def test_answers_come_in_the_form_of_the_question(x64):
    problem = twins.problem("with_integers", "float64")
    operator, vs = of_problem(problem), problem.vectors(3)
    trees = [{**problem.params, "kernel": v[:6].reshape(2, 3), "power": v[6]} for v in vs]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    flat, several = operator.mv(vs[0]), operator.matmat(vs)
    assert (flat.shape, several.shape) == ((18,), (3, 18))
    twins.assert_close(operator.mv(trees[0]), flat.reshape(6, 3))
    twins.assert_close(operator.matmat(stacked), several.reshape(3, 6, 3))

    expected = operator.T.matmat(several)
    one, all_three = operator.T.mv(flat.reshape(6, 3)), operator.T.matmat(several.reshape(3, 6, 3))
    for found, vectors in ((one, expected[0]), (all_three, expected)):
        assert found.keys() == problem.params.keys()
        assert found["columns"].dtype == problem.params["columns"].dtype
        np.testing.assert_array_equal(found["columns"], 0)
        kernel = found["kernel"].reshape(*vectors.shape[:-1], 6)
        twins.assert_close(jnp.concatenate([kernel, found["power"][..., None]], -1), vectors)


def test_columns_by_the_matrix_product(x64):
    operator, matrix = of_problem(twins.problem("mlp", "float64")), dense("mlp")
    columns, rows = np.linspace(-1, 1, 62).reshape(31, 2), np.linspace(-1, 1, 63).reshape(21, 3)
    twins.assert_close(operator @ columns, matrix @ columns)
    twins.assert_close(operator.T @ rows, matrix.T @ rows)


def test_no_vectors_have_no_products():
    operator = of_problem(twins.problem("mlp"))
    assert operator.matmat(np.ones((0, 31))).shape == (0, 21)
    assert (operator.T @ np.ones((21, 0))).shape == (31, 0)


def test_with_the_output_curvature_it_makes_the_ggn(x64):
    problem = twins.problem("convnet", "float64")
    operator, v = of_problem(problem), problem.vectors(1)[0]
    found = operator.T @ (operator @ v) / twins.NOISE_STD**2
    twins.assert_close(found, twins.dense(twins.ggn, "convnet") @ v)


def test_scipy_finds_the_singular_values(x64):
    operator = of_problem(twins.problem("mlp", "float64"))
    found = svds(operator.to_scipy(), k=3, return_singular_vectors=False, v0=np.ones(21))
    expected = np.linalg.svd(dense("mlp"), compute_uv=False)[:3]
    twins.assert_close(np.sort(found), np.sort(expected))
    rows = np.linspace(-1, 1, 42).reshape(21, 2)
    twins.assert_close(operator.to_scipy().rmatmat(rows), dense("mlp").T @ rows)
    twins.assert_close(operator.T.to_scipy() @ rows, dense("mlp").T @ rows)


def test_derivative_in_the_parameters(x64):
    problem = twins.problem("convnet", "float64")
    theta, outputs = twins.flat(problem)
    v, unravel = problem.vectors(1)[0], ravel_pytree(problem.params)[1]

    def through_operator(theta):
        operator = JacobianOperator(problem.model_fn, unravel(theta), problem.x, batch_size=2)
        return jnp.sum((operator @ v) ** 2)

    def by_definition(theta):
        return jnp.sum(jax.jvp(outputs, (theta,), (v,))[1] ** 2)

    found, expected = jax.jit(jax.grad(through_operator)), jax.jit(jax.grad(by_definition))
    twins.assert_close(found(theta), expected(theta))


def test_one_output_for_each_input_is_flat():
    x, params = jnp.arange(12.0).reshape(4, 3), {"w": jnp.ones(3)}
    operator = JacobianOperator(lambda params, x: x @ params["w"], params, x)
    np.testing.assert_allclose(operator @ {"w": jnp.ones(3)}, x.sum(axis=1))
    np.testing.assert_allclose(operator.T @ jnp.ones(4), x.sum(axis=0))


# --- programs -------------------------------------------------------------------------------------


def wide(params, x):
    return jnp.tanh(x @ params)


def apply(operator, v):
    return operator @ v


def test_new_values_do_not_recompile():
    rng = np.random.default_rng(0)
    values = [jnp.float32(rng.normal(size=shape)) for shape in 2 * [(9, 11), (13, 9)]]
    operators = [JacobianOperator(wide, *values[:2]), JacobianOperator(wide, *values[2:])]
    v, u = jnp.ones(99), jnp.ones(143)
    first = operators[0] @ v, operators[0].T @ u
    with twins.compilations() as names:
        second = operators[1] @ v, operators[1].T @ u
    assert names == []
    assert all(jnp.abs(a - b).max() > 1e-3 for a, b in zip(first, second, strict=True))


def with_hidden(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


@pytest.mark.parametrize("transposed", [False, True])
def test_memory_does_not_grow_with_the_inputs(transposed):
    def temporary(num, **options):
        params = jnp.ones((9, 200)), jnp.ones((200, 2))
        operator = JacobianOperator(with_hidden, params, jnp.ones((num, 9)), **options)
        operator = operator.T if transposed else operator
        compiled = jax.jit(apply).lower(operator, jnp.ones(operator.shape[1])).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, in_and_out = temporary(30, batch_size=10), 3000 * (9 + 2) * 4
    assert temporary(3000, batch_size=10) <= 1.1 * few + in_and_out
    assert temporary(3000, memory_limit=2**18) <= 2**18 + few + in_and_out
    assert temporary(3000) > 10 * (few + in_and_out)


# --- messages -------------------------------------------------------------------------------------


def test_wrong_vectors_are_named():
    operator = of_problem(twins.problem("mlp"))
    with pytest.raises(ValueError, match=r"Found as vector .*expected a flat array of shape \(31,"):
        operator.mv(np.ones(30))
    with pytest.raises(ValueError, match=r"shape \(20,\), expected \(21,\) or \(7, 3\)"):
        operator.T.mv(np.ones(20))
    with pytest.raises(ValueError, match=r"shape \(21,\), expected \(21, 21\) or"):
        operator.T.matmat(np.ones(21))


def test_inputs_and_outputs_that_cannot_be_right_are_refused():
    problem = twins.problem("mlp")
    loader = twins.Loader(problem.x, problem.y, 3)
    with pytest.raises(TypeError, match="Found Loader as inputs, expected arrays in memory"):
        JacobianOperator(problem.model_fn, problem.params, loader)
    assert JacobianOperator(problem.model_fn, problem.params, problem.x.tolist()).shape == (21, 31)
    with pytest.raises(ValueError, match="batch_size=0"):
        of_problem(problem, batch_size=0)
    with pytest.raises(ValueError, match=r"lk\.model\.batched"):
        JacobianOperator(
            lambda params, x: params @ x.sum(axis=0), jnp.ones((3, 2)), jnp.ones((5, 2))
        )
