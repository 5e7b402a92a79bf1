"""Which bias belongs to which weight: the one added to its product alone, entry to entry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from architectures import kinds_of

from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.curv.objective import restrict
from laplace_kit.likelihood import Gaussian

X = np.linspace(-1, 2, 6).reshape(2, 3)

PAIRED = {
    "after": lambda w, b, x: x @ w + b,
    "before": lambda w, b, x: b + x @ w,
    "as_rows": lambda w, b, x: x @ w + b[None],
    "of_one_axis_more": lambda w, b, x: (x @ w)[:, None, :] + b,
    "transposed_both": lambda w, b, x: ((x @ w).T + b[:, None]).T,
    "reshaped_both": lambda w, b, x: (x @ w).reshape(-1, 2, 2) + b.reshape(2, 2),
    "turned_both": lambda w, b, x: (x @ w).reshape(-1, 2, 2).swapaxes(1, 2) + b.reshape(2, 2).T,
    "columns_first_both": lambda w, b, x: (
        jax.vmap(lambda z: jnp.reshape(z, (2, 2), order="F"))(x @ w)
        + jnp.reshape(b, (2, 2), order="F")
    ),
    "flipped_both": lambda w, b, x: (x @ w)[:, ::-1] + b[::-1],
    "inside_calls": lambda w, b, x: jax.jit(jax.checkpoint(lambda z: z + b))(
        jax.jit(jnp.dot)(x, w)
    ),
    "for_single_examples": lambda w, b, x: jax.vmap(lambda a: w.T @ a + b)(x),
    "of_a_sequence": lambda w, b, x: jnp.stack([x, x**2], axis=1) @ w + b,
    "of_heads": lambda w, b, x: jnp.einsum("ni,iho->nho", x, w.reshape(3, 2, 2)) + b.reshape(2, 2),
    "of_groups": lambda w, b, x: (
        jnp.einsum("ngi,gio->ngo", jnp.stack([x, x**2], axis=1), w.reshape(2, 3, 2))
        + b.reshape(2, 2)
    ),
    "first_of_two": lambda w, b, x: x @ w + b + jnp.ones(4),
}

UNPAIRED = {
    "product_used_twice": lambda w, b, x: (lambda z: (z + b) * z)(x @ w),
    "product_also_returned": lambda w, b, x: (lambda z: jnp.stack([z, z + b], 1))(x @ w),
    "in_another_order": lambda w, b, x: x @ w + b[::-1],
    "transposed": lambda w, b, x: (x @ w).reshape(-1, 2, 2) + b.reshape(2, 2).T,
    "columns_first": lambda w, b, x: x @ w + jnp.reshape(b.reshape(2, 2), 4, order="F"),
    "subtracted": lambda w, b, x: x @ w - b,
    "subtracted_from": lambda w, b, x: b - x @ w,
    "negated": lambda w, b, x: x @ w + -b,
    "scaled_before": lambda w, b, x: 2 * (x @ w) + b,
    "in_integers_before": lambda w, b, x: (x @ w).astype(int) + b,
    "after_an_activation": lambda w, b, x: jnp.tanh(x @ w) + b,
    "spread_by_the_addition": lambda w, b, x: (x @ w)[:, :, None] + b,
    "spread_over_copies": lambda w, b, x: (x @ w)[:, None] + jnp.broadcast_to(b, (3, 4)),
    "after_a_sum": lambda w, b, x: x @ w + x @ jnp.ones((3, 4)) + b,
    "at_positions": lambda w, b, x: jnp.stack([x] * 4, axis=1) @ w + b[:, None],
    "before_the_product": lambda w, b, x: (x[:, :1] + b) @ jnp.eye(4) + x @ w,
    "of_part_of_the_product": lambda w, b, x: (x @ w)[:, :2] + b.reshape(2, 2)[:, 0],
    "of_the_gradient_stopped": lambda w, b, x: jax.lax.stop_gradient(x @ w) + b,
}


def layouts_of(fn):
    """Return the layouts of a model with a weight of 12 entries that follow the bias's four."""
    params = {"b": jnp.ones(4), "w": jnp.ones((3, 4))}
    objective, _ = restrict(lambda p, x: fn(p["w"], p["b"], x), params, Gaussian())
    return [layer.layout for layer in objective.planned(X).plan.layers.layers]


