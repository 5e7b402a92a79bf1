"""Two real processes, each with a part of the data, against one process with all of them."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from processes import Outcome, Place

import laplace_kit as lk
from laplace_kit.host import fetch
from laplace_kit.memory import Limits

N, NUM_INPUTS, NUM_CLASSES = 24, 3, 3


def model_fn(params, x):
    """Return the outputs of a network with one hidden layer."""
    hidden = jnp.tanh(x @ params["a"]["w"] + params["a"]["b"])
    return hidden @ params["b"]["w"] + params["b"]["b"]


def _params(num_hidden=4):
    rng = np.random.default_rng(0)
    shapes = [(NUM_INPUTS, num_hidden), (num_hidden, NUM_CLASSES)]
    made = [
        {"w": rng.normal(size=s).astype(np.float32), "b": np.zeros(s[1], np.float32)}
        for s in shapes
    ]
    return dict(zip("ab", made, strict=True))


def _num(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _data(kind="categorical"):
    """Return inputs, and targets that the model itself might have made."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N, NUM_INPUTS)).astype(np.float32)
    outputs = np.asarray(model_fn(_params(), x))
    if kind == "categorical":
        return x, np.argmax(outputs + rng.gumbel(size=outputs.shape), axis=1).astype(np.int32)
    return x, (outputs + 0.5 * rng.normal(size=outputs.shape)).astype(np.float32)


def _rows(place: Place, kind="categorical"):
    return tuple(place.rows(part) for part in _data(kind))


def _fitted(place: Place, structure="diagonal", likelihood="categorical", **options):
    data = _rows(place, "gaussian" if isinstance(likelihood, lk.Gaussian) else "categorical")
    return lk.fit(
        model_fn,
        place.whole_tree(_params()),
        data,
        likelihood=likelihood,
        structure=structure,
        **options,
    )


def _numbers(la, x) -> dict[str, np.ndarray]:
    predictive = la.predict(x)
    return fetch(
        {
            "evidence": la.log_marginal_likelihood(),
            "num_data": la.num_data,
            "variance": la.posterior.variance(),
            "mean": predictive.f_mean,
            "var": predictive.f_var,
        }
    )


def check_full(place: Place, folder: Path):
    la = _fitted(place, "full")
    return _numbers(la, _rows(place)[0])


def check_diagonal(place: Place, folder: Path):
    la = _fitted(place, "diagonal")
    return _numbers(la, _rows(place)[0])


def check_kron(place: Place, folder: Path):
    return _numbers(_fitted(place, "kron"), _rows(place)[0])


def check_ekfac(place: Place, folder: Path):
    return _numbers(_fitted(place, "ekfac"), _data()[0])


def check_low_rank(place: Place, folder: Path):
    return _numbers(_fitted(place, "low_rank", rank=6), _rows(place)[0])


def check_last_layer(place: Place, folder: Path):
    return _numbers(_fitted(place, "full", subset="last_layer"), _rows(place)[0])


def check_auto(place: Place, folder: Path):
    return _numbers(_fitted(place, "auto", memory_limit=20_000), _rows(place)[0])


def check_dual(place: Place, folder: Path):
    return _numbers(_fitted(place, lk.Full("dual")), _rows(place)[0])


def check_curvatures(place: Place, folder: Path):
    found = {}
    for name in ("hessian", "empirical_fisher", "mc_fisher"):
        key = jax.random.key(3) if name == "mc_fisher" else None
        la = _fitted(place, "diagonal", curvature=name, key=key, prior_precision=30.0)
        found[name] = fetch(la.posterior.variance())
    return found


def check_operators(place: Place, folder: Path):
    params, data = place.whole_tree(_params()), _rows(place)
    v = np.random.default_rng(2).normal(size=_num(params)).astype(np.float32)
    ggn = lk.curv.GGNOperator(model_fn, params, data, "categorical", batch_size=5)
    key = jax.random.key(0)
    found = {
        "mv": ggn.mv(v),
        "matmat": ggn.matmat(np.stack([v, 2 * v])),
        "diagonal": ggn.diagonal(),
        "dense": ggn.to_dense(),
        "trace": ggn.trace(),
        "estimated_trace": lk.curv.estimate_trace(ggn, key=key, num_samples=8).value,
        "estimated_diagonal": lk.curv.estimate_diagonal(ggn, key=key, num_samples=8).value,
        "solution": lk.curv.solve(ggn, v, damping=5.0, tolerance=1e-5).x,
        "eigenvalues": lk.curv.eigenpairs(ggn, 3, key=key).values,
        "hessian": lk.curv.HessianOperator(model_fn, params, data, "categorical").mv(v),
    }
    return fetch(found)


