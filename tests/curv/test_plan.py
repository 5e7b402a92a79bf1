"""Plans: what they know of a model, when two are the same, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from laplace_kit.curv.objective import restrict
from laplace_kit.curv.plan import make_plan

PARAMS = {"w": np.ones((3, 4), np.float32), "b": np.zeros(4, np.float32)}
X = np.ones((7, 3), np.float32)


def model_fn(params, x):
    return jnp.tanh(x @ params["w"] + params["b"]).reshape(-1, 2, 2)


MODEL = Partial(model_fn)


def test_outputs_and_bytes_of_one_example():
    plan = make_plan(MODEL, PARAMS, X)
    assert (plan.output.shape, plan.output.dtype, plan.num_outputs) == ((2, 2), jnp.float32, 4)
    assert plan.outputs(X).shape == (7, 2, 2)
    assert [leaf.shape for leaf in jax.tree.leaves(plan.one)] == [(1, 3)]
    # Three inputs; a product, a sum, its hyperbolic tangent, and that in another shape.
    assert plan.example_bytes == 4 * (3 + 4 * 4)
    assert [leaf.kind for leaf in plan.layers.leaves] == ["bias", "dense"]


def test_values_and_numbers_of_examples_make_no_other_plan():
    plan, again = make_plan(MODEL, PARAMS, X), make_plan(MODEL, PARAMS, 2 * X[:2])
    of_shapes = make_plan(MODEL, *jax.eval_shape(lambda *args: args, PARAMS, X))
    assert plan == again == of_shapes
    assert hash(plan) == hash(again)
    assert plan.suits(X[:1])


def test_shapes_dtypes_models_and_settings_do():
    plan, wide = make_plan(MODEL, PARAMS, X), np.ones((7, 5, 3), np.float32)
    others = [
        make_plan(MODEL, PARAMS, X.astype(np.int32)),
        make_plan(Partial(lambda params, x: model_fn(params, x)), PARAMS, X),
        make_plan(MODEL, jax.tree.map(lambda leaf: leaf.astype(np.float16), PARAMS), X),
    ]
    with jax.default_matmul_precision("highest"):
        assert not plan.suits(X)
        others.append(make_plan(MODEL, PARAMS, X))
    assert all(plan != other for other in others)
    assert not plan.suits(wide)
    assert not plan.suits(X.astype(np.int32))
    assert not plan.suits({"x": X})


def test_a_planned_objective_is_handed_on_and_another_model_is_not_planned():
    objective = restrict(model_fn, PARAMS)[0].planned(X)
    assert objective.planned(X[:3]) is objective
    leaves, structure = jax.tree.flatten(objective)
    assert jax.tree.unflatten(structure, leaves).plan is objective.plan
    assert objective.with_model(MODEL).plan is None
    limited = objective.within(batch_size=3).within(memory=1000)
    assert (limited.limits.batch_size, limited.limits.memory) == (3, 1000)
    assert limited.plan is objective.plan
    with pytest.raises(ValueError, match="memory_limit=0, expected a positive number"):
        objective.within(memory=0)


def test_the_model_runs_for_one_and_two_examples_once():
    shapes = []

    def counted(params, x):
        shapes.append(x.shape)
        return model_fn(params, x)

    objective, _ = restrict(counted, PARAMS)
    for _ in range(2):
        objective.planned(X)
    assert sorted(shapes) == [(1, 3), (2, 3)]


@pytest.mark.parametrize(
    ("fn", "x", "message"),
    [
        (lambda params, x: {"a": x}, X, r"\{'a': \(1, 3\)\}, expected one array"),
        (lambda params, x: x.sum(), X, r"shape \(\) for 2 examples, expected a leading axis of 2"),
        (lambda params, x: x[:1], X, r"shape \(1, 3\) for 2 examples"),
        (lambda params, x: x @ params["w"], X[0], "of a single example"),
        (lambda params, x: x @ params["w"], X[:, :2], r"examples of shape \(2,\).*model refuses"),
    ],
    ids=["several", "none", "fewer", "single", "refused"],
)
def test_what_is_no_model_of_batches_is_refused(fn, x, message):
    with pytest.raises(ValueError, match=message):
        make_plan(Partial(fn), PARAMS, x)