@pytest.mark.parametrize("fn", PAIRED.values(), ids=PAIRED)
def test_a_bias_that_is_added_to_one_product_alone_is_its_last_row(fn):
    (layout,) = layouts_of(fn)
    assert (layout.weight.start, layout.bias.start) == (4, 0)
    groups, width, out = layout.shape
    assert (groups * (width - 1) * out, groups * out) == (12, 4)


@pytest.mark.parametrize("fn", UNPAIRED.values(), ids=UNPAIRED)
def test_any_other_bias_is_a_layer_of_its_own(fn):
    layouts = layouts_of(fn)
    assert sorted(layout.weight.start for layout in layouts) == [0, 4]
    assert [layout.bias for layout in layouts] == [None, None]


@pytest.mark.parametrize("forms", [PAIRED, UNPAIRED], ids=["paired", "unpaired"])
def test_rows_of_all_these_are_the_models_jacobian(forms, x64):
    def model_fn(params, x):
        outputs = [
            jnp.sin(fn(own["w"], own["b"], x)).reshape(len(x), -1)
            for fn, own in zip(forms.values(), params, strict=True)
        ]
        return jnp.stack([f @ jnp.linspace(1, 2, f.shape[1]) for f in outputs], axis=1)

    rng = np.random.default_rng(0)
    params = [{"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4)} for _ in forms]
    objective, _ = restrict(model_fn, params, Gaussian())
    dense = jax.jit(lambda objective, x: jacobian(objective, x)[1].to_dense())(objective, X)
    jac = jax.jit(jax.jacobian(model_fn))(params, X)
    twins.assert_close(
        dense, np.concatenate([leaf.reshape(2, len(forms), -1) for leaf in jax.tree.leaves(jac)], 2)
    )


def test_a_bias_is_paired_through_a_change_of_precision():
    def model_fn(params, x):
        return (x.astype("bfloat16") @ params["w"]).astype("float32") + params["b"]

    params = {"w": jnp.ones((3, 4), "bfloat16"), "b": jnp.ones(4)}
    assert kinds_of(model_fn, params, X) == {"w": "dense", "b": "bias of w"}


def test_a_bias_of_one_entry_may_lose_its_axis():
    params = {"w": jnp.ones(3), "b": jnp.ones(1)}
    kinds = kinds_of(lambda p, x: x @ p["w"] + p["b"].squeeze(), params, X)
    assert kinds == {"w": "dense", "b": "bias of w"}


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_bias_spread_over_outputs_is_none_of_the_products(shape):
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(shape)}
    kinds = kinds_of(lambda p, x: x @ p["w"] + p["b"], params, X)
    assert kinds == {"w": "dense", "b": "bias"}


def test_the_first_of_two_biases_is_the_products():
    params = {"w": jnp.ones((3, 4)), "a": jnp.ones(4), "b": jnp.ones(4)}
    kinds = kinds_of(lambda p, x: x @ p["w"] + p["b"] + p["a"], params, X)
    assert kinds == {"w": "dense", "b": "bias of w", "a": "bias"}


def test_a_bias_of_two_products_is_shared():
    params = {"v": jnp.ones((3, 4)), "w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    kinds = kinds_of(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) * (x @ p["v"] + p["b"]), params, X)
    assert kinds == {"v": "dense", "w": "dense", "b": "shared"}


def test_a_bias_of_looked_up_rows_is_a_layer_of_its_own():
    params = {"table": jnp.ones((5, 4)), "b": jnp.ones(4)}
    kinds = kinds_of(lambda p, x: p["table"][x] + p["b"], params, np.zeros((2, 3), int))
    assert kinds == {"table": "embedding", "b": "bias"}


@pytest.mark.parametrize(
    ("order", "num_biases", "paired"),
    [((0, 1), 2, True), ((1, 0), 2, False), ((0, 0), 1, False), ((0, 1), 3, False)],
)
def test_stacked_biases_belong_to_stacked_weights_slice_by_slice(order, num_biases, paired):
    def model_fn(params, x):
        h = x
        for w, i in zip(range(2), order, strict=True):
            h = jnp.tanh(h @ params["w"][w] + params["b"][i])
        return h + params["b"][2] if num_biases == 3 else h

    params = {"w": jnp.ones((2, 3, 3)), "b": jnp.ones((num_biases, 3))}
    kinds = kinds_of(model_fn, params, X)
    assert kinds["w"] == "dense"
    assert (kinds["b"] == "bias of w") == paired
