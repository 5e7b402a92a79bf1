"""Two real processes save a posterior into one directory, and load it."""

from pathlib import Path

import jax
import numpy as np
import processes
import pytest
from processes import Place

import laplace_kit as lk
from laplace_kit.host import fetch

N = 24


def model_fn(params, x):
    """Return the outputs of a linear model."""
    return x @ params["w"]


def check_saving_and_loading(place: Place, folder: Path):
    """Each writes what it has; all read it onto their mesh, and one device reads the whole."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 4)).astype(np.float32), rng.integers(0, 3, N).astype(np.int32)
    params = {"w": place.columns(rng.normal(size=(4, 4)).astype(np.float32))}
    structure = lk.Full("primal" if place.mesh is None else "by_rows")
    data = place.rows(x), place.rows(y)
    la = lk.fit(model_fn, params, data, likelihood="categorical", structure=structure)
    path = folder / "la"
    for _ in range(2):  # the second replaces the first
        la.save(path, sharded=True)
    found, whole = (lk.load(path, model_fn, mesh=mesh) for mesh in (place.mesh, None))
    if place.mesh is not None:
        for of in (la, found):
            own = of.structure.matrix.addressable_shards
            assert sum(shard.data.size for shard in own) == of.structure.matrix.size // 2
            assert of.mode["w"].sharding.spec == jax.P(None, "data")
        assert whole.structure.matrix.is_fully_addressable
    return fetch(
        {
            "variance": found.posterior.variance(),
            "evidence": found.log_marginal_likelihood(),
            "mean": found.predict(data[0]).f_mean,
            "var": found.predict(data[0]).f_var,
            "whole": whole.posterior.variance(),
            "whole_var": whole.predict(x).f_var,
        }
    )


_CHECKS = {name: check for name, check in globals().items() if name.startswith("check_")}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What every check gives in each process."""
    return processes.run(__file__, tmp_path_factory.mktemp("processes"), timeout=200)


@pytest.mark.slow
@pytest.mark.parametrize("name", _CHECKS)
def test_two_processes_equal_one(name, outcomes, tmp_path):
    expected = _CHECKS[name](Place(), tmp_path)
    for outcome in (each[name] for each in outcomes):
        assert not outcome.error, outcome.error
        for key, value in expected.items():
            np.testing.assert_allclose(
                outcome.arrays[key], value, rtol=1e-5, atol=1e-6, err_msg=key
            )
