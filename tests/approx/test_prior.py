"""One precision for each free parameter, from any of its forms; anything else is refused."""

import exact
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit.approx.diagonal import DiagonalStructure
from laplace_kit.approx.kronecker import KroneckerStructure
from laplace_kit.approx.prior import Prior, expand_precision, structure_for
from laplace_kit.curv.trained_model import TrainedModel
from laplace_kit.selection import select
from laplace_kit.tree import as_pytree_function

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


def test_a_prior_makes_the_posterior_of_a_curvature():
    params = {"bias": jnp.asarray([1.0, 2.0]), "weight": jnp.ones((3, 2))}
    free, selection = select(params)
    model = TrainedModel(as_pytree_function(lambda p, x: x), free, selection)
    mean, curvature = jnp.full(8, 0.5), jnp.asarray(FLAT)
    prior = Prior(mean, {"bias": 2.0, "weight": 0.1}, temperature=jnp.asarray(0.25))
    np.testing.assert_allclose(prior.vector(model), np.repeat([2.0, 0.1], [2, 6]), rtol=1e-6)
    np.testing.assert_allclose(prior.deviation(model), [0.5, 1.5, *[0.5] * 6])
    posterior, jitter = prior.posterior(DiagonalStructure(curvature), model)
    expected = 0.25 / (FLAT + np.repeat([2.0, 0.1], [2, 6]))
    np.testing.assert_allclose(posterior.variance(), expected, rtol=1e-6)
    assert jitter == 0


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_one_number_for_all_stays_one_and_means_the_same_as_a_vector(temperature, x64):
    la = exact.fitted("diagonal", "float64")
    size = la.posterior.size
    assert la.prior.mean.shape == la.prior.precision.shape == ()
    np.testing.assert_array_equal(la.prior_mean, np.zeros(size))
    one = la.with_prior(2.0).with_temperature(temperature)
    each = la.with_prior(np.full(size, 2.0)).with_temperature(temperature)
    np.testing.assert_allclose(one.posterior.std, each.posterior.std, rtol=1e-13)
    twins.assert_close(one.posterior.variance(), temperature / (la.structure.diagonal + 2.0))
