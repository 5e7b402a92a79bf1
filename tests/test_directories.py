"""Posteriors in directories: from eight devices to eight, to four, and to one."""

import builtins
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_placement

import laplace_kit as lk
from laplace_kit import directories


def _model(params, x):
    return x @ params["w"]


@pytest.fixture(scope="module")
def fitted():
    x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    params = {"w": jnp.array([[1.0, -1.0], [0.5, 0.0]], jnp.bfloat16)}
    key = jax.random.key(4)
    return lk.fit(
        _model,
        params,
        (x, np.arange(9) % 2),
        likelihood="categorical",
        structure="kron",
        curvature=lk.MonteCarloFisher(key),
    )


def test_a_directory_holds_what_a_file_holds(fitted, tmp_path):
    """Also keys, half precision, and arrays that appear twice."""
    fitted.save(tmp_path / "file")
    for _ in range(2):  # the second replaces the first
        fitted.save(tmp_path / "directory", sharded=True)
    by_file, by_directory = (lk.load(tmp_path / name, _model) for name in ("file", "directory"))
    leaves, structure = jax.tree.flatten(by_file)
    found, other = jax.tree.flatten(by_directory)
    assert structure == other
    for a, b in zip(leaves, found, strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_only_directories_of_posteriors_are_replaced_and_read(fitted, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something other than a saved posterior, expected"):
        fitted.save(other, sharded=True)
    assert (other / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="a directory that holds something other than a posterior"):
        lk.load(other, _model)


def test_a_mesh_is_for_directories(fitted, tmp_path):
    fitted.save(tmp_path / "file")
    with pytest.raises(ValueError, match=r"Found mesh= for .*, which is a file, expected a direct"):
        lk.load(tmp_path / "file", _model, mesh=jax.make_mesh((1,), ("data",)))


def test_a_directory_of_other_arrays_is_refused(tmp_path):
    directories.write(tmp_path / "list", [jnp.ones(3), {"a": None}])
    found = directories.read(tmp_path / "list", None)
    np.testing.assert_array_equal(found[0], np.ones(3))
    with pytest.raises(ValueError, match="holds something other than a posterior"):
        lk.load(tmp_path / "list", _model)


def test_without_orbax_the_remedy_is_named(fitted, tmp_path, monkeypatch):
    load = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("orbax"):
            raise ImportError(name)
        return load(name, *args, **options)

    for name in [name for name in sys.modules if name.startswith("orbax.checkpoint")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"Found no orbax-checkpoint, expected .*; install it by"):
        fitted.save(tmp_path / "directory", sharded=True)


@pytest.mark.slow
def test_shardings_are_those_of_the_present_mesh():
    test_placement.run(
        """
    import tempfile
    x, y = problem(64)
    mesh = mesh_of("Auto", data=8)
    four = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    data = jax.device_put((x, y), NamedSharding(mesh, P("data")))
    spread = params | {"out": jax.device_put(params["out"], NamedSharding(mesh, P("data")))}
    for structure in (lk.Full("by_rows"), lk.Full("dual"), lk.LowRank(4), lk.Diagonal()):
        la = lk.fit(model, spread, data, likelihood="categorical", structure=structure)
        path = tempfile.mkdtemp() + "/la"
        la.save(path, sharded=True)
        for where, num in ((mesh, 8), (four, 4), (None, 1)):
            found = lk.load(path, model, mesh=where)
            close([found.posterior.variance()], [la.posterior.variance()], 1e-5)
            close([found.predict(x).f_var], [la.predict(x).f_var], 1e-5)
            assert found.mode["out"].sharding.shard_shape((8, 3)) == (8 // num, 3)
            big = max(jax.tree.leaves(found.structure), key=lambda leaf: leaf.size)
            before = max(jax.tree.leaves(la.structure), key=lambda leaf: leaf.size)
            share = before.addressable_shards[0].data.size * 8 // num
            assert big.addressable_shards[0].data.size <= max(share, before.size // num)
            assert len(big.sharding.device_set) == (1 if where is None else 8)
        """
    )
