"""Linearised operators: the same matrices, of which nothing is computed twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit import curv, memory
from laplace_kit.chunks import chunk_of_sum
from laplace_kit.curv.linearization import LinearizedOperator, linearized
from laplace_kit.curv.operator import _chunk_mv
from laplace_kit.curv.partition import block_diagonal
from laplace_kit.memory import Limits
from laplace_kit.tree import replace

KINDS = {
    curv.GGNOperator: twins.ggn,
    curv.HessianOperator: twins.hessian,
    curv.EmpiricalFisherOperator: twins.empirical_fisher,
}


def operator_of(kind, problem, **options):
    if kind is curv.MonteCarloFisherOperator:
        options["key"] = jax.random.key(0)
    return kind(*problem.args, **options)


def num_bytes(linear):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(linear.product))


@jax.jit
def multiply(operator, v):
    return operator.mv(v)


@pytest.mark.accelerator
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float64") for name in (*twins.MAIN, "with_integers")), ("mlp", "float32")],
)
def test_products_equal_the_dense_definition(name, dtype):
    """With all examples in one chunk, and in chunks of which the last may not be full."""
    with twins.precision(dtype):
        problem = twins.problem(name, dtype)
        vs = problem.vectors(3)
        operators = twins.operators(problem)
        for kind in ("ggn", "hessian"):
            operators[kind] = replace(operators[kind], limits=Limits(2))

        @jax.jit
        def products(operators, vs):
            linear = {kind: linearized(operator) for kind, operator in operators.items()}
            assert all(isinstance(operator, LinearizedOperator) for operator in linear.values())
            return {kind: jax.vmap(operator.mv)(vs) for kind, operator in linear.items()}

        found, matrices = products(operators, vs), twins.matrices(operators, name)
    for kind, several in found.items():
        assert several.dtype == dtype
        twins.assert_close(several, np.asarray(vs) @ matrices[kind], dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_one_product_at_a_time(kind, x64):
    problem = twins.problem("mlp", "float64")
    v = problem.vectors(1)[0]
    linear = linearized(operator_of(kind, problem))
    twins.assert_close(linear.mv(v), twins.dense(KINDS[kind], "mlp") @ v)


def test_drawn_labels_are_kept(x64):
    problem = twins.problem("mlp", "float64")
    v = problem.vectors(1)[0]
    for size in (None, 2):
        operator = operator_of(curv.MonteCarloFisherOperator, problem, batch_size=size)
        linear = linearized(operator)
        twins.assert_close(multiply(linear, v), operator.mv(v))
        assert "threefry" not in str(jax.make_jaxpr(multiply)(linear, v))


@pytest.mark.parametrize("name", ["mlp", "with_integers"])
def test_vectors_like_the_parameters(name, x64):
    """Leaves that are not floating point take part in vectors and stay zero."""
    problem = twins.problem(name, "float64")
    operator = operator_of(curv.GGNOperator, problem)
    linear = linearized(operator)
    v = jax.tree.map(jnp.ones_like, problem.params)
    vs = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), v)
    for found, expected in ((linear.mv(v), operator.mv(v)), (linear @ v, operator @ v)):
        jax.tree.map(twins.assert_close, found, expected)
    jax.tree.map(twins.assert_close, linear.matmat(vs), operator.matmat(vs))
    with pytest.raises(ValueError, match=r"Found as vector .* several go to op\.matmat"):
        linear.mv(vs)
    with pytest.raises(ValueError, match="Found as vector"):
        linear.matmat(v)


def test_what_does_not_depend_on_the_vector_is_computed_once():
    """A product evaluates no activation function, and its residuals are arguments."""
    problem = twins.problem("mlp")
    v = problem.vectors(1)[0]
    for kind in KINDS:
        operator = operator_of(kind, problem)
        program = multiply.lower(operator, v).as_text()
        assert "tanh" in program
        program = multiply.lower(linearized(operator), v).as_text()
        assert "tanh" not in program
        assert "exponential" not in program
        assert not twins.constants(program)


def test_new_values_compile_nothing():
    problem = twins.problem("mlp")
    v = problem.vectors(1)[0]

    def run(factor):
        moved = replace(problem, params=jax.tree.map(lambda leaf: factor * leaf, problem.params))
        for size in (None, 2):
            linear = linearized(operator_of(curv.HessianOperator, moved, batch_size=size))
            multiply(linear, v).block_until_ready()

    run(1.0)
    with twins.compilations() as names:
        run(2.0)
    assert not names


def test_parameters_and_inputs_are_not_copied():
    problem = twins.problem("mlp")
    operator = operator_of(curv.HessianOperator, problem)
    linear = linearized(operator)
    assert linear.operator is operator
    own = {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(operator)}
    kept = jax.tree.leaves(linear.product)
    assert not own & {np.asarray(leaf).tobytes() for leaf in kept if leaf.ndim > 1}
    # Chunks share what they have in common: kernels and vectors of the parameters' sizes.
    chunked = linearized(operator_of(curv.HessianOperator, problem, batch_size=2))
    assert all(
        leaf.shape[:2] == (4, 2) for leaf in jax.tree.leaves(chunked.product) if leaf.ndim > 2
    )


def test_residuals_make_one_chunk_where_products_take_several(monkeypatch):
    problem = twins.problem("mlp")
    chunked = operator_of(curv.GGNOperator, problem, memory_limit=2**20)
    monkeypatch.setattr(memory, "_RECYCLED", 1)
    monkeypatch.setattr(memory, "_EXAMPLES_WORTH_A_CHUNK", 1)
    monkeypatch.setattr(memory, "_CHUNK_TO_SUM", 0)
    product = replace(chunked, data=None), problem.params
    of_product = chunk_of_sum(_chunk_mv, product, chunked.data, chunked.limits)
    assert of_product < problem.num_examples == chunked.largest_chunk_size()
    linear = linearized(chunked)
    assert all(
        leaf.shape[0] == problem.num_examples
        for leaf in jax.tree.leaves(linear.product)
        if leaf.ndim > 1
    )
    v = problem.vectors(1)[0]
    np.testing.assert_allclose(linear.mv(v), chunked.mv(v), rtol=1e-5, atol=1e-6)


def test_what_exceeds_the_memory_limit_is_not_kept():
    problem = twins.problem("mlp")
    held = num_bytes(linearized(operator_of(curv.GGNOperator, problem)))
    size = problem.num_examples
    for limit, is_kept in ((held, True), (held - 1, False)):
        operator = operator_of(curv.GGNOperator, problem, memory_limit=limit, batch_size=size)
        assert isinstance(linearized(operator), LinearizedOperator) == is_kept
        assert is_kept or linearized(operator) is operator


def test_no_vectors_have_no_products():
    linear = linearized(operator_of(curv.GGNOperator, twins.problem("mlp")))
    for operator in (linear, block_diagonal(linear, "layer") + 0.5):
        assert operator.matmat(np.ones((0, 31))).shape == (0, 31)


def test_streams_are_left_as_they_are():
    problem = twins.problem("mlp")
    batches = twins.batches(problem.x, problem.y, 4, 3)
    operator = curv.GGNOperator(problem.model_fn, problem.params, batches, problem.likelihood)
    assert linearized(operator) is operator


def test_linearised_inside_a_transformation(x64):
    """The residuals are differentiable in what they are made of."""
    problem = twins.problem("mlp", "float64")
    operator = operator_of(curv.GGNOperator, problem)
    v = problem.vectors(1)[0]

    def energy(params, kept):
        moved = replace(operator, params=params)
        return jnp.vdot(v, (linearized(moved) if kept else moved).mv(v))

    found, expected = (jax.jit(jax.grad(energy), static_argnums=1) for _ in range(2))
    jax.tree.map(twins.assert_close, found(problem.params, True), expected(problem.params, False))


def test_sums_linearise_their_terms(x64):
    problem = twins.problem("mlp", "float64")
    terms = [operator_of(kind, problem) for kind in (curv.GGNOperator, curv.HessianOperator)]
    total = linearized(terms[0] + 2.0 * terms[1] + 0.5)
    operators = jax.tree.leaves(total, is_leaf=lambda leaf: isinstance(leaf, LinearizedOperator))
    assert sum(isinstance(leaf, LinearizedOperator) for leaf in operators) == 2
    v = problem.vectors(1)[0]
    matrix = twins.dense(twins.ggn, "mlp") + 2 * twins.dense(twins.hessian, "mlp")
    twins.assert_close(multiply(total, v), matrix @ v + 0.5 * v)
    blocks = block_diagonal(terms[0])
    assert linearized(blocks) is blocks


def test_everything_else_is_the_operators():
    problem = twins.problem("mlp")
    operator = operator_of(curv.GGNOperator, problem)
    linear = linearized(operator)
    assert linear.shape == operator.shape
    assert linear.dtype == operator.dtype
    assert linear.params is operator.params
    assert linear.in_memory
    assert linear.is_positive_semidefinite == operator.is_positive_semidefinite
    np.testing.assert_array_equal(linear.diagonal(), operator.diagonal())
    np.testing.assert_array_equal(linear.to_dense(), operator.to_dense())
    twins.assert_close(linear.trace(), operator.trace(), dtype="float32")
    twins.assert_close(linear.to_scipy() @ np.ones(31), operator.mv(np.ones(31)), dtype="float32")
