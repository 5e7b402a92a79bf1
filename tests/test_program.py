"""Programs searched, rewritten within their loops and calls too, and flattened: the same values."""

from collections import Counter
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import config
from jax.extend.core.primitives import closed_call_p

from laplace_kit.curv.capture.uses import flatten_program
from laplace_kit.program import evaluate, has_operation, reached_from, rewritten, traced

# --- searching and rewriting --------------------------------------------------------------------


def doubled_sine(step, x):
    return 2 * step.apply(x)[0]


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


def test_derivatives_of_what_is_computed_again_are_rewritten():
    """`checkpoint` holds its program in another form than other calls do."""

    def fn(x):
        return jax.grad(lambda x: jax.checkpoint(twice)(x).sum())(x)

    def negated_cosine(step, x):
        return -step.apply(x)[0]

    x = np.linspace(0.5, 2.0, 4, dtype=np.float32)
    found = jax.jit(rewritten(fn, {"cos": negated_cosine}))(x)
    np.testing.assert_allclose(found, np.cos(x) * np.cos(np.sin(x)), rtol=1e-5)  # twice negated
    found = jax.jit(rewritten(fn, {"sin": doubled_sine}))(x)
    np.testing.assert_allclose(found, np.cos(x) * np.cos(2 * np.sin(x)), rtol=1e-5)


def test_what_writes_to_its_callers_arrays_stays():
    def fn(x):
        total = jax.new_ref(jnp.zeros(()))

        def step(x, _):
            total[...] += jnp.sin(x).sum()
            return x, None

        jax.lax.scan(step, x, None, length=3)
        return total[...] + jnp.sin(x)

    x = np.linspace(0.5, 2.0, 4, dtype=np.float32)
    found = jax.jit(rewritten(fn, {"sin": doubled_sine}))(x)
    np.testing.assert_allclose(found, 3 * np.sin(x).sum() + 2 * np.sin(x), rtol=1e-5)


def test_a_choice_by_platform_stays():
    def fn(x):
        return jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos) + jnp.sin(x)

    x = np.linspace(0.5, 2.0, 4, dtype=np.float32)
    lowered = jax.jit(rewritten(fn, {"sin": doubled_sine})).trace(x).lower
    for platform, expected in (("cpu", 2), ("cuda", 1)):
        text = lowered(lowering_platforms=(platform,)).as_text()
        assert (text.count("stablehlo.sine"), text.count("stablehlo.multiply")) == (expected, 1)


def test_settings_that_a_program_was_traced_under_stay():
    """The numbers drawn for a key depend on one of them."""

    def fn(x, is_partitionable):
        with jax.threefry_partitionable(is_partitionable):
            return jnp.sin(x) + jax.random.normal(jax.random.key(0), x.shape)

    x = np.linspace(0.5, 2.0, 4, dtype=np.float32)
    expected = [jax.jit(partial(fn, is_partitionable=way))(x) + np.sin(x) for way in (True, False)]
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    for way, values in zip((True, False), expected, strict=True):
        found = jax.jit(rewritten(partial(fn, is_partitionable=way), {"sin": doubled_sine}))(x)
        np.testing.assert_allclose(found, values, rtol=1e-5)


class Counted(NamedTuple):
    """A function that can be hashed and cannot be referred to weakly, and counts its calls."""

    calls: Counter

    def __hash__(self):
        return id(self.calls)

    def __call__(self, x):
        self.calls.update(["call"])
        return jnp.sin(x)


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_a_function_is_called_once(name):
    counted = Counted(Counter())
    jax.make_jaxpr(rewritten(counted, {name: doubled_sine}))(1.0)
    assert counted.calls["call"] == 1


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