def check_further_operators(place: Place, folder: Path):
    params, data, key = place.whole_tree(_params()), _rows(place), jax.random.key(0)
    ggn = lk.curv.GGNOperator(model_fn, params, data, "categorical")
    v = np.random.default_rng(2).normal(size=_num(params)).astype(np.float32)
    jacobian = lk.curv.JacobianOperator(model_fn, params, data[0])
    factors = lk.curv.kronecker_factors(ggn)
    gradients = lk.curv.per_example_gradients(model_fn, params, data, "categorical")
    return fetch(
        {
            "kernel": lk.curv.neural_tangent_kernel(model_fn, params, data[0]),
            "jacobian": jacobian @ v,
            "gradients": gradients["a"]["w"],
            "norms": lk.curv.per_example_gradient_norms(model_fn, params, data, "categorical"),
            "blocks": lk.curv.block_diagonal(ggn) @ v,
            "submatrix": lk.curv.submatrix(ggn, np.arange(5)).to_dense(),
            "linearized": lk.curv.linearized(ggn) @ v,
            "log_det": lk.curv.estimate_log_det(
                ggn, damping=1.0, key=key, num_samples=3, num_steps=6
            ).value,
            "factors": np.concatenate([leaf.ravel() for leaf in fetch(jax.tree.leaves(factors))]),
            "losses": lk.curv.loss_along(
                model_fn, params, data, "categorical", v[None], [np.linspace(-1, 1, 3)]
            ).losses,
            "traces": lk.curv.layer_statistics(ggn, key=key, num_steps=3).trace,
        }
    )


def check_gaussian_noise(place: Place, folder: Path):
    la = _fitted(place, "kron", lk.Gaussian()).tune(per_leaf=True)
    return _numbers(la, _rows(place)[0]) | fetch({"noise": la.likelihood.noise_std})


def check_tune_evidence(place: Place, folder: Path):
    la = _fitted(place, "full").tune()
    return fetch({"precision": la.prior_precision, "temperature": la.temperature})


def check_tune_validation(place: Place, folder: Path):
    la = _fitted(place, "diagonal").tune(data=_rows(place), temperature=True)
    brier = _fitted(place, "diagonal").tune(data=_rows(place), objective="brier")
    return fetch(
        {
            "loss": la.evaluate(_data())["nll"],
            "brier": brier.evaluate(_data())["brier"],
        }
    )


def check_tune_folds(place: Place, folder: Path):
    la = _fitted(place, "full").tune(
        method="cross_validation", data=_rows(place), num_folds=3, temperature=True
    )
    return fetch({"precision": la.prior_precision, "temperature": la.temperature})


def check_predictions(place: Place, folder: Path):
    la, x, key = _fitted(place, "diagonal"), _rows(place)[0], jax.random.key(1)
    sampled = la.with_prediction(method="sampled", num_samples=8).predict(x, key=key)
    joint = la.predict(x, joint=True)
    functions = la.sample_functions(key, 3)
    draws = la.sample(key, 3)
    return fetch(
        {
            "sampled": sampled.probs,
            "monte_carlo": la.predict(x, link="monte_carlo", key=key, num_samples=20).probs,
            "joint": joint.joint_cov,
            "at_mode": la.predict_at_mode(x).probs,
            "functions": functions(x),
            "draws": draws["a"]["w"],
            "host": la.predict(_data()[0]).probs,
            "over": la.predict_over(lk.eval.split(_data()[0], 7)).probs,
        }
    )


def check_quality(place: Place, folder: Path):
    la, data = _fitted(place, "diagonal"), _rows(place)
    found = la.evaluate(data)
    report = la.report(data, folder / "report", ood=place.rows(_data()[0] + 3.0))
    written = json.loads((folder / "report" / "metrics.json").read_text())
    assert report.index.exists()
    return found | _leaves(written)


