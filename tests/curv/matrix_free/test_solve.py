"""Solutions against dense ones: operators, forms, preconditioners, streams, warnings."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins

from laplace_kit import curv
from laplace_kit.curv.matrix_free.krylov import Status
from laplace_kit.curv.matrix_free.precondition import (
    diagonal_preconditioner,
    kronecker_preconditioner,
)
from laplace_kit.curv.matrix_free.solve import InverseOperator, NotConvergedWarning, solve
from laplace_kit.likelihood import Gaussian

KINDS = {
    "hessian": (curv.HessianOperator, twins.hessian, 30.0),  # damped until it is positive definite
    "ggn": (curv.GGNOperator, twins.ggn, 0.2),
    "empirical": (curv.EmpiricalFisherOperator, twins.empirical_fisher, 0.2),
}
HIDDEN = np.arange(31) < 16  # the first layer's parameters in `twins.mlp`


def small(kind: str = "ggn", dtype: str = "float64", sizes: tuple[int, ...] = ()):
    """Return an operator of `twins.problem("mlp")`, over a stream where batch sizes are given."""
    problem = twins.problem("mlp", dtype)
    data = twins.batches(problem.x, problem.y, *sizes) if sizes else (problem.x, problem.y)
    return KINDS[kind][0](problem.model_fn, problem.params, data, problem.likelihood)


def dense_solution(kind: str, damping, v) -> np.ndarray:
    matrix = twins.dense(KINDS[kind][1], "mlp") + np.diag(np.broadcast_to(damping, 31))
    return np.linalg.solve(matrix, np.asarray(v, np.float64).T).T


# --- dense twins ----------------------------------------------------------------------------------


@pytest.mark.accelerator
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_dense_solution(kind, x64):
    damping = KINDS[kind][2]
    vs = twins.problem("mlp", "float64").vectors(3)
    inverse = InverseOperator(small(kind), damping=damping, tolerance=1e-12)
    solutions = inverse.solve_many(vs)
    expected = dense_solution(kind, damping, vs)
    twins.assert_close(solutions.x, expected, rtol=1e-8)
    assert solutions.converged.all()
    assert solutions.residual.shape == solutions.iterations.shape == (3,)
    if kind == "ggn":
        solution = solve(small(), vs[1], damping=damping, tolerance=1e-12)
        twins.assert_close(solution.x, expected[1], rtol=1e-8)
        assert solution.residual.shape == solution.iterations.shape == solution.status.shape == ()


def test_a_neumann_series_finds_the_same(x64):
    v = twins.problem("mlp", "float64").vectors(1)[0]
    options = {"damping": 0.5, "method": "neumann", "tolerance": 1e-10, "max_iterations": 5000}
    solution = solve(small(), v, **options)
    twins.assert_close(solution.x, dense_solution("ggn", 0.5, v), rtol=1e-8)


def test_lsmr_solves_indefinite_systems(x64):
    v = twins.problem("mlp", "float64").vectors(1)[0]
    assert np.linalg.eigvalsh(twins.dense(twins.hessian, "mlp")).min() < -0.1
    solution = solve(small("hessian"), v, damping=0.1, method="lsmr", tolerance=1e-11)
    twins.assert_close(solution.x, dense_solution("hessian", 0.1, v), rtol=1e-8)


def test_every_form_of_damping(x64):
    v = twins.problem("mlp", "float64").vectors(1)[0]
    per_parameter = np.linspace(0.2, 3, 31)
    cases = [
        ({"hidden": 0.3, "out": 2.0}, np.where(HIDDEN, 0.3, 2.0)),
        (per_parameter, per_parameter),
    ]
    for damping, expected in cases:
        solution = solve(small(), v, damping=damping, tolerance=1e-12)
        twins.assert_close(solution.x, dense_solution("ggn", expected, v), rtol=1e-8)


def test_answers_come_in_the_form_of_the_question(x64):
    problem = twins.problem("with_integers", "float64")
    inverse = InverseOperator(curv.GGNOperator(*problem.args), damping=1.0, tolerance=1e-12)
    vs = problem.vectors(3)
    stacked = {
        "columns": jnp.zeros((3, 2), int),
        "kernel": vs[:, :6].reshape(3, 2, 3),
        "power": vs[:, 6],
        "step": jnp.zeros(3, int),
    }
    expected = np.linalg.solve(twins.dense(twins.ggn, "with_integers") + np.eye(7), vs.T).T
    several = inverse.solve_many(stacked, x0=stacked).x
    twins.assert_close(several["kernel"].reshape(3, 6), expected[:, :6], rtol=1e-8)
    np.testing.assert_array_equal(several["step"], np.zeros(3))
    one = inverse.solve(jax.tree.map(lambda leaf: leaf[1], stacked)).x
    twins.assert_close(one["power"], expected[1, 6], rtol=1e-8)


def test_single_precision():
    v = twins.problem("mlp").vectors(1)[0]
    solution = solve(small(dtype="float32"), v, damping=2.0, tolerance=2e-6)
    assert solution.x.dtype == solution.residual.dtype == np.float32
    twins.assert_close(solution.x, dense_solution("ggn", 2.0, v), dtype="float32")


@pytest.mark.parametrize("method", ["cg", "lsmr"])
def test_right_hand_sides_of_every_size_in_single_precision(method):
    """The squares of their entries underflow or overflow."""
    vs = np.asarray(twins.problem("mlp").vectors(2)) * np.array([[1e-25], [1e25]], "float32")
    inverse = InverseOperator(small(dtype="float32"), damping=5.0, method=method, tolerance=1e-5)
    solutions = inverse.solve_many(vs)
    assert solutions.converged.all()
    for x, v in zip(solutions.x, vs, strict=True):
        twins.assert_close(x, dense_solution("ggn", 5.0, v), dtype="float32")


def test_the_tolerance_follows_the_dtype(x64):
    inverse = InverseOperator(small())
    for dtype, expected in (("float32", 2**-11.5), ("float64", 2**-26)):
        found = inverse.tolerance_for(jnp.dtype(dtype))
        assert found.dtype == dtype
        twins.assert_close(found, expected, dtype="float32")


def test_half_precision_parameters_have_a_recurrence_in_single():
    problem = twins.problem("mlp")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), problem.params)
    operator = curv.GGNOperator(problem.model_fn, half, (problem.x, problem.y), problem.likelihood)
    v = problem.vectors(1)[0]
    solution = solve(operator, v, damping=5.0, tolerance=0.05)
    assert (solution.x.dtype, solution.residual.dtype) == (jnp.bfloat16, np.float32)
    twins.assert_close(solution.x, dense_solution("ggn", 5.0, v), rtol=0.1)


# --- preconditioners ------------------------------------------------------------------------------


@functools.cache
def trained():
    """Return the GGN of a regression network, trained until it fits."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 6))
    y = np.tanh(x @ rng.normal(size=(6, 2)))
    hidden = {"kernel": rng.normal(size=(6, 8)) / 2, "bias": np.zeros(8)}
    out = {"kernel": rng.normal(size=(8, 2)) * 0.4, "bias": np.zeros(2)}
    params, x, y = jax.tree.map(jnp.asarray, ({"hidden": [hidden], "out": out}, x, y))
    optimiser = optax.adam(1e-2)

    @jax.jit
    def train(params, x, y):
        def loss(params):
            return jnp.mean((twins.mlp(params, x) - y) ** 2)

        def step(_, state):
            params, moments = state
            updates, moments = optimiser.update(jax.grad(loss)(params), moments)
            return optax.apply_updates(params, updates), moments

        return jax.lax.fori_loop(0, 300, step, (params, optimiser.init(params)))[0]

    return curv.GGNOperator(twins.mlp, train(params, x, y), (x, y), Gaussian(noise_std=0.1))


