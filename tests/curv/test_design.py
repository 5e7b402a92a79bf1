"""The design matrix in factors: every product is that of the dense one, in chunks or at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from architectures import ZOO

from laplace_kit import curv
from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.curv.design import design_matrix, num_entries
from laplace_kit.curv.objective import restrict
from laplace_kit.likelihood import Gaussian
from laplace_kit.tree import replace

TINY = 2000  # bytes: a pair or two of examples at a time


def operator_of(name, **options):
    model = ZOO[name]()
    outputs = jax.eval_shape(model.model_fn, model.params, model.x)
    data = (model.x, jnp.zeros(outputs.shape))
    return curv.GGNOperator(model.model_fn, model.params, data, Gaussian(0.5), **options)


@jax.jit
def found_in_factors(design, scale, shared, vectors, weights):
    coefficients = design.project(vectors)
    return (
        coefficients,
        design.combine(coefficients),
        design.gram(scale),
        design.gram(shared),
        design.weighted_squares(weights),
        jax.grad(lambda s: jnp.vdot(design.gram(s), weights))(shared),
    )


@pytest.mark.slow
@pytest.mark.parametrize("memory_limit", [None, TINY])
@pytest.mark.parametrize("name", ["mlp", "conv_1d", "nnx_transformer"])
def test_products_are_those_of_the_dense_matrix(name, memory_limit, x64):
    operator = operator_of(name)
    design = replace(design_matrix(operator), memory_limit=memory_limit)
    dense = np.asarray(design.rows.to_dense()).reshape(design.shape)
    twins.assert_close(dense.T @ dense, operator.to_dense())
    rng = np.random.default_rng(0)
    num, size = design.shape
    scale, vectors, weights = rng.uniform(size=size), rng.normal(size=(3, size)), np.eye(num)
    weights = weights + rng.normal(size=(num, num))
    shared = np.full(size, 0.7)
    found = found_in_factors(design, scale, shared, vectors, weights)
    squares = np.einsum("mp,mn,np->p", dense, weights, dense)
    expected = (
        vectors @ dense.T,
        vectors @ dense.T @ dense,
        (dense * scale) @ dense.T,
        0.7 * dense @ dense.T,
        squares,
        squares,
    )
    for product, twin in zip(found, expected, strict=True):
        twins.assert_close(product, twin)


def test_entries_are_counted_without_computing_them(x64):
    operator = operator_of("nnx_transformer")
    rows = design_matrix(operator).rows
    sizes = [leaf.size for leaf in jax.tree.leaves(rows)]
    assert num_entries(operator.objective, 2) * 5 == sum(sizes)


def test_crosses_with_rows_of_other_inputs_and_their_derivatives(x64):
    """In the inputs too: the quick way and the right way to differentiate agree."""
    operator = operator_of("mlp")
    design, objective = design_matrix(operator), restrict(*operator_args(operator))[0]
    dense = np.asarray(design.rows.to_dense()).reshape(design.shape)

    def total(x, scale):
        return jnp.sum(jnp.sin(design.cross(jacobian(objective, x)[1], scale)))

    def twin(x, scale):
        rows = jacobian(objective, x)[1].to_dense()
        return jnp.sum(jnp.sin(jnp.einsum("brp,p,mp->brm", rows, scale, dense)))

    x, scale = 0.1 + operator.data.x[:2], jnp.full(design.shape[1], 0.7)
    found, expected = (jax.jit(jax.grad(f, argnums=(0, 1)))(x, scale) for f in (total, twin))
    for ours, theirs in zip(found, expected, strict=True):
        twins.assert_close(ours, theirs)


def operator_args(operator):
    return operator.model_fn, operator.params, operator.likelihood


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(3, 2, 2), (4, 3)])
def test_a_stream_gives_the_rows_of_memory_without_padding(sizes, x64):
    problem = twins.problem("mlp", "float64")
    batches = twins.batches(problem.x, problem.y, *sizes)
    for kind, options in (
        (curv.GGNOperator, {}),
        (curv.EmpiricalFisherOperator, {}),
        (curv.MonteCarloFisherOperator, {"key": jax.random.key(0), "num_samples": 2}),
    ):
        args = (problem.model_fn, problem.params)
        streamed = design_matrix(kind(*args, batches, problem.likelihood, scale=3.0, **options))
        whole = kind(*args, (problem.x, problem.y), problem.likelihood, scale=3.0, **options)
        design = design_matrix(whole)
        assert streamed.shape == design.shape
        twins.assert_close(streamed.rows.to_dense(), design.rows.to_dense())
        dense = np.asarray(design.rows.to_dense()).reshape(design.shape)
        twins.assert_close(dense.T @ dense, whole.to_dense())


def test_derivatives_do_not_keep_what_is_made_for_each_pair():
    """A gradient of the kernel of 64 examples with layers of 300 by 300 keeps their rows alone."""

    def model_fn(params, x):
        return jnp.tanh(x @ params["w1"]) @ params["w2"]

    params = {"w1": jnp.ones((300, 300)), "w2": jnp.ones((300, 1))}
    data = (jnp.ones((64, 300)), jnp.ones((64, 1)))
    design = design_matrix(curv.GGNOperator(model_fn, params, data, Gaussian(1.0)))
    design = replace(design, memory_limit=2**20)

    def total(design, scale):
        return jnp.sum(jnp.sin(design.gram(scale)))

    program = jax.jit(jax.grad(total, argnums=1)).lower(design, jnp.ones(design.shape[1]))
    used = program.compile().memory_analysis().temp_size_in_bytes
    assert (
        used < 12 * 2**20
    )  # every pair's products of inputs would be 64 * 64 * 300 * 4 bytes each
