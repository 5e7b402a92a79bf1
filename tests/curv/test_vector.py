"""Vectors in either form become free parameters; results have the form of the question."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laplace_kit import tree
from laplace_kit.curv.vector import read_vectors

PARAMS = {"a": jnp.ones((2, 3)), "n": jnp.asarray([4, 5]), "none": None, "z": jnp.asarray(2.0)}
FREE = {"a": PARAMS["a"], "n": None, "none": None, "z": PARAMS["z"]}


@pytest.mark.parametrize("leading", [(), (4,)])
def test_flat_vectors(leading):
    v = np.arange(7.0 * (leading or (1,))[0], dtype=np.float32).reshape(*leading, 7)
    vectors, restore = read_vectors(v, PARAMS, FREE, leading)
    assert jax.tree.structure(vectors) == jax.tree.structure(FREE)
    np.testing.assert_array_equal(vectors["a"], v[..., :6].reshape(*leading, 2, 3))
    np.testing.assert_array_equal(vectors["z"], v[..., 6])
    np.testing.assert_array_equal(restore(vectors), v)


@pytest.mark.parametrize("leading", [(), (4,)])
def test_trees_of_vectors(leading):
    rng = np.random.default_rng(0)
    v = jax.tree.map(lambda leaf: rng.normal(size=(*leading, *leaf.shape)), PARAMS)
    vectors, restore = read_vectors(v, PARAMS, FREE, leading)
    assert jax.tree.structure(vectors) == jax.tree.structure(FREE)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(vectors))
    found = restore(vectors)
    assert jax.tree.structure(found) == jax.tree.structure(PARAMS)
    np.testing.assert_allclose(found["a"], v["a"], rtol=1e-6)
    np.testing.assert_allclose(found["z"], v["z"], rtol=1e-6)
    np.testing.assert_array_equal(found["n"], np.zeros((*leading, 2), int))
    assert found["n"].dtype == PARAMS["n"].dtype


def test_a_bare_array_of_parameters_in_its_shape_or_flat():
    params = jnp.ones((2, 3))
    for shape, leading in (((2, 3), ()), ((6,), ()), ((4, 2, 3), (4,)), ((4, 6), (4,))):
        v = jnp.arange(float(np.prod(shape))).reshape(shape)
        vectors, restore = read_vectors(v, params, params, leading)
        assert vectors.shape == (*leading, 2, 3)
        np.testing.assert_array_equal(vectors.reshape(shape), v)
        np.testing.assert_array_equal(restore(vectors), v)


def test_both_forms_are_the_same_vector():
    v = {"a": jnp.arange(6.0).reshape(2, 3), "n": jnp.zeros(2), "none": None, "z": jnp.asarray(9.0)}
    from_tree, _ = read_vectors(v, PARAMS, FREE, ())
    from_flat, _ = read_vectors(jnp.asarray([0, 1, 2, 3, 4, 5, 9.0]), PARAMS, FREE, ())
    np.testing.assert_array_equal(tree.ravel(from_tree), tree.ravel(from_flat))


@pytest.mark.parametrize(
    ("v", "found"),
    [
        (np.ones(6), r"an array of shape \(6,\)"),
        (np.ones((7, 1)), r"an array of shape \(7, 1\)"),
        (PARAMS | {"z": np.ones(3)}, r"\(3,\)\]"),
        ({"a": np.ones((2, 3))}, r"PyTreeDef\(\{'a': \*\}\)"),
        (None, "PyTreeDef"),
    ],
)
def test_other_forms_are_named(v, found):
    expected = rf"Found as vector .*{found}.*expected a flat array of shape \(7,\) or a pytree"
    with pytest.raises(ValueError, match=expected):
        read_vectors(v, PARAMS, FREE, ())
