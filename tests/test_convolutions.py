"""Convolutions in one layout: the same values, and no other layout left, inside of loops too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.extend.core import ClosedJaxpr

from laplace_kit.convolutions import canonical

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="layouts are a CPU's concern")


def normal(*shape):
    return twins.array(np.random.default_rng(sum(shape)).normal(size=shape), np.float32)


def numbers_of(jaxpr):
    """Yield the dimension numbers of every convolution in a program and in those within."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield equation.params["dimension_numbers"]
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, ClosedJaxpr):
                    yield from numbers_of(inner.jaxpr)


def assert_canonical(fn, *args, expected):
    """Check that this many convolutions are left, all with channels last, as they were not."""
    before, after = (list(numbers_of(jax.make_jaxpr(f)(*args).jaxpr)) for f in (fn, canonical(fn)))
    assert len(before) == len(after) == expected
    assert all(map(is_canonical, after))
    assert not all(map(is_canonical, before))


def is_canonical(numbers):
    lhs, rhs, out = numbers
    ndim = len(lhs)
    plain = (0, ndim - 1, *range(1, ndim - 1))
    return lhs == out == plain and rhs == (ndim - 1, ndim - 2, *range(ndim - 2))


def assert_trees_close(found, expected):
    """Compare two trees of float32 arrays."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        twins.assert_close(one, other, dtype="float32")


@pytest.mark.parametrize("seed", range(12))
@on_cpu
def test_values_and_gradients_do_not_change(seed):
    draw = np.random.default_rng(seed)
    num_places, groups = draw.integers(1, 4), int(draw.integers(1, 3))
    letters = [kind + "HWD"[:num_places] for kind in ("NC", "OI", "NC")]
    specs = ["".join(draw.permutation(list(axes))) for axes in letters]
    sizes = dict(zip("NCOIHWD", (2, 2 * groups, 3 * groups, 2, 5, 4, 3), strict=True))
    x = normal(*(sizes[axis] for axis in specs[0]))
    kernel = normal(*({**sizes, "H": 2, "W": 3, "D": 1}[axis] for axis in specs[1]))
    options = {
        "window_strides": draw.integers(1, 3, num_places).tolist(),
        "padding": str(draw.choice(["SAME", "VALID"])),
        "rhs_dilation": draw.integers(1, 3, num_places).tolist(),
        "dimension_numbers": tuple(specs),
        "feature_group_count": groups,
    }

    def square(x, kernel):
        return jnp.sum(jax.lax.conv_general_dilated(x, kernel, **options) ** 2)

    gradients = jax.value_and_grad(square, argnums=(0, 1))
    assert_trees_close(jax.jit(canonical(gradients))(x, kernel), jax.jit(gradients)(x, kernel))
    assert_canonical(gradients, x, kernel, expected=3)


def image_model(kernel, x):
    z = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.sum(jnp.tanh(z) ** 2)


KERNEL, IMAGES = normal(2, 2, 3, 4), normal(2, 5, 5, 3)


def in_scan(kernel, x):
    def body(total, scale):
        return total + jax.grad(image_model)(scale * kernel, x), total.sum()

    return jax.lax.scan(body, jnp.zeros_like(kernel), jnp.arange(3.0))


def in_while(kernel, x):
    def step(carry):
        i, kernel = carry
        return i + 1, kernel - 0.1 * jax.grad(image_model)(kernel, x)

    return jax.lax.while_loop(lambda carry: carry[0] < 2, step, (0, kernel))


def in_branches(kernel, x):
    def gradient(kernel):
        return jax.jit(jax.grad(image_model))(kernel[::-1, jnp.array([1, 0])], x)

    return jax.lax.cond(x.sum() > 0, gradient, lambda kernel: kernel, kernel)


@pytest.mark.parametrize("fn", [in_scan, in_while, in_branches])
@on_cpu
def test_programs_within_programs_are_rewritten(fn):
    assert_trees_close(jax.jit(canonical(fn))(KERNEL, IMAGES), fn(KERNEL, IMAGES))
    assert_canonical(fn, KERNEL, IMAGES, expected=2)


@on_cpu
def test_a_derivative_rule_stays_in_force():
    @jax.custom_vjp
    def fn(kernel):
        return image_model(kernel, IMAGES)

    fn.defvjp(lambda kernel: (fn(kernel), kernel), lambda kernel, g: (7 * g * kernel,))

    def both(kernel):
        return fn(kernel) + image_model(kernel, IMAGES)

    expected = 7 * KERNEL + jax.jit(jax.grad(image_model))(KERNEL, IMAGES)
    assert_trees_close(jax.grad(canonical(both))(KERNEL), expected)


@on_cpu
def test_a_function_of_a_pytree_keeps_its_form_and_maps_and_differentiates():
    def fn(params, x):
        return {"value": image_model(params["kernel"], x), "twice": (2 * params["scale"],)}

    params = {"kernel": KERNEL, "scale": 3.0}
    assert_trees_close(canonical(fn)(params, IMAGES), fn(params, IMAGES))
    mapped = jax.vmap(canonical(image_model), (None, 0))(KERNEL, IMAGES[:, None])
    assert_trees_close(mapped, jax.jit(jax.vmap(image_model, (None, 0)))(KERNEL, IMAGES[:, None]))
    gradient = jax.grad(canonical(image_model))(KERNEL, IMAGES)
    assert_trees_close(gradient, jax.jit(jax.grad(image_model))(KERNEL, IMAGES))


@on_cpu
def test_a_function_without_convolutions_keeps_its_program():
    def fn(x):
        return jax.lax.map(jnp.tanh, x @ x)

    found, expected = (jax.make_jaxpr(f)(jnp.eye(2)) for f in (canonical(fn), fn))
    assert str(found) == str(expected)


def test_other_devices_choose_layouts_themselves(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert canonical(in_scan) is in_scan
