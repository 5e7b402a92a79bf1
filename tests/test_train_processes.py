"""Two real processes train by the evidence of data that are spread over them."""

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
    return x @ params["w"] + params["b"]


def _data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3)).astype(np.float32)
    y = x @ np.linspace(-1, 1, 6).reshape(3, 2) + 0.3 * rng.normal(size=(N, 2))
    return x, y.astype(np.float32)


def _trained(place: Place, data, **options):
    params = {"w": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.float32)}
    found = lk.train_with_evidence(
        model_fn,
        place.whole_tree(params),
        data,
        likelihood=lk.Gaussian(),
        num_epochs=6,
        key=jax.random.key(0),
        structure="full",
        refit_every=3,
        burn_in=0,
        **options,
    )
    history = found.history
    return fetch(
        {
            "w": found.la.mode["w"],
            "precision": found.la.prior_precision,
            "noise": found.la.likelihood.noise_std,
            "loss": history.loss,
            "evidence": history.log_marginal_likelihood,
            "variance": found.la.posterior.variance(),
        }
    )


def check_in_memory(place: Place, folder: Path):
    """Minibatches are the same rows, drawn from all of the data; process 0 saves the best."""
    data = tuple(map(place.rows, _data()))
    path = folder / "best.npz"
    found = _trained(place, data, train_batch_size=6, checkpoint=path)
    return found | {"saved": fetch(lk.load(path, model_fn).mode["w"])}


def check_over_a_stream(place: Place, folder: Path):
    """Batches are one half of each process; in one process they hold the same examples."""
    halves = [np.split(part, 2) for part in _data()]
    if place.mesh is None:  # rows of both processes next to each other, as they share a batch

        def batch(low):
            return tuple(np.concatenate([h[low : low + 4] for h in part]) for part in halves)

        return _trained(place, [batch(low) for low in (0, 4, 8)])
    own = [part[jax.process_index()] for part in halves]
    loader = [tuple(part[low : low + 4] for part in own) for low in (0, 4, 8)]
    return _trained(place, lk.data.shard_batches(loader, place.mesh))


_CHECKS = {name: check for name, check in globals().items() if name.startswith("check_")}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What every check gives in each process."""
    return processes.run(__file__, tmp_path_factory.mktemp("processes"), timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("name", _CHECKS)
def test_two_processes_equal_one(name, outcomes, tmp_path):
    expected = _CHECKS[name](Place(), tmp_path)
    for outcome in (each[name] for each in outcomes):
        assert not outcome.error, outcome.error
        for key, value in expected.items():
            np.testing.assert_allclose(
                outcome.arrays[key], value, rtol=1e-4, atol=1e-5, err_msg=key
            )
