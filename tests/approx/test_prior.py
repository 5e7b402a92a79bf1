"""One precision for each free parameter, from any of its forms; anything else is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from laplace_kit.approx.kronecker import KroneckerStructure
from laplace_kit.approx.prior import expand_precision, structure_for
from laplace_kit.selection import select

PARAMS = {"bias": jnp.zeros(2), "weight": jnp.zeros((3, 2))}
FLAT = np.arange(1.0, 9.0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.5, np.full(8, 0.5)),
        ({"bias": 2.0, "weight": 0.1}, np.repeat([2.0, 0.1], [2, 6])),
        ({"bias": FLAT[:2], "weight": FLAT[2:].reshape(3, 2)}, FLAT),
        (FLAT, FLAT),
    ],
    ids=["scalar", "per_leaf", "pytree", "flat"],
)
def test_every_form_is_one_value_for_each_parameter(given, expected):
    free, selection = select(PARAMS)
    found = expand_precision(given, free, selection, jnp.dtype("float32"))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("worst", [0.0, -2.0, np.inf, np.nan])
def test_what_is_no_precision_is_refused(worst):
    free, selection = select(PARAMS)
    with pytest.raises(ValueError, match="expected positive, finite numbers"):
        expand_precision(np.append(FLAT[:-1], worst), free, selection, jnp.dtype("float32"))


def test_frozen_parameters_have_none():
    free, selection = select(PARAMS, lambda path: path == "bias")
    found = expand_precision({"bias": 3.0, "weight": 0.1}, free, selection, jnp.dtype("float32"))
    np.testing.assert_array_equal(found, np.full(2, 3.0, np.float32))


@pytest.mark.parametrize(
    ("given", "shared"),
    [
        (0.5, True),
        ({"bias": 2.0, "weight": np.float32(0.1)}, True),
        ({"bias": jnp.ones(2), "weight": 0.1}, False),
        (FLAT, False),
    ],
    ids=["scalar", "per_leaf", "pytree", "flat"],
)
def test_the_form_tells_whether_leaves_share_their_precision(given, shared):
    structure = KroneckerStructure((), corrected=False)
    found = structure_for(structure, given, jnp.ones(8))
    assert (found is structure) == shared