@pytest.mark.slow
def test_preconditioners_save_iterations_on_a_trained_network(x64):
    operator = trained()
    v = jnp.asarray(np.random.default_rng(1).normal(size=operator.shape[0]))

    def solutions(damping, makers):
        made = [make(operator, damping=damping) if make else None for make in makers]
        options = {"damping": damping, "tolerance": 1e-10}
        return [solve(operator, v, preconditioner=one, **options) for one in made]

    makers = None, diagonal_preconditioner, kronecker_preconditioner
    plain, diagonal, kronecker = solutions(0.1, makers)  # a condition number of 3e5
    assert diagonal.iterations < 0.75 * plain.iterations
    assert kronecker.iterations < 0.45 * plain.iterations
    twins.assert_close(diagonal.x, plain.x, rtol=1e-6)
    twins.assert_close(kronecker.x, plain.x, rtol=1e-6)
    plain, kronecker = solutions({"hidden": 1e4, "out": 0.1}, makers[::2])
    assert kronecker.iterations < 0.45 * plain.iterations


def elementwise(params, x):
    return params["gain"] * x


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


def test_an_exact_preconditioner_converges_in_one_iteration(x64):
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(9, 4))), jnp.asarray(rng.normal(size=(9, 4)))
    diagonal = curv.GGNOperator(elementwise, {"gain": jnp.ones(4)}, (x, y), "gaussian")
    params = {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)}
    kronecker = curv.GGNOperator(linear, params, (x, y), "gaussian")
    for operator, make in (
        (diagonal, diagonal_preconditioner),
        (kronecker, kronecker_preconditioner),
    ):
        v = jnp.asarray(rng.normal(size=operator.shape[0]))
        exact = make(operator, damping=0.3)
        solution = solve(operator, v, damping=0.3, preconditioner=exact, tolerance=1e-12)
        assert solution.iterations == 1
        twins.assert_close(operator @ solution.x + 0.3 * solution.x, v)


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cg", pytest.param("lsmr", marks=pytest.mark.slow)])
def test_a_stream_gives_what_memory_gives(method, x64):
    over_stream, in_memory = small(sizes=(3, 3, 1)), small()
    vs = twins.problem("mlp", "float64").vectors(2)
    preconditioner = kronecker_preconditioner(over_stream, damping=50.0)
    found, expected = (
        InverseOperator(
            operator, damping=50.0, method=method, preconditioner=preconditioner, tolerance=1e-4
        ).solve_many(vs)
        for operator in (over_stream, in_memory)
    )
    assert found.converged.all()
    twins.assert_close(found.x, expected.x)
    np.testing.assert_array_equal(found.iterations, expected.iterations)