def _leaves(written: dict) -> dict[str, float]:
    """Return the numbers of nested dictionaries and lists by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(written)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if isinstance(leaf, float)}


def check_quality_of_numbers(place: Place, folder: Path):
    la = _fitted(place, "diagonal", lk.Gaussian(0.5))
    data = _rows(place, "gaussian")
    la.report(data, folder / "numbers")
    written = json.loads((folder / "numbers" / "metrics.json").read_text())
    scaling = lk.eval.recalibrate(la.predict(data[0]), data[1])
    intervals = lk.eval.conformal_intervals(la.predict(data[0]), data[1], level=0.8)
    return (
        la.evaluate(data)
        | _leaves(written)
        | {
            "scale": fetch(scaling.scale),
            "radius": fetch(intervals.radius),
        }
    )


def check_recalibration(place: Place, folder: Path):
    la, (x, y) = _fitted(place, "diagonal"), _rows(place)
    predictive = la.predict(x)
    sets = lk.eval.conformal_sets(predictive, y, level=0.8)
    return fetch(
        {
            "temperature": lk.eval.recalibrate(predictive, y).temperature,
            "sets": sets(predictive),
        }
    )


def check_update_and_files(place: Place, folder: Path):
    found = {}
    for structure in ("diagonal", "kron", "full"):
        la = _fitted(place, structure).update(_rows(place))
        la.save(folder / f"{structure}.npz")
        again = lk.load(folder / f"{structure}.npz", model_fn)
        found[structure] = fetch(la.log_marginal_likelihood())
        found[f"{structure} again"] = fetch(again.predict(_data()[0]).probs)
        found[f"{structure} of all"] = fetch(again.predict(_rows(place)[0]).probs)
        found[f"{structure} lines"] = len(str(la).splitlines())
        found[f"{structure} steps"] = fetch(la.diagnostics().mode_distance)
    return found


def check_file_that_cannot_be_written(place: Place, folder: Path):
    la = _fitted(place)
    with pytest.raises(OSError, match=r"process 0|missing"):
        la.save(folder / "missing" / "la.npz")
    return {}


def check_refusals(place: Place, folder: Path):
    x, y = _data()
    x[17, 1] = np.nan
    with pytest.raises(ValueError, match=r"inputs that are not finite.*example 17"):
        lk.fit(
            model_fn,
            place.whole_tree(_params()),
            (place.rows(x), place.rows(y)),
            likelihood="categorical",
            structure="diagonal",
        )
    with pytest.raises(ValueError, match="first in row 17"):
        _fitted(place).predict(place.rows(x))
    x, y = _data()
    y[13] = 7
    with pytest.raises(ValueError, match="example 13 with the target 7"):
        lk.curv.GGNOperator(model_fn, _params(), (place.rows(x), place.rows(y)), "categorical")
    return {}


def check_arrays_that_differ_between_processes(place: Place, folder: Path):
    if place.mesh is None:
        return {}
    own = tuple(place.own(part) for part in _data())
    with pytest.raises(ValueError, match=r"parameters or data.*that differ between.*make_array"):
        _fitted_to(place.whole_tree(_params()), own)
    params = jax.tree.map(lambda leaf: leaf + jax.process_index(), _params())
    with pytest.raises(ValueError, match=r"parameters or data.*2 processes that differ"):
        _fitted_to(params, _rows(place))
    with pytest.raises(ValueError, match=r"labelled data.*2 processes that differ"):
        _fitted(place).evaluate(own)
    with pytest.raises(ValueError, match=r"inputs.*2 processes that differ"):
        _fitted(place).predict(own[0])
    return {}


def _fitted_to(params, data):
    return lk.fit(model_fn, params, data, likelihood="categorical", structure="diagonal")


def check_weights(place: Place, folder: Path):
    weights = place.rows((np.arange(N) % 3).astype(np.float32))
    la = lk.fit(
        model_fn,
        place.whole_tree(_params()),
        _rows(place),
        likelihood="categorical",
        structure="kron",
        weights=weights,
    )
    return _numbers(la, _data()[0]) | la.evaluate((*_rows(place), weights))


def check_sharded_parameters(place: Place, folder: Path):
    """Every leaf is spread over all devices."""
    params = _params(num_hidden=8)
    sharded = (
        params
        if place.mesh is None
        else {
            "a": {"w": place.columns(params["a"]["w"]), "b": place.rows(params["a"]["b"])},
            "b": {"w": place.rows(params["b"]["w"]), "b": place.whole(params["b"]["b"])},
        }
    )
    la = lk.fit(
        model_fn,
        sharded,
        _rows(place),
        likelihood="categorical",
        structure="diagonal",
        prior_precision=np.linspace(1, 2, _num(params)).astype(np.float32),
    )
    la = la.tune()
    la.save(folder / "sharded.npz")
    again = lk.load(folder / "sharded.npz", model_fn)
    return _numbers(la, _rows(place)[0]) | {
        "again": fetch(again.predict(_data()[0]).probs),
        "card": len(str(la)),
    }


# --- loaders ------------------------------------------------------------------------------------


def _loader(place: Place, *, weights=False) -> list:
    """Return batches of this process's own examples: five and the rest, of ragged sizes."""
    own = [place.own_unevenly(part) for part in _data()]
    if weights:
        own.append(place.own_unevenly((np.arange(N) % 3).astype(np.float32)))
    return [tuple(part[low : low + 5] for part in own) for low in range(0, len(own[0]), 5)]


