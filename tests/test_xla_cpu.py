"""What is compiled for a CPU: the same values, other convolutions and products, there alone."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from laplace_kit.xla_cpu import adapted, is_meant_for_cpu


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def lowered(fn, *args, platform):
    """Return the program that a compiler for a platform gets, whether or not it is there."""
    return jax.jit(fn).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def numbers_of(fn, *args, platform="cpu"):
    """Return the dimension numbers of every convolution, as `[b, 0, f]x[0, i, o]->[b, 0, f]`."""
    return re.findall(r"dim_numbers = (.*?), window", lowered(fn, *args, platform=platform))


def assert_canonical(fn, *args, expected):
    """Check that this many convolutions are left, all with channels last, as they were not.

    On accelerators the program's own are left.
    """
    before, after = (numbers_of(f, *args) for f in (fn, adapted(fn)))
    assert len(before) == len(after) == expected
    assert all(map(is_canonical, after))
    assert not all(map(is_canonical, before))
    for platform in ("cuda", "rocm", "tpu"):
        assert numbers_of(adapted(fn), *args, platform=platform) == before


def is_canonical(numbers):
    places = ", ".join(map(str, range(numbers.count(",") // 3 - 1)))
    return numbers == f"[b, {places}, f]x[{places}, i, o]->[b, {places}, f]"


def assert_trees_close(found, expected):
    """Compare two trees of float32 arrays."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        twins.assert_close(one, other, dtype="float32")


@pytest.mark.parametrize("seed", range(12))
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
    assert_trees_close(jax.jit(adapted(gradients))(x, kernel), jax.jit(gradients)(x, kernel))
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
def test_programs_within_programs_are_rewritten(fn):
    assert_trees_close(jax.jit(adapted(fn))(KERNEL, IMAGES), fn(KERNEL, IMAGES))
    assert_canonical(fn, KERNEL, IMAGES, expected=2)


def test_a_derivative_rule_stays_in_force():
    @jax.custom_vjp
    def fn(kernel):
        return image_model(kernel, IMAGES)

    fn.defvjp(lambda kernel: (fn(kernel), kernel), lambda kernel, g: (7 * g * kernel,))

    def both(kernel):
        return fn(kernel) + image_model(kernel, IMAGES)

    expected = 7 * KERNEL + jax.grad(image_model)(KERNEL, IMAGES)
    assert_trees_close(jax.grad(adapted(both))(KERNEL), expected)


def test_a_function_of_a_pytree_keeps_its_form_and_maps_and_differentiates():
    def fn(params, x):
        return {"value": image_model(params["kernel"], x), "twice": (2 * params["scale"],)}

    params = {"kernel": KERNEL, "scale": 3.0}
    assert_trees_close(adapted(fn)(params, IMAGES), fn(params, IMAGES))
    mapped = jax.vmap(adapted(image_model), (None, 0))(KERNEL, IMAGES[:, None])
    assert_trees_close(mapped, jax.vmap(image_model, (None, 0))(KERNEL, IMAGES[:, None]))
    gradient = jax.grad(adapted(image_model))(KERNEL, IMAGES)
    assert_trees_close(gradient, jax.grad(image_model)(KERNEL, IMAGES))


def test_a_function_without_convolutions_keeps_its_program():
    def fn(x):
        return jax.lax.map(jnp.tanh, x @ x)

    found, expected = (jax.make_jaxpr(f)(jnp.eye(2)) for f in (adapted(fn), fn))
    assert str(found) == str(expected)


def gradient_in_scan(kernel, x):
    return in_scan(kernel, x)[0]


def test_the_platform_of_the_program_decides_and_not_the_default(monkeypatch):
    for default, platform in (("gpu", "cpu"), ("cpu", "cuda")):
        monkeypatch.setattr(jax, "default_backend", lambda default=default: default)
        found = numbers_of(adapted(gradient_in_scan), KERNEL, IMAGES, platform=platform)
        assert all(map(is_canonical, found)) == (platform == "cpu")


def test_no_choice_is_left_in_what_is_compiled():
    push, v = linearised("float32")
    for fn, args in ((adapted(in_scan), (KERNEL, IMAGES)), (adapted(push, is_linear=True), (v,))):
        compiled = jax.jit(fn).lower(*args).compile().as_text()
        assert "while(" in compiled or "reduce-precision(" in compiled
        assert "conditional(" not in compiled


def test_what_is_adapted_twice_is_as_adapted_once():
    once, twice = adapted(in_scan), adapted(adapted(in_scan))
    for platform in ("cpu", "cuda"):
        found, expected = (lowered(f, KERNEL, IMAGES, platform=platform) for f in (twice, once))
        assert found.count("stablehlo") == expected.count("stablehlo")


def test_derivatives_keep_no_more_than_those_of_the_function_itself():
    def num_bytes_kept(gradient):
        push = jax.linearize(jax.jit(lambda kernel: gradient(kernel, IMAGES)), KERNEL)[1]
        return sum(leaf.nbytes for leaf in jax.tree.leaves(push))

    gradient = jax.grad(image_model)
    assert num_bytes_kept(adapted(gradient)) <= num_bytes_kept(gradient)


SCALES = jnp.arange(3.0)


