"""A fit of two real processes over one stream is interrupted, and goes on."""

from pathlib import Path

import jax
import loaders
import numpy as np
import processes
import pytest
from processes import Place

import laplace_kit as lk
from laplace_kit.host import fetch

N = 32


def model_fn(params, x):
    """Return the outputs of a linear model."""
    return x @ params


def _fit(place: Place, directory=None, stop=None):
    """Return a posterior, and how many batches of its own each pass of this process read."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 3)).astype(np.float32), rng.integers(0, 3, N).astype(np.int32)
    params = place.whole(rng.normal(size=(3, 3)).astype(np.float32))
    loader = loaders.Plain(place.own(x), place.own(y), N // 8 // jax.process_count(), stop=stop)
    batches = loader if place.mesh is None else lk.data.shard_batches(loader, place.mesh)
    checkpoint = None if directory is None else lk.Checkpoint(directory, batches=2)
    options = {"likelihood": "categorical", "structure": "full", "checkpoint": checkpoint}
    return lk.fit(model_fn, params, batches, **options), loader.reads


def check_going_on(place: Place, folder: Path):
    """Interrupt the last pass after five of its eight batches, and go on."""
    expected, reads = _fit(place)
    directory = folder / "shared"
    with pytest.raises(loaders.Interrupted):
        _fit(place, directory, stop=sum(reads) - 3)
    num_files = len([*directory.glob("pass-*.npz")])
    found, again = _fit(place, directory)
    pairs = fetch((found.expansion, expected.expansion)), fetch((found.mode, expected.mode))
    for pair in pairs:
        jax.tree.map(np.testing.assert_array_equal, *pair)
    return {
        "matrix": fetch(found.structure.matrix),
        "log_likelihood": fetch(found.log_likelihood),
        "passes": len(reads) - len(again),
        "files": (num_files, len([*directory.iterdir()])),
    }


def check_directories_of_their_own(place: Place, folder: Path):
    """Process 0 finds a pass that was saved, and another process none, in a folder of its own."""
    directory = folder / f"own{jax.process_index()}"
    _, reads = _fit(place)
    with pytest.raises(loaders.Interrupted):
        _fit(place, directory, stop=sum(reads) - 3)
    if place.mesh is None:
        return {"refused": True}
    with pytest.raises(ValueError, match=r"different numbers of batches in the processes \(\[8 0"):
        _fit(place, directory)
    return {"refused": True}


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
            np.testing.assert_allclose(outcome.arrays[key], value, rtol=1e-5, err_msg=key)
