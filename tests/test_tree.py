"""Parameters as trees and vectors: the flat order, broadcasts, selections and their inverses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from laplace_kit import tree
from laplace_kit.tree import pytree_dataclass

shapes = st.lists(st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=1, max_size=4)


def params() -> dict:
    return {
        "body": [{"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.asarray([7.0, 8.0, 9.0])}],
        "head": jnp.asarray([[10.0], [11.0], [12.0]]),
        "step": jnp.asarray(3),
    }


def floating() -> dict:
    return {name: leaf for name, leaf in params().items() if name != "step"}


def assert_trees_equal(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


# --- pytree dataclasses ---------------------------------------------------------------------------


@pytree_dataclass(static=("name",))
class Named:
    value: jax.Array
    name: str

    def __post_init__(self):
        if jnp.ndim(self.value) != 1:
            raise ValueError("one axis only")


def test_static_fields_are_structure():
    leaves, structure = jax.tree.flatten(Named(jnp.ones(3), "a"))
    assert len(leaves) == 1
    assert structure == jax.tree.structure(Named(jnp.zeros(3), "a"))
    assert structure != jax.tree.structure(Named(jnp.zeros(3), "b"))
    assert tree.paths({"x": Named(jnp.ones(3), "a")}) == ("x/value",)


def test_rebuilding_does_not_validate_again():
    with pytest.raises(ValueError, match="one axis"):
        Named(jnp.ones((2, 2)), "a")
    stacked = jax.vmap(lambda value: Named(value, "a"))(jnp.ones((2, 3)))
    assert stacked.value.shape == (2, 3)
    assert stacked.name == "a"


def test_instances_are_frozen_and_replaceable():
    named = Named(jnp.ones(3), "a")
    with pytest.raises(AttributeError):
        named.name = "b"
    assert tree.replace(named, name="b").name == "b"
    assert named.name == "a"
    with pytest.raises(TypeError, match="nmae"):
        tree.replace(named, nmae="b")


# --- the flat form --------------------------------------------------------------------------------


@given(shapes)
def test_ravel_has_the_order_of_ravel_pytree(shapes):
    rng = np.random.default_rng(0)
    leaves = {str(i): rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}
    expected, unravel = ravel_pytree(leaves)
    found = tree.ravel(leaves)
    np.testing.assert_array_equal(found, expected)
    assert_trees_equal(tree.unravel(found, leaves), unravel(expected))
    assert tree.size(leaves) == len(expected)


def test_leading_axes_stay():
    like = floating()
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf, 2 * leaf]), like)
    flat = tree.ravel(stacked, num_leading=1)
    one = ravel_pytree(like)[0]
    np.testing.assert_array_equal(flat, jnp.stack([one, -one, 2 * one]))
    assert_trees_equal(tree.unravel(flat, like), stacked)


def test_no_vectors_stay_none():
    like = floating()
    none = tree.ravel(jax.tree.map(lambda leaf: leaf[None][:0], like), num_leading=1)
    assert none.shape == (0, tree.size(like))


def test_mixed_precision_travels_as_the_common_dtype():
    like = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.full(3, 2.0, jnp.float32)}
    assert tree.dtype(like) == jnp.float32
    flat = tree.ravel(like)
    assert flat.dtype == jnp.float32
    assert_trees_equal(tree.unravel(flat, like), like)


def test_unravel_needs_shapes_only():
    like = jax.eval_shape(floating)
    assert_trees_equal(tree.unravel(tree.ravel(floating()), like), floating())


def test_ravel_and_unravel_are_differentiable_and_inverse():
    like = floating()
    flat = tree.ravel(like)

    def loss(flat):
        return jnp.sum(tree.ravel(jax.tree.map(jnp.sin, tree.unravel(flat, like))))

    np.testing.assert_allclose(jax.grad(loss)(flat), jnp.cos(flat), atol=1e-6)


def test_paths_name_every_leaf():
    assert tree.paths(params()) == ("body/0/bias", "body/0/kernel", "head", "step")


def test_tracers_are_not_concrete():
    assert tree.is_concrete(params())
    jax.make_jaxpr(lambda x: [x] * (not tree.is_concrete({"x": x, "y": 1.0})))(1.0)


# --- one value per tree, leaf or parameter --------------------------------------------------------

PER_LEAF = {"body": [{"kernel": 1.0, "bias": 2.0}], "head": 3.0}
PER_GROUP = {"body": 1.5, "head": jnp.asarray(3.0)}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (2, [2.0] * 12),
        (np.float64(0.5), [0.5] * 12),
        (np.arange(12), range(12)),
        (PER_LEAF, [2.0] * 3 + [1.0] * 6 + [3.0] * 3),
        (PER_GROUP, [1.5] * 9 + [3.0] * 3),
        (floating(), [7, 8, 9, 0, 1, 2, 3, 4, 5, 10, 11, 12]),
        ({"body": 1, "head": np.asarray([[4], [5], [6]])}, [1.0] * 9 + [4.0, 5.0, 6.0]),
    ],
)
def test_broadcast_forms(values, expected):
    found = tree.broadcast(values, floating(), name="prior_precision")
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, np.asarray([*expected], np.float32))


def test_broadcast_to_a_bare_array():
    values = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(
        tree.broadcast(values, jnp.ones((2, 3)), name="prior_mean"), jnp.arange(6.0)
    )


def test_broadcast_is_not_less_precise_than_float32():
    like = jnp.ones(3, jnp.bfloat16)
    assert tree.broadcast(1.0, like, name="prior_precision").dtype == jnp.float32


def test_broadcast_is_differentiable():
    def total(values):
        return jnp.sum(tree.broadcast(values, floating(), name="prior_precision") ** 2)

    gradient = jax.jit(jax.grad(total))({"body": 1.5, "head": 2.0})
    assert gradient == {"body": 2 * 1.5 * 9, "head": 2 * 2.0 * 3}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ones(5), [r"shape (5,)", "flat array of shape (12,)"]),
        (np.ones((12, 1)), [r"shape (12, 1)", "repeat the values"]),
        ({"body": 1.0}, ["the parameters' leaves are body/0/bias, body/0/kernel, head"]),
        ({"body": 1.0, "haed": 1.0}, ["'haed'", "head"]),
        ({"body": 1.0, "head": np.ones(3)}, ["head", "shape (3,)", "(3, 1), the leaf's"]),
        ({"body": np.ones(3), "head": 1.0}, ["kernel", "(2, 3), the leaf's"]),
    ],
)
def test_broadcast_names_what_does_not_fit(values, words):
    with pytest.raises(ValueError, match="Found `prior_precision`") as error:
        tree.broadcast(values, floating(), name="prior_precision")
    assert all(word in str(error.value) for word in words)


# --- leaves in common -----------------------------------------------------------------------------


def test_without_shared_leaves_puts_the_owner_s_leaves_back():
    owner = {"large": jnp.arange(3.0), "other": jnp.ones(2)}

    @jax.jit
    def rest_of(owner):
        value = {"kept": [owner["large"], owner["large"]], "new": owner["other"] + 1, "none": None}
        return tree.without_shared_leaves(value, owner)

    rest = rest_of(owner)
    assert len(jax.tree.leaves(rest)) == 1
    whole = rest(owner)
    assert whole["kept"][0] is whole["kept"][1] is owner["large"]
    assert_trees_equal(whole["new"], jnp.full(2, 2.0))
    # With the leaves of another owner of the same form it is that one's.
    assert rest({**owner, "large": jnp.zeros(3)})["kept"][0].sum() == 0
