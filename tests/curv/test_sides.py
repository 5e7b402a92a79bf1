"""The form of each factor by its width, and the number of its entries."""

import math

import jax.numpy as jnp
import pytest

from laplace_kit.curv.objective import restrict
from laplace_kit.curv.sides import Side, Widths, forms, num_entries, sides, sketch_size


@pytest.mark.parametrize(
    ("side", "widths", "form", "entries"),
    [
        (Side(2, 10), Widths(), "full", 200),
        (Side(2, 10), Widths(10, 3), "full", 200),
        (Side(2, 10), Widths(9), "diagonal", 20),
        (Side(2, 10), Widths(9, 3), "low_rank", 2 * 10 * 7),
        (Side(2, 10), Widths(9, 8), "low_rank", 2 * 10 * 11),
        (Side(2, 10, 4), Widths(9, 3), "low_rank", 2 * 10 * 7),
        (Side(2, 10, 10), Widths(9, 3), "diagonal", 20),  # the other side has it
        (Side(2, 10, math.inf), Widths(9, 3), "diagonal", 20),
    ],
)
def test_the_form_follows_from_the_width(side, widths, form, entries):
    assert side.form(widths) == form
    assert side.num_entries(widths) == entries


def test_a_sketch_is_never_larger_than_the_factor():
    assert sketch_size(16, 100) == 32
    assert sketch_size(16, 20) == 20


def model_fn(params, tokens):
    h = params["table"][tokens].sum(axis=1)
    h = jnp.tanh(h @ params["in"] + params["bias"])
    return jnp.tanh(h @ params["up"]) @ params["down"] * params["scale"]


def test_one_side_of_a_layer_is_of_low_rank_at_most():
    shapes = {"table": (30, 9), "in": (9, 8), "bias": (8,), "up": (8, 20), "down": (20, 12)}
    params = {name: jnp.ones(shape) for name, shape in (shapes | {"scale": (12,)}).items()}
    objective, _ = restrict(model_fn, params)
    layers = objective.planned(jnp.zeros((2, 3), int)).plan.layers
    names = [leaf.path for leaf in layers.leaves if leaf.kind != "bias"]
    found = dict(zip(names, (forms(layer, Widths(8, 2)) for layer in layers.layers), strict=True))
    assert found == {
        "table": ("diagonal", "diagonal"),  # rows of a lookup have priors of their own
        "in": ("low_rank", "full"),
        "up": ("full", "low_rank"),
        "down": ("low_rank", "diagonal"),
        "scale": ("full", "low_rank"),
    }
    narrow = {
        name: forms(layer, Widths(8)) for name, layer in zip(names, layers.layers, strict=True)
    }
    assert not any("low_rank" in pair for pair in narrow.values())
    total = sum(side.num_entries(Widths(8, 2)) for side in sides(layers))
    assert num_entries(layers, Widths(8, 2)) == total + 30  # and the inputs of the lookup
