"""Kinds of parameters, the layers they form, and where these lie in flat vectors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import ZOO
from chains import chains
from hypothesis import given, settings

from laplace_kit.curv.capture.layers import KINDS
from laplace_kit.curv.capture.layout import to_flat
from laplace_kit.curv.objective import restrict
from laplace_kit.likelihood import Gaussian


def layers_of(model_fn, params, x):
    return restrict(model_fn, params, Gaussian())[0].planned(x).plan.layers


def described(found):
    """Return the kind of every parameter, and of which weight a bias is, by its path."""
    return {
        leaf.path: f"bias of {leaf.weight}" if leaf.weight != leaf.path else leaf.kind
        for leaf in found.leaves
    }


def assert_partition(found):
    """Check that every parameter lies in exactly one slot, of its own leaf."""
    single = [part for layer in found.layers for part in layer.layout.parts]
    slots = [slot for layout in single for slot in layout.slots]
    slots.sort(key=lambda slot: slot.start)
    assert [slot.shape for slot in slots] == [leaf.shape for leaf in found.leaves]
    sizes = [slot.size for slot in slots]
    assert [slot.start for slot in slots] == [0, *itertools.accumulate(sizes)][:-1]
    for layout in single:
        assert layout.size == sum(slot.size for slot in layout.slots)


# --- kinds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", ZOO.values(), ids=ZOO)
def test_kinds_and_pairs_are_recognised(build, x64):
    model = build()
    found = layers_of(model.model_fn, model.params, model.x)
    assert described(found) == model.kinds
    assert_partition(found)
    layouts = [layer.layout for layer in found.layers]
    flat = np.arange(sum(layout.size for layout in layouts), dtype=float)
    join = jax.jit(lambda flat: to_flat(layouts, [layout.to_matrix(flat) for layout in layouts]))
    np.testing.assert_array_equal(join(flat), flat)


@settings(max_examples=40)
@given(chain=chains())
def test_kinds_and_pairs_of_random_architectures_are_recognised(chain):
    with jax.enable_x64(True):
        params, x = chain.arrays()
        found = layers_of(chain, params, x)
    expected = {}
    for i, link in enumerate(chain.links):
        weight = next((kind for kind in link.shapes if kind in ("dense", "convolution")), None)
        for kind in link.shapes:
            paired = kind == "bias" and weight is not None
            expected[f"{i}/{kind}"] = f"bias of {i}/{weight}" if paired else kind
    assert described(found) == expected
    assert_partition(found)


def test_every_kind_has_an_architecture(x64):
    models = [build() for build in ZOO.values()]
    kinds = {leaf.kind for m in models for leaf in layers_of(m.model_fn, m.params, m.x).leaves}
    assert kinds == set(KINDS)


# --- tracing ------------------------------------------------------------------------------------


def counted():
    """Return a model and the list of the shapes that it was traced for."""
    shapes = []

    def model_fn(params, x):
        shapes.append(x.shape)
        return x @ params["w"]

    return model_fn, shapes


def test_a_model_is_traced_once_for_its_structure_and_shapes():
    model_fn, shapes = counted()
    first = layers_of(model_fn, {"w": jnp.ones((3, 2))}, jnp.ones((4, 3)))
    again = layers_of(model_fn, {"w": jnp.zeros((3, 2))}, jnp.zeros((7, 3)))
    specs = layers_of(model_fn, {"w": jnp.ones((3, 2))}, jax.ShapeDtypeStruct((4, 3), jnp.float32))
    assert first is again is specs
    each, once = {(1, 3), (2, 3)}, len(shapes)
    assert set(shapes) == each
    layers_of(model_fn, {"w": jnp.ones((3, 5))}, jnp.ones((4, 3)))
    layers_of(model_fn, {"w": jnp.ones((3, 2), jnp.bfloat16)}, jnp.ones((4, 3)))
    layers_of(model_fn, {"w": jnp.ones((3, 2))}, jnp.ones((4, 5, 3)))
    assert len(shapes) == 4 * once
    assert set(shapes[: 3 * once]) == each
    assert set(shapes[3 * once :]) == {(1, 5, 3), (2, 5, 3)}


def test_a_model_is_traced_anew_under_other_settings_of_precision():
    model_fn, shapes = counted()
    params, x = {"w": jnp.ones((3, 2))}, jnp.ones((4, 3))

    def precision():
        (step,) = layers_of(model_fn, params, x).program.steps
        return step.params["precision"]

    assert precision() is None
    once = len(shapes)
    with jax.default_matmul_precision("highest"):
        assert precision() == (jax.lax.Precision.HIGHEST,) * 2
    assert precision() is None
    with jax.enable_x64(True):
        precision()
    assert len(shapes) == 3 * once


def test_inside_a_program_no_value_is_needed():
    model_fn, shapes = counted()

    @jax.jit
    def num_layers(params, x):
        return len(layers_of(model_fn, params, x).layers)

    assert num_layers({"w": jnp.ones((3, 2))}, jnp.ones((4, 3))) == 1
    assert set(shapes) == {(1, 3), (2, 3)}
