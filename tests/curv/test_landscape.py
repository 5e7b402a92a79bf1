"""Losses on grids against the loss at each point, and filters of random directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from architectures import ZOO
from exact import as_users_call
from jax.flatten_util import ravel_pytree

from laplace_kit.curv.landscape import loss_along, random_directions

S, T = np.linspace(-1, 1, 5), np.linspace(-0.5, 0.5, 3)


def losses_at(problem, vectors, points):
    """Return the loss by its definition, one point of the grid after the other."""
    theta, _ = twins.flat(problem)
    loss = jax.jit(twins.total_loss(problem))
    return np.array([loss(theta + jnp.asarray(point) @ vectors) for point in points])


@pytest.mark.accelerator
@pytest.mark.parametrize(("name", "dtype"), [("with_integers", "float64"), ("convnet", "float32")])
def test_surface_is_the_loss_at_each_point(name, dtype):
    with twins.precision(dtype):
        problem = twins.problem(name, dtype)
        vectors = problem.vectors(2)
        found = loss_along(*problem.args, vectors, (S, T), batch_size=2)
        expected = losses_at(problem, vectors, [(s, t) for s in S for t in T])
        assert found.losses.dtype == dtype
        twins.assert_close(found.losses, expected.reshape(5, 3), dtype=dtype)
        twins.assert_close(found.coordinates[0], S, dtype=dtype)
        twins.assert_close(found.coordinates[1], T, dtype=dtype)


def test_curve_over_a_stream_along_a_pytree(x64):
    problem = twins.problem("two_inputs", "float64")
    data = twins.batches(problem.x, problem.y, 4, 2)
    _, unravel = ravel_pytree(problem.params)
    vectors = problem.vectors(1)
    directions = jax.vmap(unravel)(vectors)
    for batches in (data, iter(data)):
        found = loss_along(problem.model_fn, problem.params, batches, "bernoulli", directions, S)
        twins.assert_close(found.losses, losses_at(problem, vectors, S[:, None]))


def test_under_jit_and_without_a_second_compilation():
    problem = twins.problem("mlp")
    model_fn, params, data, likelihood = problem.args

    @jax.jit
    def compiled(params, vectors, coordinates):
        return loss_along(model_fn, params, data, likelihood, vectors, coordinates)

    vectors = problem.vectors(1)
    expected = losses_at(problem, vectors, S[:, None])
    twins.assert_close(compiled(params, vectors, S).losses, expected, dtype="float32")
    loss_along(model_fn, params, data, likelihood, vectors, S)
    moved, others = jax.tree.map(lambda leaf: leaf + 0.1, (params, vectors))
    with twins.compilations() as names:
        loss_along(model_fn, moved, data, likelihood, others, 3 * S)
    assert names == []


def test_wrong_arguments_are_refused():
    problem = twins.problem("mlp")
    vectors = problem.vectors(2)
    with pytest.raises(ValueError, match=r"Found coordinates of the shapes .* for 2 directions"):
        loss_along(*problem.args, vectors, (S, T, T))
    one_array = (
        r"Found coordinates of the shapes \[\(\), \(\)\].* expected one array \(G,\) for all"
    )
    with as_users_call(), pytest.raises(ValueError, match=one_array):
        loss_along(*problem.args, vectors, 0.5)
    with pytest.raises(ValueError, match=r"Found as vector an array of shape \(2, 30\)"):
        loss_along(*problem.args, vectors[:, 1:], S)
    with pytest.raises(
        ValueError, match=r"directions of the shapes \[\(31,\)\].* one is v\[None\]"
    ):
        loss_along(*problem.args, vectors[0], S)
    with pytest.raises(ValueError, match=r"shapes \[\(0, 31\)\], expected at least one"):
        loss_along(*problem.args, vectors[:0], S)
    with pytest.raises(ValueError, match="batch_size=0"):
        loss_along(*problem.args, vectors, S, batch_size=0)
    with pytest.raises(ValueError, match="num=0, expected a whole number of directions"):
        random_directions(*problem.args[:2], problem.x, key=jax.random.key(0), num=0)


# --- directions -----------------------------------------------------------------------------------


def norms(leaves, axes):
    return np.sqrt(sum(np.sum(np.square(leaf), axes) for leaf in leaves))


def test_filters_of_dense_layers_are_columns_with_their_biases(x64):
    problem = twins.problem("mlp", "float64")
    _, unravel = ravel_pytree(problem.params)
    key = jax.random.key(3)
    found = random_directions(problem.model_fn, problem.params, problem.x, key=key, num=3)
    drawn = jax.random.normal(key, found.shape)
    assert found.shape == (3, 31)
    assert (found * drawn > 0).all()
    for direction, gaussian in zip(map(unravel, found), map(unravel, drawn), strict=True):
        for of in (lambda p: p["hidden"][0], lambda p: p["out"]):
            layer, given, original = of(direction), of(problem.params), of(gaussian)
            lengths = [norms([part["kernel"], part["bias"][None]], 0) for part in (layer, given)]
            twins.assert_close(*lengths)
            ratio = layer["kernel"] / original["kernel"]
            twins.assert_close(ratio, np.broadcast_to(ratio[0], ratio.shape))


def test_filters_of_convolutions_are_kernels_of_channels_and_a_scale_is_one(x64):
    model = ZOO["equinox_module"]()
    found = random_directions(model.model_fn, model.params, model.x, key=jax.random.key(0), num=1)
    flat, unravel = ravel_pytree(model.params)
    layers, given = unravel(found[0].astype(flat.dtype)).layers, model.params.layers
    lengths = [
        norms([p.weight], (1, 2)) ** 2 + np.square(p.bias[:, 0]) for p in (layers[0], given[0])
    ]
    twins.assert_close(*lengths, dtype="float32")
    for name in ("weight", "bias"):
        lengths = [np.linalg.norm(getattr(part, name)) for part in (layers[2], given[2])]
        twins.assert_close(*lengths, dtype="float32")


def test_parameters_that_are_zero_do_not_move():
    params = {"kernel": jnp.ones((3, 2)).at[:, 0].set(0), "unused": jnp.zeros(2)}
    x = jax.ShapeDtypeStruct((4, 3), "float32")
    found = random_directions(lambda p, x: x @ p["kernel"], params, x, key=jax.random.key(0), num=1)
    np.testing.assert_array_equal(found[0] != 0, [0, 1, 0, 1, 0, 1, 0, 0])
