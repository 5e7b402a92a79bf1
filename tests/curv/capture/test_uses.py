"""Programs as flat lists of steps: they compute the same, and every use of a leaf is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from laplace_kit.curv.capture.uses import (
    as_moves,
    evaluate,
    find_uses,
    flatten_program,
    moves_entries,
    reached_from,
)


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


def primitives(program, uses):
    """Return by leaf the names of the operations that use it."""
    names = [step.primitive.name for step in program.steps] + ["output"]
    return [[names[use.step] for use in found] for found in uses]


def uses_of(fn, *params, x=X):
    """Return the operations that use each parameter of `fn(*params, x)`, and its uses."""
    program = flatten_program(jax.tree_util.Partial(lambda p, x: fn(*p, x)), params, x)
    uses = find_uses(program)
    return primitives(program, uses), uses


# --- the program --------------------------------------------------------------------------------


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

    expected = jax.jit(jax.jacobian(lambda w: MODEL({**PARAMS, "w": w}, X)))(PARAMS["w"])
    found = jax.jit(jax.jacobian(flat))(PARAMS["w"])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_calls_are_inlined_but_for_those_with_a_derivative_rule():
    program = flatten_program(MODEL, PARAMS, X)
    names = [step.primitive.name for step in program.steps]
    assert not {"jit", "pjit", "checkpoint", "remat2", "closed_call"} & set(names)
    assert names.count("custom_jvp_call") == 2  # `ruled` and `relu`


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


# --- uses ---------------------------------------------------------------------------------------


def test_uses_are_followed_through_moves_and_calls():
    program = flatten_program(MODEL, PARAMS, X)
    b, scale, w = uses = find_uses(program)
    assert primitives(program, uses) == [["add"], ["mul"], ["dot_general"]]
    assert [move.primitive.name for move in w[0].moves] == ["transpose"]
    assert (b[0].repeated, scale[0].repeated, w[0].repeated) == (False, True, False)
    assert w[0].operand == 1


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda w, x: w * x + w, ["mul", "add"]),
        (lambda w, x: w * w, ["mul", "mul"]),
        (lambda w, x: w.T, ["output"]),
        (lambda w, x: w + w.T.T, ["add", "add"]),
        (lambda w, x: x, []),
        (lambda w, x: x + jax.lax.stop_gradient(w), ["stop_gradient"]),
        (lambda w, x: x + ruled(w), ["custom_jvp_call"]),
        (lambda w, x: x + w.astype(int), ["convert_element_type"]),
        (lambda w, x: x + w.astype(jnp.complex64).real, ["convert_element_type"]),
        (lambda w, x: x + w.astype(jnp.float16), ["add"]),
        (lambda w, x: jax.lax.cond(True, lambda: x + w, lambda: x), ["cond"]),
        (lambda w, x: (w.sum(), x + w)[1], ["reduce_sum", "add"]),  # also what is not returned
    ],
)
def test_every_use_counts(fn, expected):
    (found,), _ = uses_of(fn, X)
    assert found == expected


def test_operations_on_one_array_move_entries():
    program = flatten_program(MODEL, PARAMS, X)
    names = {step.primitive.name for step in program.steps if moves_entries(step)}
    assert names == {"broadcast_in_dim", "convert_element_type", "transpose"}


def parts_of(fn, *params):
    _, uses = uses_of(fn, *params)
    return [[use.part for use in found] for found in uses]


def test_slices_along_the_first_axis_are_uses_of_parts():
    w = jnp.ones((3, 2, 2))
    assert parts_of(lambda w, x: jnp.sin(w[1]) + jnp.cos(w[2].T), w) == [[1, 2]]
    assert parts_of(lambda w, x: jnp.sin(w[1:2, ::-1]) + jnp.sin(w), w) == [[1, None]]
    assert parts_of(lambda w, x: w[:2].sum() + w[:, :1].sum(), w) == [[None, None]]
    assert parts_of(lambda w, x: jnp.sin(w.T[1]), w) == [[None]]
    cut = (jnp.unstack, lambda w: [part[0] for part in jnp.split(w, 3)], list)
    for parts in cut:  # a part that is not used counts for none
        assert parts_of(lambda w, x, parts=parts: jnp.sin(parts(w)[0]), w) == [[0]]
        used = parts_of(lambda w, x, parts=parts: sum(map(jnp.sin, parts(w)[::-1])), w)
        assert used == [[2, 1, 0]]
    for fn in (lambda w: jnp.unstack(w, axis=1)[1], lambda w: jnp.split(w, [1])[1]):
        assert set(parts_of(lambda w, x, fn=fn: jnp.sin(fn(w)), w)[0]) <= {None, 0}
        model = jax.tree_util.Partial(lambda w, x, fn=fn: jnp.sin(fn(w)))
        program = flatten_program(model, w, X)
        read = evaluate(program, [], [w + jnp.arange(2.0)], [X])
        np.testing.assert_allclose(read(program.output), jnp.sin(fn(w + jnp.arange(2.0))))


def test_scans_over_parameters_are_unrolled():
    def fn(w, b, x):
        def step(h, own):
            return jnp.tanh(h @ own[0] + own[1]), h.sum()

        return jax.lax.scan(step, x, (w.swapaxes(1, 2), b), reverse=True)

    w, b, x = jnp.ones((3, 2, 2)), jnp.arange(3.0), jnp.ones((1, 2))
    for part in (0, 1):
        model = jax.tree_util.Partial(lambda p, x, part=part: fn(*p, x)[part])
        program = flatten_program(model, (w, b), x)
        assert "scan" not in {step.primitive.name for step in program.steps}
        read = evaluate(program, [], [w, b], [x])
        np.testing.assert_allclose(read(program.output), model((w, b), x), rtol=1e-6)
        assert [use.part for use in find_uses(program)[1]] == [2, 1, 0]


@pytest.mark.parametrize(
    "fn",
    [
        lambda w, x: jax.lax.scan(lambda h, _: (h + w, None), x, None, 2)[0],
        lambda w, x: jax.lax.scan(lambda h, a: (h * a, None), w, x)[0],
        lambda w, x: jax.lax.scan(lambda h, a: (h * a.sum(), None), x[0], 2 * w)[0],
    ],
)
def test_scans_over_anything_else_are_left_whole(fn):
    w = jnp.ones(3)
    program = flatten_program(jax.tree_util.Partial(fn), w, X)
    assert "scan" in {step.primitive.name for step in program.steps}


MOVED = {
    "reshape": lambda w: w.reshape(4, 3),
    "expand": lambda w: w[:, None, :, :, None],
    "squeeze": lambda w: w[:, :, None].squeeze(2),
    "transpose": lambda w: w.transpose(2, 0, 1),
    "flip": lambda w: w[::-1, :, ::-1],
    "columns_first": lambda w: jnp.reshape(w, (3, 4), order="F"),
    "dimensions": lambda w: jax.lax.reshape(w, (4, 3), dimensions=(2, 0, 1)),
    "in_another_dtype": lambda w: w.astype(jnp.float16).astype(jnp.float32).T,
    "several": lambda w: jnp.flip(jnp.moveaxis(w, 0, 2).reshape(3, 4).T, 0)[None],
}


@pytest.mark.parametrize("fn", MOVED.values(), ids=MOVED)
def test_moves_do_to_an_array_what_the_steps_do(fn):
    w = np.arange(12.0, dtype=np.float32).reshape(2, 2, 3)
    program = flatten_program(jax.tree_util.Partial(lambda w, x: jnp.sin(fn(w))), w, X)
    ((use,),) = find_uses(program)
    assert program.steps[use.step].primitive.name == "sin"
    moved = w
    for move in as_moves(use.moves, program):
        moved = move.apply(moved, moved.ndim)
    np.testing.assert_array_equal(moved, fn(w))


# --- operations that leave values as they are ---------------------------------------------------

MESH, EXPLICIT = (
    jax.make_mesh((1,), ("a",), axis_types=(kind,)) for kind in (AxisType.Auto, AxisType.Explicit)
)
BY_COLUMNS = PartitionSpec(None, "a")
IDENTITIES = {
    "copy": jnp.copy,
    "name": lambda w: checkpoint_name(w, "w"),
    "optimization_barrier": jax.lax.optimization_barrier,
    "device_put": lambda w: jax.device_put(w, NamedSharding(MESH, BY_COLUMNS)),
    "sharding_constraint": lambda w: jax.lax.with_sharding_constraint(
        w, NamedSharding(MESH, BY_COLUMNS)
    ),
    "reshard": lambda w: jax.sharding.reshard(w, NamedSharding(EXPLICIT, PartitionSpec())),
    "layout_constraint": lambda w: with_layout_constraint(w, Layout((0, 1))),
    "reduce_precision": lambda w: jax.lax.reduce_precision(w, 8, 10),
    "convert_element_type": lambda w: w.astype(jnp.float16),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_what_leaves_values_as_they_are_is_seen_through(name):
    def fn(w, x):
        return x @ IDENTITIES[name](w).T

    (found,), ((use,),) = uses_of(fn, jnp.ones((4, 3)))
    assert (found, use.operand) == (["dot_general"], 1)
    assert [step.primitive.name for step in use.moves] == [name, "transpose"]


def test_identities_on_several_arrays_are_taken_one_by_one():
    """Neither do the inputs come to depend on parameters, nor parameters on inputs."""
    for identity in (jax.lax.optimization_barrier, lambda a: jax.device_put(a, jax.devices()[0])):

        def fn(params, x, identity=identity):
            params, x = identity((params, x))
            return x @ params["w"].T * params["scale"] + params["b"]

        program = flatten_program(jax.tree_util.Partial(fn), PARAMS, X)
        uses = find_uses(program)
        assert primitives(program, uses) == [["add"], ["mul"], ["dot_general"]]
        product = program.steps[uses[2][0].step]
        active = reached_from(program, program.inputs)
        assert [operand in active for operand in product.operands] == [True, False]
        read = evaluate(program, [], jax.tree.leaves(PARAMS), [X])
        np.testing.assert_allclose(read(program.output), fn(PARAMS, X), rtol=1e-6)


@pytest.mark.parametrize("name", ["sharding_constraint", "convert_element_type"])
def test_parts_are_found_behind_what_leaves_values_as_they_are(name):
    def fn(w, x):
        stack = IDENTITIES[name](w.reshape(3, 9)).astype(x.dtype)
        return jax.lax.scan(lambda h, own: (jnp.tanh(h @ own.reshape(3, 3)), None), x, stack)[0]

    def unrolled(w, x):
        w = IDENTITIES[name](w.reshape(3, 3, 3).reshape(3, 9))
        return sum(jnp.sin(w[i]).sum() for i in range(3))

    (found,), uses = uses_of(fn, jnp.ones((3, 9)))
    assert (found, [use.part for use in uses[0]]) == (["dot_general"] * 3, [0, 1, 2])
    (found,), uses = uses_of(unrolled, jnp.ones((3, 3, 3)))  # where moved, the leaf as a whole
    assert (found, [use.part for use in uses[0]]) == (["slice"] * 3, [None] * 3)
