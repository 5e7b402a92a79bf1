"""Coverage lists the kind of every parameter, the method for its rows, and its partner."""

import jax
import jax.numpy as jnp
import pytest
from architectures import ZOO, kinds_of

from laplace_kit import curv
from laplace_kit.curv.capture.coverage import METHODS, LeafCoverage, coverage_of
from laplace_kit.curv.capture.layers import KINDS
from laplace_kit.curv.objective import restrict
from laplace_kit.likelihood import Categorical


def covered(name):
    model = ZOO[name]()
    return curv.coverage(model.model_fn, model.params, model.x)


@pytest.mark.parametrize("build", ZOO.values(), ids=ZOO)
def test_every_parameter_is_told_of_once_in_flat_order(build, x64):
    model = build()
    found = curv.coverage(model.model_fn, model.params, model.x)
    leaves = jax.tree.leaves(model.params)
    assert [leaf.shape for leaf in found] == [leaf.shape for leaf in leaves]
    assert len(found) == len(leaves)
    assert kinds_of(model.model_fn, model.params, model.x) == model.kinds


def test_every_kind_and_every_method_occurs_in_some_architecture(x64):
    leaves = [leaf for name in ZOO for leaf in covered(name)]
    assert {leaf.kind for leaf in leaves} == set(KINDS)
    assert {leaf.method for leaf in leaves} == set(METHODS)
    methods = {(leaf.kind, leaf.method) for leaf in leaves if leaf.partner is None}
    assert methods == {
        ("dense", "factors"),
        ("convolution", "factors"),
        ("embedding", "lookup"),
        *((kind, "exact rows") for kind in ("bias", "scale", "shared", "unused", "other")),
    }
    assert {leaf.method for leaf in leaves if leaf.partner} == {"factors"}


def test_the_table_has_a_line_for_every_parameter(x64):
    lines = str(covered("mlp")).splitlines()
    assert lines == [
        "parameter  shape   kind   method      with",
        "b1         (4,)    bias   factors     w1",
        "gain       (4,)    scale  exact rows",
        "w1         (3, 4)  dense  factors",
        "w2         (3, 4)  dense  factors",
    ]


def test_a_parameter_is_found_by_its_path(x64):
    found = covered("nnx_convnet")
    path, weight = "layers/0/bias", "layers/0/kernel"
    assert found[path] == LeafCoverage(path, (4,), "bias", "factors", weight)
    assert found[weight] == LeafCoverage(weight, (3, 2, 1, 4), "convolution", "factors", None)
    with pytest.raises(KeyError, match=r"Found no parameter 'layers/1' among \['layers/0/bias'"):
        found["layers/1"]


def test_shapes_of_inputs_are_enough_and_integers_are_not_listed():
    params = {"w": jnp.ones((3, 2)), "steps": jnp.asarray(7)}
    x = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    found = curv.coverage(lambda p, x: x @ p["w"] * p["steps"], params, x)
    assert [leaf.path for leaf in found] == ["w"]
    assert found["w"].kind == "dense"


def test_of_an_objective_only_free_parameters_are_told_of(x64):
    model = ZOO["mlp"]()
    objective, _ = restrict(model.model_fn, model.params, Categorical(), lambda path: path != "w1")
    found = coverage_of(objective.planned(model.x).plan.layers)
    assert [(leaf.path, leaf.kind, leaf.partner) for leaf in found] == [
        ("b1", "bias", None),  # its weight is frozen
        ("gain", "scale", None),
        ("w2", "dense", None),
    ]


def test_summary_counts_parameters_by_road():
    model_fn = lambda params, x: jnp.tanh(x @ params["w"]) @ params["w"] @ params["out"]  # noqa: E731
    params = {"out": jnp.ones((3, 2)), "w": jnp.ones((3, 3))}
    found = curv.coverage(model_fn, params, jnp.ones((4, 3)))
    assert found.summary() == "6 by factors, 9 by exact rows"
