"""Preconditioners are the inverses that they claim to be, and positive definite where they must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit import curv
from laplace_kit.curv.matrix_free.precondition import (
    DiagonalPreconditioner,
    Preconditioner,
    diagonal_preconditioner,
    kronecker_preconditioner,
)

PREFIX = {"hidden": 0.3, "out": 2.0}  # of `twins.mlp`: one value for each layer


def ggn(name="mlp", dtype="float64"):
    return curv.GGNOperator(*twins.problem(name, dtype).args)


def to_dense(preconditioner, num, dtype="float64") -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(preconditioner.mv))(jnp.eye(num, dtype=dtype)))


def dense_factors(factors, num) -> np.ndarray:
    """Return the K-FAC matrix of all layers in flat order; none between layers."""
    matrix = np.zeros((num, num))
    for factor in factors:
        places = np.asarray(factor.layout.to_matrix(jnp.arange(float(num))), int)
        for group, block in zip(places, factor.to_dense(), strict=True):
            matrix[np.ix_(group.ravel(), group.ravel())] = block
    return matrix


# --- diagonal -------------------------------------------------------------------------------------


def test_diagonal_of_every_form_of_damping(x64):
    operator = ggn()
    diagonal = np.diag(twins.dense(twins.ggn, "mlp"))
    hidden = np.arange(31) < 16
    per_parameter = np.linspace(0.1, 3, 31)
    cases = [(0.7, 0.7), (PREFIX, np.where(hidden, 0.3, 2.0)), (per_parameter, per_parameter)]
    for damping, expected in cases:
        found = diagonal_preconditioner(operator, damping=damping)
        assert isinstance(found, Preconditioner)
        twins.assert_close(found.inverse, 1 / (diagonal + expected))
    v = np.linspace(-1, 1, 31)
    twins.assert_close(found.mv(jnp.asarray(v)), v / (diagonal + per_parameter))


def test_an_estimate_of_the_diagonal_is_taken_as_it_is(x64):
    estimate = jnp.linspace(1, 5, 31)
    found = diagonal_preconditioner(ggn(), damping=0.5, diagonal=estimate)
    twins.assert_close(found.inverse, 1 / (estimate + 0.5))


@pytest.mark.parametrize("shift", [-3.0, 0.0])
def test_a_diagonal_that_is_not_positive_gives_a_positive_one(shift, x64):
    diagonal = jnp.linspace(0, 2, 31)
    found = diagonal_preconditioner(ggn(), damping=shift, diagonal=diagonal)
    assert jnp.all((found.inverse > 0) & jnp.isfinite(found.inverse))
    twins.assert_close(found.inverse[1:], 1 / jnp.abs(diagonal + shift)[1:])


# --- Kronecker ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "convnet", "several_axes"])
def test_inverse_of_the_damped_factors(name, x64):
    operator = ggn(name)
    num = operator.shape[0]
    matrix = dense_factors(curv.kronecker_factors(operator), num)
    expected = np.linalg.inv(matrix + 0.3 * np.eye(num))
    found = kronecker_preconditioner(operator, damping=0.3)
    assert isinstance(found, Preconditioner)
    twins.assert_close(to_dense(found, num), expected)


def test_given_factors_and_a_damping_for_each_layer(x64):
    problem = twins.problem("mlp", "float64")
    factors = curv.kronecker_factors(ggn(), weight_sharing="reduce")
    hessian = curv.HessianOperator(*problem.args)
    found = kronecker_preconditioner(hessian, damping=PREFIX, factors=factors)
    damping = np.diag(np.where(np.arange(31) < 16, 0.3, 2.0))
    expected = np.linalg.inv(dense_factors(factors, 31) + damping)
    twins.assert_close(to_dense(found, 31), expected)


def test_the_mean_stands_for_a_damping_that_differs_within_a_layer(x64):
    operator = ggn()
    damping = np.random.default_rng(0).uniform(0.1, 1, 31)
    hidden = np.arange(31) < 16
    means = np.where(hidden, damping[hidden].mean(), damping[~hidden].mean())
    found = kronecker_preconditioner(operator, damping=damping)
    expected = kronecker_preconditioner(operator, damping=means)
    v = jnp.linspace(-1, 1, 31)
    twins.assert_close(found.mv(v), expected.mv(v))


def test_lookups_keep_the_damping_of_each_entry(x64):
    """A diagonal factor does not mix entries along its axis."""

    def model(params, x):
        return params["table"][x]

    params = {"table": jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))}
    x, y = jnp.asarray([0, 1, 1, 3, 4, 4]), jnp.zeros((6, 2))
    operator = curv.GGNOperator(model, params, (x, y), "gaussian")
    damping = np.repeat(np.arange(1.0, 6.0), 2)
    found = kronecker_preconditioner(operator, damping=damping)
    twins.assert_close(to_dense(found, 10), np.linalg.inv(operator.to_dense() + np.diag(damping)))


@pytest.mark.parametrize("dead", [False, True])
def test_singular_factors_without_damping_stay_finite(dead):
    operator = ggn(dtype="float32")
    factors = curv.kronecker_factors(operator)
    factors = jax.tree.map(jnp.zeros_like, factors) if dead else factors
    matrix = to_dense(kronecker_preconditioner(operator, factors=factors), 31, "float32")
    assert matrix.dtype == np.float32
    assert np.isfinite(matrix).all()
    assert np.linalg.eigvalsh(matrix).min() > -1e-5 * np.abs(matrix).max()


# --- messages -------------------------------------------------------------------------------------


def test_a_hessian_has_no_factors():
    hessian = curv.HessianOperator(*twins.problem("mlp").args)
    with pytest.raises(TypeError, match=r"HessianOperator, expected a GGN or Fisher.*factors="):
        kronecker_preconditioner(hessian, damping=1.0)


def test_wrong_shapes_are_named(x64):
    operator = ggn()
    with pytest.raises(ValueError, match=r"diagonal of shape \(30,\), expected \(31,\)"):
        diagonal_preconditioner(operator, diagonal=jnp.ones(30))
    with pytest.raises(ValueError, match=r"Found `damping` of shape \(30,\)"):
        diagonal_preconditioner(operator, damping=np.ones(30), diagonal=jnp.ones(31))
    of_another_model = kronecker_preconditioner(ggn("convnet"), damping=1.0)
    with pytest.raises(ValueError, match=r"shape \(31,\), expected \(30,\).*same model"):
        of_another_model.mv(jnp.ones(31))


def test_they_are_pytrees():
    for found in (
        DiagonalPreconditioner(jnp.ones(31)),
        kronecker_preconditioner(ggn(dtype="float32"), damping=1.0),
    ):
        leaves, structure = jax.tree.flatten(found)
        again = jax.tree.unflatten(structure, leaves)
        v = jnp.linspace(-1, 1, 31)
        np.testing.assert_array_equal(again.mv(v), found.mv(v))
