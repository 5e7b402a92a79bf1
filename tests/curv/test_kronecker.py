"""K-FAC factors are those of the definition, and exact where the literature says so."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit import curv, tree
from laplace_kit.curv.kronecker import second_moments
from laplace_kit.curv.sides import LARGEST_EXACT_BLOCK, num_entries
from laplace_kit.likelihood import Gaussian

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape))


def to_dense(factors, num) -> np.ndarray:
    """Return the matrix of all layers in flat order; none between layers."""
    matrix = np.zeros((num, num))
    for factor in factors:
        places = np.asarray(factor.layout.to_matrix(jnp.arange(float(num))), int)
        for group, block in zip(places, factor.to_dense(), strict=True):
            matrix[np.ix_(group.ravel(), group.ravel())] = block
    return matrix


# --- the definition -------------------------------------------------------------------------------


def convnet(params, x, probes=None):
    z = jax.lax.conv_general_dilated(
        x, params["conv"], (2, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    z = z + params["bias"] + (0 if probes is None else probes["conv"])
    z = jnp.tanh(z).reshape(len(x), -1) @ params["out"]
    return z + (0 if probes is None else probes["out"])


def convolution_problem():
    params = {"bias": normal(3), "conv": normal(2, 2, 2, 3), "out": normal(18, 2)}
    x, y = normal(5, 4, 4, 2), normal(5, 2)
    return params, x, y


def by_definition(params, x, noise_std, sharing):
    """Return inputs and gradients of both layers from patches cut by hand and `jax.jacobian`."""
    num = len(x)
    starts = list(itertools.product((0, 2), range(3)))
    patches = np.stack(
        [np.asarray(x)[:, i : i + 2, j : j + 2].reshape(num, -1) for i, j in starts], axis=1
    )
    hidden = jnp.tanh(convnet_features(params, x)).reshape(num, 1, -1)
    zeros = {"conv": jnp.zeros((num, 2, 3, 3)), "out": jnp.zeros((num, 2))}
    jac = jax.jacobian(lambda probes: convnet(params, x, probes))(zeros)
    own = np.arange(num)
    gradients = {
        "conv": np.asarray(jac["conv"])[own, :, own].reshape(num, 2, 6, 3) / noise_std,
        "out": np.asarray(jac["out"])[own, :, own].reshape(num, 2, 1, 2) / noise_std,
    }
    inputs = {
        "conv": np.concatenate([patches, np.ones((num, 6, 1))], axis=2),
        "out": np.asarray(hidden),
    }
    factors = {}
    for name, a in inputs.items():
        g = gradients[name]
        if sharing == "reduce":
            a, g = a.mean(axis=1, keepdims=True), g.sum(axis=2, keepdims=True)
        left = np.einsum("nti,ntj->ij", a, a) / (num * a.shape[1])
        factors[name] = left, np.einsum("nrto,nrtp->op", g, g)
    return factors


def convnet_features(params, x):
    z = jax.lax.conv_general_dilated(
        x, params["conv"], (2, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return z + params["bias"]


@pytest.mark.accelerator
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_is_the_definition_on_a_convnet(sharing, x64):
    params, x, y = convolution_problem()
    operator = curv.GGNOperator(convnet, params, (x, y), Gaussian(0.7), batch_size=2)
    conv, out = curv.kronecker_factors(operator, weight_sharing=sharing)
    expected = by_definition(params, x, 0.7, sharing)
    # Patches have the channel outermost here, and innermost above.
    order = np.append(np.arange(8).reshape(4, 2).T.ravel(), 8)
    left, right = expected["conv"]
    twins.assert_close(conv.inputs[0], left[np.ix_(order, order)])
    twins.assert_close(conv.gradients[0], right)
    twins.assert_close(out.inputs[0], expected["out"][0])
    twins.assert_close(out.gradients[0], expected["out"][1])
    dense = to_dense([conv, out], 63)
    kernel = np.asarray(out.layout.to_matrix(jnp.arange(63.0)))
    np.testing.assert_array_equal(kernel.ravel(), np.arange(27, 63))
    twins.assert_close(dense[27:, 27:], np.kron(*expected["out"]))


# --- exact cases ----------------------------------------------------------------------------------


def positions(params, x):
    return x @ params["weight"] + params["bias"]


def pooled(params, x):
    return positions(params, x).mean(axis=1)


def deep_linear(params, x):
    return (x @ params["first"] + params["bias"]) @ params["second"]


def test_expand_is_exact_for_a_linear_layer_of_which_every_position_has_a_loss(x64):
    params = {"bias": normal(2), "weight": normal(3, 2)}
    args = positions, params, (normal(4, 5, 3), normal(4, 5, 2)), Gaussian(0.5)
    operator = curv.GGNOperator(*args)
    found = to_dense(curv.kronecker_factors(operator, weight_sharing="expand"), 8)
    twins.assert_close(found, operator.to_dense())


def test_reduce_is_exact_for_a_linear_layer_whose_outputs_are_averaged(x64):
    params = {"bias": normal(2), "weight": normal(3, 2)}
    args = pooled, params, (normal(4, 5, 3), normal(4, 2)), Gaussian(0.5)
    operator = curv.GGNOperator(*args)
    found = to_dense(curv.kronecker_factors(operator, weight_sharing="reduce"), 8)
    twins.assert_close(found, operator.to_dense())
    expanded = to_dense(curv.kronecker_factors(operator), 8)
    assert np.abs(expanded - found).max() > 1e-2 * np.abs(found).max()


def test_deep_linear_networks_are_exact_block_by_block(x64):
    """Gradients do not depend on the example (Martens and Grosse 2015; Bernacchia et al. 2018)."""
    params = {"bias": normal(3), "first": normal(4, 3), "second": normal(3, 2)}
    operator = curv.GGNOperator(deep_linear, params, (normal(6, 4), normal(6, 2)), Gaussian(0.5))
    ggn = np.asarray(operator.to_dense())
    found = to_dense(curv.kronecker_factors(operator), 21)
    twins.assert_close(found[:15, :15], ggn[:15, :15])
    twins.assert_close(found[15:, 15:], ggn[15:, 15:])
    assert not found[:15, 15:].any()


def scaled(params, x):
    return jnp.tanh(x * params["scale"]).sum(axis=1, keepdims=True) * jnp.ones(2)


def test_a_parameter_in_no_product_has_its_exact_block(x64):
    params = {"scale": normal(5)}
    operator = curv.GGNOperator(scaled, params, (normal(6, 5), normal(6, 2)), Gaussian(0.5))
    twins.assert_close(to_dense(curv.kronecker_factors(operator), 5), operator.to_dense())


def test_a_large_parameter_in_no_product_keeps_its_diagonal():
    num = LARGEST_EXACT_BLOCK + 1
    params = {"scale": jnp.asarray(RNG.normal(size=num), jnp.float32)}
    x, y = (jnp.asarray(RNG.normal(size=(3, n)), jnp.float32) for n in (num, 2))
    operator = curv.GGNOperator(scaled, params, (x, y), Gaussian(0.5))
    (factor,) = curv.kronecker_factors(operator)
    assert factor.gradients.shape == (1, num)
    twins.assert_close(factor.inputs[0, 0] * factor.gradients[0], operator.diagonal(), rtol=1e-5)
    assert num_entries(operator.objective.planned(x).plan.layers) == 1 + num


def embedded(params, tokens):
    return jnp.tanh(params["table"][tokens]).reshape(len(tokens), -1) @ params["out"]


def test_a_table_has_the_frequencies_of_its_entries_for_inputs(x64):
    params = {"out": normal(6, 2), "table": normal(7, 3)}
    tokens = jnp.asarray([[0, 3], [3, 3], [1, 6], [0, 3]])
    operator = curv.GGNOperator(embedded, params, (tokens, normal(4, 2)), Gaussian(0.5))
    _, table = curv.kronecker_factors(operator)
    np.testing.assert_allclose(table.inputs, np.array([[2, 1, 0, 4, 0, 0, 1]]) / 8)
    slopes = 1 - np.tanh(np.asarray(params["table"][tokens])) ** 2  # (N, T, 3)
    g = slopes[:, None] * np.asarray(params["out"]).T.reshape(2, 2, 3) / 0.5
    twins.assert_close(table.gradients[0], np.einsum("nrto,nrtp->op", g, g))


# --- how it is computed ---------------------------------------------------------------------------


def operators(problem, data=None, **options):
    args = problem.model_fn, problem.params, data or (problem.x, problem.y), problem.likelihood
    yield curv.GGNOperator(*args, **options)
    yield curv.EmpiricalFisherOperator(*args, **options)
    yield curv.MonteCarloFisherOperator(*args, key=jax.random.key(0), num_samples=3, **options)


def test_chunks_streams_and_scales(x64):
    problem = twins.problem("mlp", "float64")
    ragged = twins.batches(problem.x, problem.y, 3, 3, 1)
    for whole, chunked, streamed in zip(
        operators(problem),
        operators(problem, batch_size=2, scale=2.5),
        operators(problem, ragged, scale=2.5),
        strict=True,
    ):
        expected = curv.kronecker_factors(whole)
        for other in (chunked, streamed):
            for a, b in zip(curv.kronecker_factors(other), expected, strict=True):
                twins.assert_close(a.inputs, b.inputs)
                twins.assert_close(a.gradients, 2.5 * b.gradients)


@pytest.mark.slow
def test_directions_in_blocks_give_the_same(x64):
    """A memory limit that holds fewer directions than the model has outputs."""
    problem = twins.problem("several_axes", "float64")
    for tight, roomy in zip(
        operators(problem, memory_limit=4_000, batch_size=1), operators(problem), strict=True
    ):
        twins.assert_close(tight.diagonal(), roomy.diagonal())
        twins.assert_close(tight.to_dense(), roomy.to_dense())
        for a, b in zip(curv.kronecker_factors(tight), curv.kronecker_factors(roomy), strict=True):
            twins.assert_close(a.gradients, b.gradients)
            twins.assert_close(a.inputs, b.inputs)


def test_second_moments_in_the_identity_are_the_diagonal(x64):
    problem = twins.problem("convnet", "float64")
    operator = curv.GGNOperator(*problem.args, batch_size=2)
    layers = operator.objective.planned(problem.x).plan.layers.layers
    moments = second_moments(operator, ((None, None),) * len(layers))
    diagonal = np.diag(twins.dense(twins.ggn, "convnet"))
    for layer, found in zip(layers, moments, strict=True):
        twins.assert_close(found, layer.layout.to_matrix(jnp.asarray(diagonal)))


def test_half_precision_parameters_have_factors_of_single(x64):
    problem = twins.problem("mlp", "float32")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), problem.params)
    x = problem.x.astype(jnp.bfloat16)
    operator = curv.GGNOperator(problem.model_fn, params, (x, problem.y), "categorical")
    expected = curv.kronecker_factors(curv.GGNOperator(*problem.args))
    for found, single in zip(curv.kronecker_factors(operator), expected, strict=True):
        assert found.inputs.dtype == found.gradients.dtype == jnp.float32
        twins.assert_close(found.inputs, single.inputs, rtol=5e-2)
        twins.assert_close(found.gradients, single.gradients, rtol=5e-2)


def test_an_unknown_way_of_sharing_names_the_nearest(x64):
    operator = curv.GGNOperator(*twins.problem("mlp", "float64").args)
    with pytest.raises(ValueError, match=r"weight_sharing='reduced', expected.*'reduce'"):
        curv.kronecker_factors.__wrapped__(operator, weight_sharing="reduced")


@pytest.mark.slow
def test_every_parameter_belongs_to_one_factor(x64):
    problem = twins.problem("convnet", "float64")
    operator = curv.GGNOperator(*problem.args)
    factors = curv.kronecker_factors(operator)
    num = tree.size(problem.params)
    places = [f.layout.to_matrix(jnp.arange(float(num))).ravel() for f in factors]
    np.testing.assert_array_equal(np.sort(np.concatenate(places)), np.arange(num))