def _batches(place: Place, **options):
    loader = _loader(place, **options)
    return loader if place.mesh is None else lk.data.shard_batches(loader, place.mesh)


def _fitted_to_loaders(place: Place, structure, **options):
    data = _batches(place, weights=options.pop("weights", False))
    params = place.whole_tree(_params())
    return lk.fit(model_fn, params, data, likelihood="categorical", structure=structure, **options)


def check_loaders(place: Place, folder: Path):
    found = {}
    for structure in ("diagonal", "kron", "full"):
        la = _fitted_to_loaders(place, structure, batch_size=3)
        for name, value in _numbers(la, _data()[0]).items():
            found[f"{structure} {name}"] = value
    return found


def check_loaders_with_weights(place: Place, folder: Path):
    la = _fitted_to_loaders(place, "diagonal", weights=True)
    return _numbers(la, _data()[0]) | la.evaluate(_batches(place, weights=True))


def check_loaders_by_products(place: Place, folder: Path):
    la = _fitted_to_loaders(place, lk.LowRank(rank=6))
    ggn = lk.curv.GGNOperator(model_fn, _params(), _batches(place), "categorical")
    return _numbers(la, _data()[0]) | fetch({"diagonal": ggn.diagonal(), "trace": ggn.trace()})


def check_quality_over_loaders(place: Place, folder: Path):
    la = _fitted_to_loaders(place, "diagonal")
    tuned = la.tune(data=_batches(place), objective="brier")
    folds = la.tune(method="cross_validation", data=_rows(place), num_folds=3, temperature=False)
    probs = fetch(la.predict_over(_batches(place)).probs)
    return la.evaluate(_batches(place)) | {
        "tuned": tuned.evaluate(_data())["brier"],
        "updated": fetch(la.update(_batches(place)).log_marginal_likelihood()),
        "folds": folds.evaluate(_data())["nll"],
        "probabilities": np.sort(probs[:, 0]),  # the order of rows is that of global batches
        "num": len(probs),
    }


def check_loader_without_placement(place: Place, folder: Path):
    if place.mesh is not None:
        with pytest.raises(ValueError, match=r"program of 2 processes.*shard_batches"):
            lk.fit(model_fn, _params(), _loader(place), likelihood="categorical")
        with pytest.raises(ValueError, match=r"inputs.*2 processes that differ.*shard_batches"):
            _fitted(place).predict_over(_loader(place))
    return {}


