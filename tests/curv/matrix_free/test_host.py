"""Products as a primitive: batched, transposed, differentiated, and looped over on the host."""

import jax
import jax.numpy as jnp
import matfree.decomp
import numpy as np
import pytest
import twins
from matrices import Matrix, rotated

from laplace_kit import curv
from laplace_kit.curv.matrix_free.host import on_host, product

SPECTRUM = np.linspace(1, 3, 6)


def forms(operator, v, vs):
    mv = product(operator)
    transposed = jax.linear_transpose(mv, v)
    steps = jax.lax.fori_loop(0, 3, lambda _, u: mv(u), v)
    return mv(v), jax.vmap(mv)(vs), jax.vmap(mv, 1, 1)(vs.T), transposed(v)[0], steps


@pytest.mark.parametrize("in_memory", [True, False])
def test_every_transformation_is_the_matrix(in_memory, x64):
    operator = rotated(SPECTRUM, in_memory=in_memory)
    matrix = np.asarray(operator.dense)
    vs = np.random.default_rng(0).normal(size=(3, 6))
    found = on_host(jax.jit(forms), operator, jnp.asarray(vs[0]), jnp.asarray(vs))
    image, images = matrix @ vs[0], vs @ matrix
    cubed = np.linalg.matrix_power(matrix, 3) @ vs[0]
    for one, expected in zip(found, (image, images, images.T, image, cubed), strict=True):
        twins.assert_close(one, expected)


def test_loops_over_a_stream_equal_one_program(x64):
    """Lanczos by matfree, which traces the product, over batches with a ragged last one."""
    problem = twins.problem("mlp", "float64")
    batches = twins.batches(problem.x, problem.y, 3, 3, 1)
    in_memory = curv.GGNOperator(*problem.args)
    stream = curv.GGNOperator(problem.model_fn, problem.params, batches, problem.likelihood)

    @jax.jit
    def lanczos(operator, v):
        return matfree.decomp.tridiag_sym(4)(product(operator), v).J_small

    v = problem.vectors(1)[0]
    expected = on_host(lanczos, in_memory, v)
    twins.assert_close(on_host(lanczos, stream, v), expected)
    others = [with_params(operator, 1.5) for operator in (stream, in_memory)]
    with twins.compilations() as programs:
        for other in others:
            on_host(lanczos, other, v)
    assert not programs


def with_params(operator, factor):
    """Return the operator at other parameters, of the same shapes."""
    params = jax.tree.map(lambda leaf: factor * leaf, operator.params)
    return type(operator)(operator.model_fn, params, operator.data, operator.likelihood)


def test_one_pass_for_a_batch_of_vectors():
    class Counting(list):
        passes = 0

        def __iter__(self):
            Counting.passes += 1
            return super().__iter__()

    problem = twins.problem("bare")
    batches = Counting(twins.batches(problem.x, problem.y, 4, 2))
    operator = curv.HessianOperator(problem.model_fn, problem.params, batches, problem.likelihood)
    Counting.passes = 0
    on_host(lambda op, vs: jax.vmap(product(op))(vs), operator, problem.vectors(5))
    assert Counting.passes == 1


def test_several_operators_at_once(x64):
    matrices = jnp.stack([rotated(SPECTRUM).dense, 2 * rotated(SPECTRUM).dense])
    found = jax.vmap(lambda m, v: product(Matrix(m))(v), (0, None))(matrices, jnp.ones(6))
    twins.assert_close(found, matrices @ np.ones(6))


def test_derivatives_in_vector_and_operator(x64):
    operator = rotated(SPECTRUM)
    v = jnp.arange(1.0, 7.0)

    def by_product(factor, v):
        return v @ product(Matrix(factor**2 * operator.dense))(v)

    def by_matrix(factor, v):
        return factor**2 * v @ operator.dense @ v

    for argnums in (0, 1):
        found = jax.jit(jax.grad(by_product, argnums))(0.7, v)
        twins.assert_close(found, jax.grad(by_matrix, argnums)(0.7, v))
    twins.assert_close(jax.hessian(by_product, 1)(0.7, v), jax.hessian(by_matrix, 1)(0.7, v))


def test_vectors_keep_their_precision():
    """A recurrence in float32 on bfloat16 parameters: only the product itself is rounded."""
    operator = rotated(SPECTRUM, "bfloat16")
    found = product(operator)(jnp.ones(6, "float32"))
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, np.asarray(operator.dense, "float32").sum(1), rtol=2e-2)
