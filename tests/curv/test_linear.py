"""What follows from products alone: `@` from both sides, trace; sums, multiples and damping."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from scipy.sparse.linalg import eigsh

from laplace_kit import curv
from laplace_kit.curv.linear import DampedOperator, ScaledOperator, SumOperator


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


# --- sums, multiples, damping ---------------------------------------------------------------------


def pair(problem: twins.Problem, data=None):
    """Return the GGN and the Hessian of a problem."""
    model_fn, params, in_memory, likelihood = problem.args
    return tuple(
        kind(model_fn, params, in_memory if data is None else data, likelihood)
        for kind in (curv.GGNOperator, curv.HessianOperator)
    )


def dense_pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    return twins.dense(twins.ggn, name), twins.dense(twins.hessian, name)


def compound(ggn, hessian, damping):
    """Every operation at once."""
    return -(2.0 * ggn - hessian / 4 - damping) * 3 + (damping + ggn)


def dense_compound(ggn, hessian, damping):
    """Return the same of matrices; `damping` is a vector here."""
    return -3 * (2 * ggn - hessian / 4 - np.diag(damping)) + np.diag(damping) + ggn


# --- the matrix -----------------------------------------------------------------------------------


@pytest.mark.accelerator
@pytest.mark.parametrize(("name", "dtype"), [("mlp", "float64"), ("bare", "float32")])
def test_operations_are_those_of_the_matrices(name, dtype):
    with twins.precision(dtype):
        operators = pair(twins.problem(name, dtype))
        damping = np.linspace(0.1, 2.0, operators[0].shape[0])
        expected = dense_compound(*dense_pair(name), damping)
        found = compound(*operators, damping)
        twins.assert_is(found, expected, dtype)


def test_vectors_may_be_pytrees_with_frozen_leaves(x64):
    problem = twins.problem("with_integers", "float64")
    ggn, hessian = pair(problem)
    vs = problem.vectors(3)
    trees = [{**problem.params, "kernel": v[:6].reshape(2, 3), "power": v[6]} for v in vs]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    one, several = jax.jit(lambda op, v, vs: (op.mv(v), op.matmat(vs)))(
        0.3 - 2.0 * (ggn + hessian), trees[0], stacked
    )
    expected = 0.3 * vs - 2 * vs @ sum(dense_pair("with_integers"))
    for found, rows in ((one, expected[0]), (several, expected)):
        kernel = found["kernel"].reshape(*rows.shape[:-1], 6)
        twins.assert_close(jnp.concatenate([kernel, found["power"][..., None]], -1), rows)
        for name in ("columns", "step"):
            assert found[name].dtype == problem.params[name].dtype
            np.testing.assert_array_equal(found[name], 0)


def test_damping_has_the_forms_of_a_prior_precision(x64):
    problem = twins.problem("with_integers", "float64")
    operator = pair(problem)[0]
    matrix = twins.dense(twins.ggn, "with_integers")
    per_leaf = {"columns": 0, "kernel": 0.5, "power": 2.0, "step": 0}
    entries = np.linspace(1.0, 2.0, 6)
    like_params = {**per_leaf, "kernel": entries.reshape(2, 3)}
    forms = [
        (0.7, np.full(7, 0.7)),
        (1, np.ones(7)),
        (per_leaf, np.r_[np.full(6, 0.5), 2.0]),
        (like_params, np.r_[entries, 2.0]),
        (np.arange(7.0), np.arange(7.0)),
    ]
    products = operator.matmat(np.eye(7))
    twins.assert_close(products, matrix)
    for damping, values in forms:
        for damped in (operator + damping, DampedOperator(operator, damping)):
            twins.assert_close(damped.matmat(np.eye(7)), matrix + np.diag(values))
            twins.assert_close(damped.damping_vector(), values)
        twins.assert_close((operator - damping) @ np.ones(7), matrix.sum(1) - values)
    twins.assert_close((0.7 - operator) @ np.ones(7), 0.7 - matrix.sum(1))


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2.0), np.asarray(2.0), jnp.float32(2.0)])
def test_numbers_of_every_kind_from_both_sides(number, x64):
    operator = pair(twins.problem("bare", "float64"))[0]
    matrix, v = twins.dense(twins.ggn, "bare"), np.linspace(-1, 1, 6)
    for scaled in (number * operator, operator * number):
        assert isinstance(scaled, ScaledOperator)
        twins.assert_close(scaled @ v, 2 * matrix @ v)
    for damped in (number + operator, operator + number):
        assert isinstance(damped, DampedOperator)
        twins.assert_close(damped @ v, matrix @ v + 2 * v)
    twins.assert_close((operator / number) @ v, matrix @ v / 2)
    twins.assert_close((scaled + damped).trace(), 3 * np.trace(matrix) + 2 * 6)


def test_terms_of_two_precisions():
    problem = twins.problem("mlp")
    ggn = pair(problem)[0]
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), problem.params)
    data = problem.x.astype(jnp.bfloat16), problem.y
    low = 0.5 * curv.GGNOperator(problem.model_fn, half, data, problem.likelihood) + 1.0
    total = SumOperator((ggn, low, ggn))
    v = problem.vectors(1)[0]
    assert low.dtype == jax.eval_shape(low.mv, v).dtype == jnp.bfloat16
    assert jax.eval_shape(lambda operator: operator.diagonal(), low).dtype == jnp.float32
    assert total.dtype == (total @ v).dtype == jnp.float32
    twins.assert_close(total @ v, 2.5 * twins.dense(twins.ggn, "mlp") @ v + v, rtol=0.05)


def test_operators_over_a_stream(x64):
    problem = twins.problem("mlp", "float64")
    ggn, hessian = pair(problem, twins.batches(problem.x, problem.y, 4, 3))
    found, v = compound(ggn, hessian, 0.3), problem.vectors(1)[0]
    expected = dense_compound(*dense_pair("mlp"), np.full(31, 0.3))
    assert not found.in_memory
    assert compound(*pair(problem), 0.3).in_memory
    assert not (pair(problem)[0] + hessian).in_memory
    twins.assert_close(found @ v, expected @ v)


@pytest.mark.parametrize("damping", [None, 3.0])
def test_scipy_finds_the_eigenvalues_of_a_sum(damping, x64):
    ggn, hessian = pair(twins.problem("mlp", "float64"))
    operator, matrix = ggn - hessian, np.subtract(*dense_pair("mlp"))
    if damping is not None:
        operator, matrix = operator + damping, matrix + damping * np.eye(31)
    scipy_operator = operator.to_scipy()
    found = eigsh(scipy_operator, k=3, which="LA", v0=np.ones(31), return_eigenvectors=False)
    twins.assert_close(np.sort(found), np.linalg.eigvalsh(matrix)[-3:])


# --- transformations ------------------------------------------------------------------------------


def test_coefficients_are_mapped_over_and_differentiated(x64):
    problem = twins.problem("mlp", "float64")
    v = problem.vectors(1)[0]

    def form(coefficients, operators):
        left, right, damping = coefficients
        return v @ ((left * operators[0] + operators[1] / right + damping) @ v)

    left, right, damping = jnp.asarray([[1.0, 2.0], [3.0, 0.5], [-1.0, 4.0]])
    of_both = jax.jit(jax.vmap(jax.value_and_grad(form), in_axes=(0, None)))
    values, slopes = of_both((left, right, damping), pair(problem))
    ggn, hessian = (v @ matrix @ v for matrix in dense_pair("mlp"))
    twins.assert_close(values, left * ggn + hessian / right + damping * (v @ v))
    twins.assert_close(slopes[0], jnp.full(2, ggn))
    twins.assert_close(slopes[1], -hessian / right**2)
    twins.assert_close(slopes[2], jnp.full(2, v @ v))


def test_derivative_in_a_damping_per_leaf(x64):
    problem = twins.problem("with_integers", "float64")
    v = problem.vectors(1)[0]
    damping = {"columns": 0.0, "kernel": 0.5, "power": 2.0, "step": 0.0}
    found = jax.jit(jax.grad(lambda d, operator: v @ ((operator + d) @ v)))(
        damping, pair(problem)[0]
    )
    expected = {"columns": 0.0, "kernel": v[:6] @ v[:6], "power": v[6] ** 2, "step": 0.0}
    assert found.keys() == expected.keys()
    for name in expected:
        twins.assert_close(found[name], expected[name])


def test_derivative_in_the_parameters(x64):
    problem = twins.problem("bare", "float64")
    v = problem.vectors(1)[0]

    @jax.grad
    def slope(params):
        moved = dataclasses.replace(problem, params=params)
        return v @ (compound(*pair(moved), 0.3) @ v)

    @jax.grad
    def dense_slope(params):
        moved = dataclasses.replace(problem, params=params)
        return v @ (-5 * twins.ggn(moved) + 0.75 * twins.hessian(moved)) @ v

    found, expected = jax.jit(lambda params: (slope(params), dense_slope(params)))(problem.params)
    assert jnp.abs(expected).max() > 1e-3
    twins.assert_close(found, expected)


def test_new_values_do_not_recompile_and_are_no_constants():
    first, second = twins.problem("mlp"), twins.problem("mlp")
    second = dataclasses.replace(second, params=jax.tree.map(jnp.sin, second.params))
    v = first.vectors(1)[0]
    product = jax.jit(lambda operator, v: operator @ v)
    one = compound(*pair(first), 0.3)
    before = product(one, v), one @ v
    assert twins.constants(product.lower(one, v).as_text()) == []
    with twins.compilations() as names:
        other = compound(*pair(second), 0.7)
        after = product(other, v), other @ v
    assert names == []
    twins.assert_close(*before, dtype="float32")
    twins.assert_close(*after, dtype="float32")
    assert jnp.abs(before[0] - after[0]).max() > 1e-3


def test_compounds_are_pytrees():
    operator = compound(*pair(twins.problem("with_integers")), 0.3)
    leaves, structure = jax.tree.flatten(operator)
    assert all(isinstance(leaf, jax.Array | float | int) for leaf in leaves)
    again = jax.tree.unflatten(structure, leaves)
    assert again.shape == operator.shape
    assert again.dtype == operator.dtype
    assert again.params.keys() == {"columns", "kernel", "power", "step"}


# --- what is known, what is refused ---------------------------------------------------------------


def test_positive_semidefinite_where_every_term_is():
    ggn, hessian = pair(twins.problem("mlp"))
    known = [ggn, 0.5 * ggn, ggn + 1.0, ggn + jnp.arange(31.0), 2.0 * ggn + ggn, 0 * ggn]
    unknown = [-ggn, ggn - 1.0, ggn - ggn, ggn + hessian, hessian + 1.0, 2.0 * hessian]
    assert all(operator.is_positive_semidefinite for operator in known)
    assert not any(operator.is_positive_semidefinite for operator in unknown)

    @jax.jit
    def inside(factor):
        assert not (factor * ggn).is_positive_semidefinite  # nothing is known of a tracer's value
        return factor

    inside(2.0)


def test_terms_over_other_parameters_are_named():
    first, other = pair(twins.problem("mlp"))[0], pair(twins.problem("bare"))[0]
    message = r"operators over different parameters.*\(3, 2\).*expected the same structure"
    with pytest.raises(ValueError, match=message):
        first + other
    with pytest.raises(ValueError, match="no terms, expected one operator or more"):
        SumOperator(())


@pytest.mark.parametrize("factor", [np.ones(31), np.ones((1,)), 1j, "2"])
def test_factors_are_real_scalars(factor):
    operator = pair(twins.problem("mlp"))[0]
    with pytest.raises(ValueError, match=r"as factor .* expected a real scalar; .*op @ v"):
        operator * factor


def test_a_product_of_operators_is_no_operator():
    operator = pair(twins.problem("mlp"))[0]
    with pytest.raises(ValueError, match=r"GGNOperator .* \(31, 31\), expected a real"):
        operator * operator


@pytest.mark.parametrize("damping", [np.ones(5), np.ones((31, 31)), {"hidden": 1.0}])
def test_damping_of_another_form_is_named(damping):
    operator = pair(twins.problem("mlp"))[0]
    with pytest.raises(ValueError, match=r"Found `damping` .*expected a scalar, a pytree prefix"):
        operator + damping
