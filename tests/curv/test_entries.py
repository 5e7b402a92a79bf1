"""Some entries of a leaf free: the same model as with the whole leaf put together, for less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from architectures import NUM, ZOO, gaussian

from laplace_kit import tree
from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.curv.entries import call_with_entries
from laplace_kit.curv.ggn import GGNOperator
from laplace_kit.curv.objective import restrict
from laplace_kit.likelihood import Categorical, Gaussian
from laplace_kit.selection import select
from laplace_kit.tree import as_pytree_function


def some_entries(params, num=1):
    """Return a mask of a few entries of every leaf that has more."""
    rng = np.random.default_rng(3)

    def of_leaf(leaf):
        mask = np.zeros(leaf.shape, bool)
        mask.ravel()[rng.choice(leaf.size, min(num, leaf.size), replace=False)] = True
        return mask

    return jax.tree.map(of_leaf, params)


@jax.jit
def linearised(model_fn, selection, free, x, u):
    """Return outputs, and a product with the transposed Jacobian, in two ways."""

    def put_together(free):
        return model_fn(selection.insert(free), x)

    def by_entries(free):
        return call_with_entries(model_fn, selection, free, x)

    results = []
    for fn in (put_together, by_entries):
        outputs, pull = jax.vjp(fn, free)
        results.append((outputs, tree.ravel(pull(u)[0])))
    return results


def assert_same(model_fn, params, x, subset):
    free, selection = select(params, subset)
    free = jax.tree.map(lambda leaf: leaf + 0.3, free)
    outputs = jax.eval_shape(model_fn, params, x)
    u = gaussian(8)(*outputs.shape)
    (f, pulled), (g, found) = linearised(as_pytree_function(model_fn), selection, free, x, u)
    twins.assert_close(g, f)
    twins.assert_close(found, pulled)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "contractions", "lookups", "low_rank_adapters"])
def test_a_model_of_entries_is_the_model(name, x64):
    model = ZOO[name]()
    assert_same(model.model_fn, model.params, model.x, some_entries(model.params))


def test_kernels_of_convolutions_flipped_grouped_and_moved(x64):
    def model_fn(params, x):
        numbers = ("NCHW", "HWIO", "NHWC")
        kernel = params["kernel"].transpose(1, 2, 3, 0)[::-1]
        h = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=2
        )
        return jnp.tanh(h).reshape(len(x), -1)

    normal = gaussian(0)
    params = {"kernel": normal(8, 2, 3, 1)}
    subset = np.sort(np.random.default_rng(0).choice(48, 7, replace=False))
    assert_same(model_fn, params, normal(NUM, 2, 2, 3), subset)
    program = jax.make_jaxpr(call_with_entries)(
        as_pytree_function(model_fn), *reversed(select(params, subset)), normal(NUM, 2, 2, 3)
    )
    assert "scatter[" not in str(program)


def test_leaves_used_twice_and_in_one_product(x64):
    def tied(params, x):
        h = jnp.tanh(x @ params["w"]) @ params["w"].T
        return h @ (params["a"] @ params["b"]) @ (params["c"].T @ params["c"])

    normal = gaussian(0)
    params = {"w": normal(3, 4), "a": normal(3, 2), "b": normal(2, 3), "c": normal(2, 3)}
    assert_same(tied, params, normal(NUM, 3), some_entries(params, 2))


# --- cost ---------------------------------------------------------------------------------------


def wide(params, x):
    return jnp.tanh(x @ params["wide"]) @ params["head"]


WIDE = {"wide": (200, 1000), "head": (1000, 3)}


def temporary_bytes(fn, *args):
    return jax.jit(fn).lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_rows_products_and_gradients_of_entries_are_not_of_the_size_of_the_leaf():
    normal = gaussian(0)
    params = {name: normal(*shape) for name, shape in WIDE.items()}
    subset = np.sort(np.random.default_rng(0).choice(200_000, 50, replace=False)) + 3000
    x, y = normal(8, 200), jnp.zeros(8, int)
    objective, _ = restrict(wide, params, Categorical(), subset)
    activations = 8 * 1000 * 4
    ggn = GGNOperator(objective.model_fn, objective.params, (x, y), objective.likelihood)
    leaf = 200 * 1000 * 4
    assert temporary_bytes(lambda o, x: jacobian(o, x)[1].squared_sum(), objective, x) < leaf
    assert temporary_bytes(lambda op, v: op.mv(v), ggn, jnp.ones(50)) < 8 * activations


@pytest.mark.accelerator
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_entries_are_those_of_the_whole_leaf(dtype):
    with twins.precision(dtype):
        model = ZOO["mlp"]()
        numbers = np.asarray([1, 5, 9, 14, 22, 31])
        rows = {
            subset is None: jax.jit(lambda o, x: jacobian(o, x)[1].to_dense())(
                restrict(model.model_fn, model.params, Gaussian(), subset)[0], model.x
            )
            for subset in (None, numbers)
        }
        assert rows[False].dtype == dtype
        twins.assert_close(rows[False], rows[True][:, :, numbers], dtype=dtype)
