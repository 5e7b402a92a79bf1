"""Passes of tangents whose matrix products stand alone: the same values, derivatives and types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit.tangents import side_by_side

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="fusion is a CPU's concern")


def network(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


def linearised(dtype):
    draw = np.random.default_rng(0).normal
    params = [jnp.asarray(draw(size=shape), dtype) for shape in ((3, 4), (4, 2))]
    x = jnp.asarray(draw(size=(5, 3)), dtype)
    tangent = [jnp.asarray(draw(size=leaf.shape), dtype) for leaf in params]
    return jax.linearize(lambda p: network(p, x), params)[1], tangent


def num_operations(fn, *args, name):
    return sum(e.primitive.name == name for e in jax.make_jaxpr(fn)(*args).jaxpr.eqns)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_linear_function_does_not_change(dtype):
    with twins.precision("float64" if dtype == "float64" else "float32"):
        push, v = linearised(dtype)
        found, expected = (jax.jit(fn)(v) for fn in (side_by_side(push), push))
        assert found.dtype == expected.dtype == dtype
        tolerance = 4 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            *(np.asarray(one, "float64") for one in (found, expected)),
            rtol=tolerance,
            atol=tolerance,
        )


def test_it_can_be_transposed_and_vectorised():
    push, v = linearised("float32")
    u = jnp.ones((5, 2))
    apart = side_by_side(push)
    for one, other in zip(
        jax.tree.leaves(jax.linear_transpose(apart, v)(u)),
        jax.tree.leaves(jax.linear_transpose(push, v)(u)),
        strict=True,
    ):
        twins.assert_close(one, other, dtype="float32")
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), v)
    twins.assert_close(jax.vmap(apart)(several)[1], 2 * push(v), dtype="float32")


@on_cpu
def test_each_matrix_product_is_an_operation_of_its_own():
    push, v = linearised("float32")
    num = num_operations(push, v, name="dot_general")
    assert num == 3
    assert num_operations(push, v, name="reduce_precision") == 0
    assert num_operations(side_by_side(push), v, name="reduce_precision") == num


def test_accelerators_fuse_as_they_like(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    push, _ = linearised("float32")
    assert side_by_side(push) is push
