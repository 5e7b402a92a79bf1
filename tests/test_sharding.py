"""Any number of examples on the devices of a mesh."""

import jax
import numpy as np
import pytest
import test_placement

import laplace_kit as lk


def test_the_axis_must_be_one_of_the_mesh():
    mesh = jax.make_mesh((1,), ("data",))
    with pytest.raises(ValueError, match="axis='batch', expected one of the mesh's axes"):
        lk.data.shard(np.ones((3, 2)), np.ones(3), mesh, "batch")


def test_data_are_checked_as_in_a_fit():
    mesh = jax.make_mesh((1,), ("data",))
    with pytest.raises(ValueError, match="leading axes differ"):
        lk.data.shard(np.ones((3, 2)), np.ones(4), mesh)
    with pytest.raises(ValueError, match="negative or not finite"):
        lk.data.shard(np.ones((3, 2)), np.ones(3), mesh, weights=[1, -1, 1])


def test_weights_are_ones_or_those_given():
    mesh = jax.make_mesh((1,), ("data",))
    x, y, weights = lk.data.shard({"a": np.ones((3, 2))}, np.arange(3), mesh)
    np.testing.assert_array_equal(weights, np.ones(3))
    assert x["a"].shape == (3, 2)
    _, _, weights = lk.data.shard(x, y, mesh, ("data",), weights=[1, 0, 2])
    np.testing.assert_array_equal(weights, [1, 0, 2])


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["full", "kron", "ekfac", "diagonal", "low_rank"])
def test_sixty_examples_on_eight_devices_are_those_on_one(structure):
    test_placement.run(
        f"""
    x, y = problem(60)
    data = lk.data.shard(x, y, mesh_of("Explicit", data=8))
    np.testing.assert_array_equal(data[2], np.arange(64) < 60)
    np.testing.assert_array_equal(np.asarray(data[0])[:60], x)
    options = dict(likelihood="categorical", structure="{structure}", batch_size=2)
    options |= dict(rank=4) if "{structure}" == "low_rank" else {{}}
    one, many = (lk.fit(model, params, d, **options) for d in ((x, y), data))
    assert many.num_data == 60
    close([many.posterior.variance()], [one.posterior.variance()])
    close([many.log_marginal_likelihood()], [one.log_marginal_likelihood()])
        """
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_what_follows_a_fit_to_sharded_examples(kind):
    """Files, updates by data on one device, folds of filling rows alone, and bad examples."""
    test_placement.run(
        f"""
    import tempfile
    x, y = problem(61)
    few = lk.data.shard(x[:5], y[:5], mesh_of("{kind}", data=8))
    options = dict(likelihood="categorical", structure=lk.Full("dual"))
    one, many = (lk.fit(model, params, d, **options) for d in ((x[:5], y[:5]), few))
    path = tempfile.mkdtemp() + "/la.npz"
    many.save(path)
    close([lk.load(path, model).posterior.variance()], [one.posterior.variance()])
    new = x[5:], y[5:]
    close([many.update(new).posterior.variance()], [one.update(new).posterior.variance()])
    tuned = many.tune(data=few, method="cross_validation", num_folds=6)
    assert 0 < float(tuned.prior_precision)
    bad = np.array(x)
    bad[7] = np.nan
    try:
        lk.fit(model, params, lk.data.shard(bad, y, mesh_of("{kind}", data=8)), **options)
    except ValueError as error:
        assert "first at example 7" in str(error), error
    else:
        raise AssertionError
        """
    )
