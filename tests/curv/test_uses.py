"""Programs as flat lists of steps: they compute the same, and every use of a leaf is found."""

import jax
import jax.numpy as jnp
import numpy as np

from laplace_kit.curv.uses import apply_step, find_uses, flatten_program


def model_fn(params, x):
    hidden = jax.jit(lambda a: jax.nn.relu(a @ params["w"].T))(x)
    return jnp.sin(hidden) * jnp.broadcast_to(params["scale"], hidden.shape) + params["b"]


PARAMS = {"b": jnp.arange(4.0), "scale": jnp.arange(1.0, 5.0), "w": jnp.arange(12.0).reshape(4, 3)}
X = jnp.linspace(-1, 1, 6).reshape(2, 3)


def test_flat_program_computes_the_model():
    program = flatten_program(model_fn, PARAMS, X)
    values = dict(program.constants)
    values.update(zip(program.leaves, jax.tree.leaves(PARAMS), strict=True))
    values.update(zip(program.inputs, [X], strict=True))
    for step in program.steps:
        operands = [values[o] if isinstance(o, int) else o.val for o in step.operands]
        values.update(zip(step.results, apply_step(step, operands), strict=True))
    np.testing.assert_allclose(values[program.output], model_fn(PARAMS, X), rtol=1e-6)
    assert "jit" not in {step.primitive.name for step in program.steps}


def test_uses_are_followed_through_moves_and_calls():
    program = flatten_program(model_fn, PARAMS, X)
    b, scale, w = find_uses(program)
    names = [[program.steps[use.step].primitive.name for use in uses] for uses in (b, scale, w)]
    assert names == [["add"], ["mul"], ["dot_general"]]
    assert [move.primitive.name for move in w[0].moves] == ["transpose"]
    assert not w[0].repeated
    assert scale[0].repeated


def test_every_use_counts_also_being_returned():
    uses = find_uses(flatten_program(lambda p, x: p["w"] * x + p["w"], {"w": X}, X))
    assert len(uses[0]) == 2
    (returned,) = find_uses(flatten_program(lambda p, x: p["w"].T, {"w": X}, X))
    assert len(returned) == 1
    (unused,) = find_uses(flatten_program(lambda p, x: x, {"w": X}, X))
    assert unused == ()