def test_a_stream_inside_jit_is_refused():
    v = twins.problem("mlp").vectors(1)[0]
    operator = small(dtype="float32", sizes=(3, 4))
    with pytest.raises(TypeError, match="stream of batches inside a JAX transformation"):
        jax.jit(lambda v: solve(operator, v, damping=1.0).x)(v)


# --- transformations ------------------------------------------------------------------------------


def test_derivatives_are_those_of_the_dense_solution(x64):
    problem = twins.problem("mlp", "float64")
    v = problem.vectors(1)[0]

    def found(damping, v, gain):
        params = jax.tree.map(lambda leaf: gain * leaf, problem.params)
        operator = curv.GGNOperator(
            problem.model_fn, params, (problem.x, problem.y), problem.likelihood
        )
        return jnp.sin(solve(operator, v, damping=damping, tolerance=1e-13).x).sum()

    def expected(damping, v, gain):
        theta, outputs = twins.flat(problem)
        jac = jax.jacobian(outputs)(gain * theta)
        probs = jax.nn.softmax(outputs(gain * theta))
        inner = jax.vmap(jnp.diag)(probs) - probs[:, :, None] * probs[:, None, :]
        matrix = jnp.einsum("ncp,ncd,ndq->pq", jac, inner, jac)
        return jnp.sin(jnp.linalg.solve(matrix + damping * jnp.eye(31), v)).sum()

    args = 0.5, v, 1.2
    gradients = (jax.jit(jax.grad(fn, argnums=(0, 1, 2)))(*args) for fn in (found, expected))
    for ours, wanted in zip(*gradients, strict=True):
        twins.assert_close(ours, wanted, rtol=1e-8)


def test_vmap_over_vectors_and_dampings(x64):
    operator, vs = small(), twins.problem("mlp", "float64").vectors(3)
    dampings = jnp.asarray([0.3, 1.0, 9.0])

    def one(damping, v):
        return solve(operator, v, damping=damping, tolerance=1e-11)

    solutions = jax.jit(jax.vmap(one))(dampings, vs)
    assert solutions.converged.all()
    for x, damping, v in zip(solutions.x, dampings, vs, strict=True):
        twins.assert_close(x, dense_solution("ggn", damping, v), rtol=1e-8)


def test_new_values_do_not_recompile():
    problem = twins.problem("mlp")
    shifted = jax.tree.map(lambda leaf: leaf + 0.1, problem.params)
    operators = small(dtype="float32"), curv.GGNOperator(twins.mlp, shifted, *problem.args[2:])
    vs = problem.vectors(2)
    first, second = (diagonal_preconditioner(op, damping=1.0) for op in operators)
    options = {"tolerance": 1e-3, "max_iterations": 50}
    solve(operators[0], vs[0], damping=1.0, preconditioner=first, **options)
    options = {"tolerance": 1e-2, "max_iterations": 60}
    with twins.compilations() as names:
        solution = solve(operators[1], vs[1], damping=2.0, preconditioner=second, **options)
    assert names == []
    assert solution.converged


def test_no_array_is_a_constant():
    operator, v = small(dtype="float32"), twins.problem("mlp").vectors(1)[0]
    for method in ("cg", "neumann"):
        lowered = jax.jit(lambda op, v: solve(op, v, method=method)).lower(operator, v)  # noqa: B023
        assert twins.constants(lowered.as_text()) == []


# --- what does not converge -----------------------------------------------------------------------