def test_derivatives_of_convolutions_that_are_computed_again_are_canonical():
    def fn(kernel, x):
        return jax.lax.map(lambda s: jax.grad(jax.checkpoint(image_model))(s * kernel, x), SCALES)

    assert_trees_close(jax.jit(adapted(fn))(KERNEL, IMAGES), fn(KERNEL, IMAGES))
    assert_canonical(fn, KERNEL, IMAGES, expected=2)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_arrays_may_be_sharded(kind):
    """Derivatives then name the sharding of their result, axis by axis."""
    mesh = jax.make_mesh((1,), ("a",), axis_types=(kind,))
    by_rows, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("a",), ()))

    def fn(kernel, x):
        return jax.lax.map(lambda s: jax.grad(image_model, (0, 1))(s * kernel, x), SCALES)

    args = jax.device_put(KERNEL, whole), jax.device_put(IMAGES, by_rows)
    found = jax.jit(adapted(fn))(*args)
    assert_trees_close(found, jax.jit(fn)(KERNEL, IMAGES))
    assert [leaf.sharding.spec for leaf in found] == [
        leaf.sharding.spec for leaf in jax.jit(fn)(*args)
    ]
    assert_canonical(fn, *args, expected=3)


def test_it_may_be_mapped_over_shards():
    mesh = jax.make_mesh((1,), ("a",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("a")

    def gradients(x):
        return jax.vmap(lambda x: jax.grad(image_model)(KERNEL, x[None]))(x)

    def run(x):
        return jax.shard_map(adapted(gradients), mesh=mesh, in_specs=rows, out_specs=rows)(x)

    assert_trees_close(jax.jit(run)(IMAGES), jax.jit(gradients)(IMAGES))
    assert all(map(is_canonical, numbers_of(run, IMAGES)))


# --- where a program will run -------------------------------------------------------------------


def test_arrays_on_a_device_decide_and_else_the_default(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (cpu,) = jax.devices("cpu")[:1]
    somewhere, here = np.ones(2), jax.device_put(np.ones(2), cpu)
    assert not is_meant_for_cpu()
    assert not is_meant_for_cpu({"x": somewhere, "n": 3})
    assert not is_meant_for_cpu(jnp.asarray(somewhere))  # goes where the others are
    assert is_meant_for_cpu(somewhere, {"x": here})
    for default in (cpu, "cpu"):
        with jax.default_device(default):
            assert is_meant_for_cpu(somewhere)
    found = []
    jax.make_jaxpr(lambda x: found.append(is_meant_for_cpu(x)) or x)(here)
    assert found == [False]  # a tracer is nowhere yet


# --- passes of tangents -------------------------------------------------------------------------


def network(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


def linearised(dtype):
    draw = np.random.default_rng(0).normal
    params = [jnp.asarray(draw(size=shape), dtype) for shape in ((3, 4), (4, 2))]
    x = jnp.asarray(draw(size=(5, 3)), dtype)
    tangent = [jnp.asarray(draw(size=leaf.shape), dtype) for leaf in params]
    return jax.linearize(lambda p: network(p, x), params)[1], tangent


side_by_side = partial(adapted, is_linear=True)


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


def test_each_matrix_product_is_an_operation_of_its_own_on_a_cpu_alone():
    push, v = linearised("float32")
    for fn, platform, num in (
        (push, "cpu", 0),
        (side_by_side(push), "cpu", 3),
        (side_by_side(push), "cuda", 0),
        (side_by_side(push), "tpu", 0),
    ):
        text = lowered(fn, v, platform=platform)
        assert text.count("stablehlo.dot_general") == 3
        assert text.count("stablehlo.reduce_precision") == num


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_pass_of_tangents_may_be_sharded(kind):
    mesh = jax.make_mesh((1,), ("a",), axis_types=(kind,))
    by_rows, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("a",), ()))
    params, v = ([jnp.full((3, 4), s), jnp.full((4, 2), 1.0)] for s in (0.5, 2.0))
    params, v = jax.device_put((params, v), whole)
    x = jax.device_put(jnp.linspace(-1, 1, 15).reshape(5, 3), by_rows)

    def run(adapt, params, v, x):
        return adapt(jax.linearize(lambda p: network(p, x), params)[1])(v)

    found, expected = (jax.jit(partial(run, f))(params, v, x) for f in (side_by_side, lambda f: f))
    twins.assert_close(found, expected, dtype="float32")
    assert found.sharding == expected.sharding
    text = lowered(partial(run, side_by_side), params, v, x, platform="cpu")
    assert text.count("stablehlo.reduce_precision") == 3


def test_a_pass_of_tangents_may_be_mapped_over_shards():
    mesh = jax.make_mesh((1,), ("a",), axis_types=(AxisType.Auto,))
    params = [jnp.full((3, 4), 0.5), jnp.full((4, 2), 1.0)]

    def run(x):
        return side_by_side(jax.linearize(lambda p: network(p, x), params)[1])(params)

    rows = PartitionSpec("a")
    over_shards = jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=rows)
    x = jnp.linspace(-1, 1, 15).reshape(5, 3)
    twins.assert_close(jax.jit(over_shards)(x), jax.jit(run)(x), dtype="float32")
