"""Operations replaced in a program and in the programs within it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laplace_kit.rewriting import has_operation, rewritten


def doubled_sine(equation, x):
    return 2 * equation.primitive.bind(x, **equation.params)


def in_a_loop(x):
    return jax.lax.fori_loop(0, 3, lambda _, total: total + jnp.sin(x), x)


def in_a_branch(x):
    return jax.lax.cond(x[0] > 0, lambda x: x + jnp.sin(x), lambda x: x, x)


def in_a_call(x):
    return {"found": jax.jit(jnp.sin)(x), "also": (jnp.cos(x), x)}


def in_a_linear_solve(x):
    matrix = jnp.diag(jnp.sin(x))
    return jax.lax.custom_linear_solve(
        lambda v: jnp.sin(x) * v, matrix @ x, lambda _, b: b / jnp.sin(x), symmetric=True
    )


def in_a_root(x):
    """The root of z^3 = 8 sin(x)^3 by Newton's method."""
    power = 8 * jnp.sin(x) ** 3

    def solve(fn, z):
        return jax.lax.fori_loop(0, 50, lambda _, z: z - fn(z) / (3 * z**2), z)

    def divide(product, b):
        return b / product(jnp.ones_like(b))

    return jax.lax.custom_root(lambda z: z**3 - power, jnp.full_like(x, 2.0), solve, divide)


def twice(x):
    return jnp.sin(jnp.sin(x))


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (in_a_loop, lambda x: x + 6 * np.sin(x)),
        (in_a_branch, lambda x: x + 2 * np.sin(x)),
        (in_a_call, lambda x: {"found": 2 * np.sin(x), "also": (np.cos(x), x)}),
        (in_a_linear_solve, lambda x: x),
        (in_a_root, lambda x: 4 * np.sin(x)),
        (twice, lambda x: 2 * np.sin(2 * np.sin(x))),
    ],
)
def test_operations_within_are_replaced(fn, expected):
    x = np.linspace(0.5, 2.0, 4, dtype=np.float32)
    found = jax.jit(rewritten(fn, {"sin": doubled_sine}))(x)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5), found, expected(x)
    )


def test_what_is_mapped_over_shards_stays():
    """Its programs speak of axes of the mesh, and cannot be traced anywhere else."""
    mesh = jax.make_mesh((1,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("a")

    def over_shards(x):
        return jnp.sin(x) + jax.lax.psum(jnp.sin(x).sum(), "a")

    def fn(x):
        return jax.shard_map(over_shards, mesh=mesh, in_specs=spec, out_specs=spec)(x) + jnp.sin(x)

    x = np.linspace(0.5, 2.0, 4, dtype=np.float32)
    found = jax.jit(rewritten(fn, {"sin": doubled_sine}))(x)
    np.testing.assert_allclose(found, 3 * np.sin(x) + np.sin(x).sum(), rtol=1e-5)


def test_operations_are_found_in_every_program():
    x = jnp.linspace(0.5, 2.0, 4)
    functions = (in_a_loop, in_a_branch, in_a_call, in_a_linear_solve, jax.checkpoint(twice))
    for fn in functions:
        assert has_operation(fn, x, name="sin")
        assert not has_operation(fn, jax.ShapeDtypeStruct((4,), "float32"), name="tan")


def test_other_operations_stay():
    x = jnp.linspace(0.5, 2.0, 4)
    before, after = (jax.make_jaxpr(fn)(x) for fn in (in_a_loop, rewritten(in_a_loop, {})))
    assert str(before) == str(after)