def test_a_solution_out_of_tolerance_warns(x64):
    v = twins.problem("mlp", "float64").vectors(1)[0]
    expected = (
        r"residual of \S+ after 2 iterations of method='cg', .* tolerance=1\.5e-08; all .*raise"
    )
    with pytest.warns(NotConvergedWarning, match=expected) as caught:
        solution = solve(small(), v, damping=0.1, max_iterations=2)
    assert len(caught) == 1
    assert not solution.converged
    assert solution.status == Status.MAX_ITERATIONS
    matrix = twins.dense(twins.ggn, "mlp") + 0.1 * np.eye(31)
    actual = np.linalg.norm(v - matrix @ solution.x) / np.linalg.norm(v)
    twins.assert_close(solution.residual, actual)


def test_negative_curvature_warns(x64):
    vs = twins.problem("mlp", "float64").vectors(3)
    inverse = InverseOperator(small("hessian"))
    with pytest.warns(NotConvergedWarning, match="in 3 of 3 systems.*indefinite or singular.*GGN"):
        solutions = inverse.solve_many(vs)
    assert np.all(solutions.status == Status.INDEFINITE)


def test_a_diverging_series_warns(x64):
    v = twins.problem("mlp", "float64").vectors(1)[0]
    largest = np.linalg.eigvalsh(twins.dense(twins.ggn, "mlp")).max()
    options = {"damping": 1.0, "method": "neumann", "tolerance": 1e-4}
    with pytest.warns(NotConvergedWarning, match="the series diverges: lower `step`"):
        solve(small(), v, step=2.2 / largest, **options)
    assert solve(small(), v, step=1.5 / largest, **options).converged


def test_inside_jit_the_solution_says_so(x64):
    v = twins.problem("mlp", "float64").vectors(1)[0]
    find = jax.jit(lambda op, v, limit: solve(op, v, damping=0.1, max_iterations=limit))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [find(small(), v, limit).converged for limit in (2, 200)]
    assert found == [False, True]


@pytest.mark.parametrize("status", Status)
def test_every_reason_has_a_remedy(status):
    from laplace_kit.curv.matrix_free.solve import _ADVICE

    assert (status in _ADVICE) != (status == Status.CONVERGED)


# --- the inverse as an operator -------------------------------------------------------------------


def test_the_inverse_is_an_operator(x64):
    inverse = InverseOperator(small(), damping=0.2, tolerance=1e-12)
    matrix = np.linalg.inv(twins.dense(twins.ggn, "mlp") + 0.2 * np.eye(31))
    assert (inverse.shape, inverse.dtype) == ((31, 31), np.float64)
    twins.assert_close(inverse.to_dense(), matrix, rtol=1e-9)
    twins.assert_close((inverse + 3.0).diagonal(), np.diag(matrix) + 3, rtol=1e-9)
    vs = twins.problem("mlp", "float64").vectors(3)
    twins.assert_close(inverse @ vs[0], matrix @ vs[0], rtol=1e-9)
    twins.assert_close(inverse.matmat(vs), vs @ matrix, rtol=1e-9)
    twins.assert_close(inverse.to_scipy().matvec(np.ones(31)), matrix.sum(axis=0), rtol=1e-9)
    assert inverse.is_positive_semidefinite
    assert not InverseOperator(small("hessian")).is_positive_semidefinite


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lsqr"}, r"method='lsqr', expected one of .*Did you mean 'lsmr'"),
        ({"step": 0.1}, r"step=0.1 for method='cg', expected it only for the Neumann series"),
        ({"tolerance": 0.0}, r"tolerance=0.0, expected a positive number"),
        ({"max_iterations": 0}, r"max_iterations=0, expected a positive number"),
        ({"damping": np.ones(3)}, r"`damping` of shape \(3,\)"),
        ({"x0": np.ones(3)}, r"Found as vector an array of shape \(3,\)"),
    ],
)
def test_wrong_options_are_named(options, message):
    from exact import as_users_call

    with as_users_call(), pytest.raises(ValueError, match=message):
        solve(small(dtype="float32"), np.ones(31, np.float32), **options)


def test_what_cannot_precondition_is_named():
    from exact import as_users_call

    for found in (np.ones(31), lambda v: v):
        with as_users_call(), pytest.raises(TypeError, match=r"expected a pytree whose `mv`"):
            solve(small(dtype="float32"), np.ones(31), preconditioner=found)


@pytest.mark.parametrize("v", [np.ones(5), {}, 1.0])
def test_wrong_vectors_are_named(v):
    with pytest.raises(ValueError, match=r"Found as vector .* expected a flat array of shape"):
        solve(small(dtype="float32"), v)
    with pytest.raises(ValueError, match=r"Found as vector .* expected a flat array of shape"):
        InverseOperator(small(dtype="float32")).solve_many(v)