def check_processes_by_themselves(place: Place, folder: Path):
    """Each process fits its own data, in memory and by a loader on its own devices."""
    mesh = jax.make_mesh((1,), ("data",), devices=jax.local_devices()[:1])
    loader = lk.data.shard_batches([_data()], mesh)
    la = lk.fit(model_fn, _params(), loader, likelihood="categorical", structure="diagonal")
    alone = lk.fit(model_fn, _params(), _data(), likelihood="categorical", structure="diagonal")
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
            model_fn,
            _params(),
            lk.data.shard_batches([_data()] if first else [], place.mesh),
            likelihood="categorical",
        )
    x, y = _data()
    with pytest.raises(ValueError, match=r"examples differ in shape, dtype.*int32"):
        lk.fit(
            model_fn,
            _params(),
            lk.data.shard_batches([(x, y) if first else (x[:, :2], y)], place.mesh),
            likelihood="categorical",
        )
    return {}


def check_page(place: Place, folder: Path):
    """The example of the documentation, in each process."""
    page = (Path(__file__).parents[1] / "docs" / "many_devices.md").read_text(encoding="utf-8")
    section = page[page.index("## Several processes") :]
    block = re.search(r"^```python\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)[1]
    names = {}
    exec(compile(block, "many_devices.md", "exec"), names)
    assert names["num"] == jax.process_count()
    la = names["la"]
    found = {"precision": la.prior_precision, "variance": la.posterior.variance()}
    return names["metrics"] | fetch(found | {"num_data": la.num_data})


def check_examples_that_every_process_has(place: Place, folder: Path):
    """Data of 22 examples over four devices, from the host of each process."""
    x, y = (part[:22] for part in _data())
    data = (x, y) if place.mesh is None else lk.data.shard(x, y, place.mesh)
    la = lk.fit(model_fn, _params(), data, likelihood="categorical", structure="ekfac")
    return _numbers(la, x) | la.evaluate(data)


def check_explicit_axes(place: Place, folder: Path):
    mesh = place.mesh and jax.make_mesh(place.mesh.devices.shape, place.mesh.axis_names)
    place, found = Place(mesh), {}
    for structure in ("diagonal", lk.LowRank(rank=6)):
        la = _fitted(place, structure).tune(temperature=True)
        found |= {f"{type(structure).__name__} {k}": v for k, v in _numbers(la, _data()[0]).items()}
    found["predictions"] = fetch(la.predict(_rows(place)[0]).probs)
    found["over"] = np.sort(fetch(la.predict_over(_batches(place)).probs)[:, 0])
    return found | la.evaluate(_rows(place))


def check_memory(place: Place, folder: Path):
    """Processes on one machine share its memory."""
    if place.mesh is not None:
        own, agreed = Limits(), Limits().shared_by(_rows(place))
        assert abs(agreed.budget - own.budget / 2) <= 2**20
        assert Limits().shared_by(_data()) == own
        assert Limits(memory=7).shared_by(_rows(place)).budget == 7
    return {}


_CHECKS = {name: check for name, check in globals().items() if name.startswith("check_")}
_WITH_FOUR = ("check_full", "check_kron", "check_loaders", "check_quality_over_loaders")


def differences(name: str, found: list[Outcome], folder: Path) -> list[str]:
    """Return in what a check differs between several processes and one."""
    expected, wrong = fetch(_CHECKS[name](Place(), folder)), []
    for rank, outcome in enumerate(found):
        if outcome.error or outcome.arrays.keys() != expected.keys():
            wrong.append(f"{name}, process {rank}: {outcome.error or [*outcome.arrays]}")
            continue
        for key, value in expected.items():
            if not np.allclose(outcome.arrays[key], value, rtol=1e-5, atol=1e-5):
                wrong.append(f"{name}, process {rank}, {key}: {outcome.arrays[key]}, not {value}")
    return wrong


# One test for all checks, so that parallel workers of pytest start the processes only once.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The (evidence|held-out loss) is (small|larg)est at a bound")
@pytest.mark.parametrize(("num", "names"), [(2, [*_CHECKS]), (4, _WITH_FOUR)], ids=["2", "4"])
def test_several_processes_equal_one(num, names, tmp_path):
    outcomes = processes.run(__file__, tmp_path, num, names, timeout=900)
    (tmp_path / "one").mkdir()
    wrong = [
        text
        for name in names
        for text in differences(name, [each[name] for each in outcomes], tmp_path / "one")
    ]
    assert not wrong, "\n\n".join(wrong)