def test_what_was_traced_under_one_mesh_runs_under_another():
    """Types and shardings that name the first mesh, also in loops, are left behind."""
    explicit = jax.make_mesh((1,), ("a",))
    automatic = jax.make_mesh((1,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    x = np.linspace(0.5, 2.0, 4, dtype=np.float32)
    with jax.set_mesh(explicit):

        def fn(x):
            start = jax.reshard(jnp.zeros_like(x), jax.sharding.PartitionSpec("a"))
            total, _ = jax.lax.scan(lambda t, _: (t + jnp.sin(x), None), start, length=2)
            return total + jax.reshard(x, jax.sharding.PartitionSpec())

        program = traced(fn, jax.ShapeDtypeStruct(x.shape, x.dtype))
        assert program.has("sin")
        assert not program.has("cos")
    with jax.set_mesh(automatic):
        found = jax.jit(partial(program.run, {"reshard": lambda step, operand: operand}))(x)
    np.testing.assert_allclose(found, 2 * np.sin(x) + x, rtol=1e-5)


def test_operations_are_found_in_every_program():
    x = jnp.linspace(0.5, 2.0, 4)
    functions = (in_a_loop, in_a_branch, in_a_call, in_a_linear_solve, jax.checkpoint(twice))
    for fn in functions:
        assert has_operation(fn, x, names=["sin"])
        assert not has_operation(fn, jax.ShapeDtypeStruct((4,), "float32"), names=["tan"])


# Settings under which JAX makes operations that hold others; later versions have them on.
COMING = [name for name in ("remat3", "custom_vjp3", "custom_jvp3") if hasattr(config, name)]


def by_reverse_rule(x):
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, u: (u * jnp.cos(x),))
    return sine(x)


def by_forward_rule(x):
    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    sine.defjvp(lambda x, v: (jnp.sin(*x), jnp.cos(*x) * v[0]))
    return sine(x)


def computed_again(x):
    return jax.checkpoint(lambda x: jnp.sin(x))(x)


@pytest.mark.parametrize("setting", COMING)
def test_operations_are_found_within_those_that_others_hold(setting):
    functions = {
        "remat3": computed_again,
        "custom_vjp3": by_reverse_rule,
        "custom_jvp3": by_forward_rule,
    }
    fn = functions[setting]
    with getattr(config, setting)(True):
        (name,) = (e.primitive.name for e in jax.make_jaxpr(fn)(X).eqns)
        assert name == "call_hi_primitive"
        assert has_operation(fn, X, names=["sin"])
        assert not has_operation(fn, X, names=["tan"])


def test_other_operations_stay():
    x = jnp.linspace(0.5, 2.0, 4)
    before, after = (jax.make_jaxpr(fn)(x) for fn in (in_a_loop, rewritten(in_a_loop, {})))
    assert str(before) == str(after)


# --- flat programs ------------------------------------------------------------------------------


@jax.custom_jvp
def ruled(a):
    return jnp.sin(a)


ruled.defjvp(lambda primals, tangents: (ruled(*primals), 3 * tangents[0]))


def model_fn(frozen, params, x):
    inner = jax.checkpoint(jax.jit(lambda a: jax.jit(ruled)(a @ params["w"].T) * HELD))
    hidden = jax.nn.relu(inner(x * frozen))
    return hidden * jnp.broadcast_to(params["scale"], hidden.shape) + params["b"]


HELD = np.arange(1.0, 5.0)
MODEL = jax.tree_util.Partial(model_fn, 2.0)
PARAMS = {"b": jnp.arange(4.0), "scale": jnp.arange(1.0, 5.0), "w": jnp.arange(12.0).reshape(4, 3)}
X = jnp.linspace(-1, 1, 6).reshape(2, 3)


def test_the_flat_program_computes_the_model():
    program = flatten_program(MODEL, PARAMS, X)
    read = evaluate(program, [2.0], jax.tree.leaves(PARAMS), [X])
    np.testing.assert_allclose(read(program.output), MODEL(PARAMS, X), rtol=1e-6)
    for number, aval in program.avals.items():
        value = read(number)
        assert (jnp.shape(value), jnp.result_type(value)) == (aval.shape, aval.dtype)
        assert program.shape(number) == aval.shape


def test_derivatives_of_the_flat_program_are_the_models():
    program = flatten_program(MODEL, PARAMS, X)

    def flat(w):
        leaves = jax.tree.leaves({**PARAMS, "w": w})
        return evaluate(program, [2.0], leaves, [X])(program.output)

    expected = jax.jacobian(lambda w: MODEL({**PARAMS, "w": w}, X))(PARAMS["w"])
    np.testing.assert_allclose(jax.jacobian(flat)(PARAMS["w"]), expected, rtol=1e-5, atol=1e-6)


def test_calls_are_inlined_but_for_those_with_a_derivative_rule():
    program = flatten_program(MODEL, PARAMS, X)
    names = [step.primitive.name for step in program.steps]
    assert not {"jit", "pjit", "checkpoint", "remat2", "closed_call"} & set(names)
    assert names.count("custom_jvp_call") == 2  # `ruled` and `relu`


def by_closed_call(params, x):
    program = jax.make_jaxpr(lambda w, x: jnp.sin(x @ w.T))(params["w"], x)
    options = closed_call_p.get_bind_params({"call_jaxpr": program})
    return closed_call_p.bind(params["w"], x, **options)[0]


def by_remat3(params, x):
    with config.remat3(True):
        return jax.checkpoint(lambda w: jnp.sin(x @ w.T))(params["w"])


@pytest.mark.parametrize("fn", [by_closed_call, by_remat3])
def test_calls_are_inlined_by_whatever_name(fn):
    """The first is another primitive since JAX 0.12, and the second will be the only one."""
    assert "dot_general" not in {e.primitive.name for e in jax.make_jaxpr(fn)(PARAMS, X).eqns}
    program = flatten_program(jax.tree_util.Partial(fn), PARAMS, X)
    names = [step.primitive.name for step in program.steps]
    assert names == ["transpose", "dot_general", "sin"]
    read = evaluate(program, [], jax.tree.leaves(PARAMS), [X])
    np.testing.assert_allclose(read(program.output), np.sin(X @ PARAMS["w"].T), rtol=1e-5)


def test_arrays_of_the_model_are_arguments_and_those_it_closes_over_constants():
    program = flatten_program(MODEL, PARAMS, X)
    assert (len(program.frozen), len(program.leaves), len(program.inputs)) == (1, 3, 1)
    assert not {*program.frozen, *program.leaves, *program.inputs} & set(program.constants)
    held = [value for value in program.constants.values() if jnp.shape(value) == HELD.shape]
    np.testing.assert_array_equal(held, [HELD])
    read = evaluate(program, [0.0], jax.tree.leaves(PARAMS), [X])
    np.testing.assert_allclose(read(program.output)[0], PARAMS["b"], rtol=1e-6)


def test_an_output_may_be_an_argument_or_a_constant():
    identity = flatten_program(jax.tree_util.Partial(lambda p, x: x), PARAMS, X)
    np.testing.assert_array_equal(evaluate(identity, [], [0, 0, 0], [X])(identity.output), X)
    constant = flatten_program(jax.tree_util.Partial(lambda p, x: jnp.float32(3)), PARAMS, X)
    assert evaluate(constant, [], [0, 0, 0], [X])(constant.output) == 3


def test_probes_add_to_the_results_of_steps():
    program = flatten_program(MODEL, PARAMS, X)
    (position,) = (i for i, s in enumerate(program.steps) if s.primitive.name == "dot_general")
    shape = program.shape(program.steps[position].results[0])
    leaves = jax.tree.leaves(PARAMS)

    def output(probe):
        return evaluate(program, [2.0], leaves, [X], {position: probe})(program.output)

    z = 2 * X @ PARAMS["w"].T
    probe = jnp.linspace(0, 0.3, 8).reshape(shape)
    expected = jax.nn.relu(jnp.sin(z + probe) * HELD) * PARAMS["scale"] + PARAMS["b"]
    np.testing.assert_allclose(output(probe), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(output(jnp.zeros(shape)), MODEL(PARAMS, X))


def test_what_depends_on_the_inputs_is_reached_from_them():
    def fn(params, x):
        alone = jnp.sin(params["w"])
        return x @ alone.T + params["b"]

    program = flatten_program(jax.tree_util.Partial(fn), PARAMS, X)
    active = reached_from(program, program.inputs)
    by_name = {step.primitive.name: step.results[0] for step in program.steps}
    assert {"sin", "dot_general", "add"} <= set(by_name)
    assert by_name["sin"] not in active
    assert {by_name["dot_general"], by_name["add"], program.output} <= active
    assert reached_from(program, ()) == frozenset()
