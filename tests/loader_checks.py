"""What `test_processes.py` checks of loaders whose batches every process has a part of."""

from pathlib import Path

import jax
import network
import numpy as np
import pytest
from processes import Place

import laplace_kit as lk
from laplace_kit.host import fetch


def _loader(place: Place, *, weights=False) -> list:
    """Return batches of this process's own examples: five and the rest, of ragged sizes."""
    own = [place.own_unevenly(part) for part in network.data()]
    if weights:
        own.append(place.own_unevenly((np.arange(network.N) % 3).astype(np.float32)))
    return [tuple(part[low : low + 5] for part in own) for low in range(0, len(own[0]), 5)]


def _batches(place: Place, **options):
    loader = _loader(place, **options)
    return loader if place.mesh is None else lk.data.shard_batches(loader, place.mesh)


def _fitted_to_loaders(place: Place, structure, **options):
    data = _batches(place, weights=options.pop("weights", False))
    params = place.whole_tree(network.params())
    return lk.fit(
        network.model_fn, params, data, likelihood="categorical", structure=structure, **options
    )


def check_loaders(place: Place, folder: Path):
    found = {}
    for structure in ("diagonal", "kron", "full"):
        la = _fitted_to_loaders(place, structure, batch_size=3)
        for name, value in network.numbers(la, network.data()[0]).items():
            found[f"{structure} {name}"] = value
    return found


def check_loaders_with_weights(place: Place, folder: Path):
    la = _fitted_to_loaders(place, "diagonal", weights=True)
    return network.numbers(la, network.data()[0]) | la.evaluate(_batches(place, weights=True))


def check_loaders_by_products(place: Place, folder: Path):
    la = _fitted_to_loaders(place, lk.LowRank(rank=6))
    ggn = lk.curv.GGNOperator(network.model_fn, network.params(), _batches(place), "categorical")
    return network.numbers(la, network.data()[0]) | fetch(
        {"diagonal": ggn.diagonal(), "trace": ggn.trace()}
    )


def check_quality_over_loaders(place: Place, folder: Path):
    la = _fitted_to_loaders(place, "diagonal")
    tuned = la.tune(data=_batches(place), objective="brier")
    folds = la.tune(
        method="cross_validation", data=network.rows(place), num_folds=3, temperature=False
    )
    probs = fetch(la.predict_over(_batches(place)).probs)
    return la.evaluate(_batches(place)) | {
        "tuned": tuned.evaluate(network.data())["brier"],
        "updated": fetch(la.update(_batches(place)).log_marginal_likelihood()),
        "folds": folds.evaluate(network.data())["nll"],
        "probabilities": np.sort(probs[:, 0]),  # the order of rows is that of global batches
        "num": len(probs),
    }


def check_loader_without_placement(place: Place, folder: Path):
    if place.mesh is not None:
        with pytest.raises(ValueError, match=r"program of 2 processes.*shard_batches"):
            lk.fit(network.model_fn, network.params(), _loader(place), likelihood="categorical")
        with pytest.raises(ValueError, match=r"inputs.*2 processes that differ.*shard_batches"):
            network.fitted(place).predict_over(_loader(place))
    return {}


def check_processes_by_themselves(place: Place, folder: Path):
    """Each process fits its own data, in memory and by a loader on its own devices."""
    mesh = jax.make_mesh((1,), ("data",), devices=jax.local_devices()[:1])
    loader = lk.data.shard_batches([network.data()], mesh)
    la = lk.fit(
        network.model_fn, network.params(), loader, likelihood="categorical", structure="diagonal"
    )
    alone = lk.fit(
        network.model_fn,
        network.params(),
        network.data(),
        likelihood="categorical",
        structure="diagonal",
    )
    rank = jax.process_index()
    alone.save(folder / f"alone{rank}.npz")
    assert (folder / f"alone{rank}.npz").exists()
    return fetch({"loader": la.posterior.variance(), "memory": alone.posterior.variance()})


def check_loaders_that_do_not_go_together(place: Place, folder: Path):
    if place.mesh is None:
        return {}
    first = jax.process_index() == 0
    with pytest.raises(ValueError, match=r"no batch in the loader of process 1"):
        lk.fit(
            network.model_fn,
            network.params(),
            lk.data.shard_batches([network.data()] if first else [], place.mesh),
            likelihood="categorical",
        )
    x, y = network.data()
    with pytest.raises(ValueError, match=r"examples differ in shape, dtype.*int32"):
        lk.fit(
            network.model_fn,
            network.params(),
            lk.data.shard_batches([(x, y) if first else (x[:, :2], y)], place.mesh),
            likelihood="categorical",
        )
    return {}


def check_explicit_axes(place: Place, folder: Path):
    mesh = place.mesh and jax.make_mesh(place.mesh.devices.shape, place.mesh.axis_names)
    place, found = Place(mesh), {}
    for structure in ("diagonal", lk.LowRank(rank=6)):
        la = network.fitted(place, structure).tune(temperature=True)
        found |= {
            f"{type(structure).__name__} {k}": v
            for k, v in network.numbers(la, network.data()[0]).items()
        }
    found["predictions"] = fetch(la.predict(network.rows(place)[0]).probs)
    found["over"] = np.sort(fetch(la.predict_over(_batches(place)).probs)[:, 0])
    return found | la.evaluate(network.rows(place))
