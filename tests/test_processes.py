"""Two real processes, each with a part of the data, against one process with all of them."""

import json
import re
from pathlib import Path

import jax
import network
import numpy as np
import processes
import pytest
from loader_checks import (  # noqa: F401 - called by their names, as those below
    check_explicit_axes,
    check_loader_without_placement,
    check_loaders,
    check_loaders_by_products,
    check_loaders_that_do_not_go_together,
    check_loaders_with_weights,
    check_processes_by_themselves,
    check_quality_over_loaders,
)
from processes import Outcome, Place

import laplace_kit as lk
from laplace_kit.host import fetch
from laplace_kit.memory import Limits


def check_full(place: Place, folder: Path):
    la = network.fitted(place, "full")
    return network.numbers(la, network.rows(place)[0])


def check_diagonal(place: Place, folder: Path):
    la = network.fitted(place, "diagonal")
    return network.numbers(la, network.rows(place)[0])


def check_kron(place: Place, folder: Path):
    return network.numbers(network.fitted(place, "kron"), network.rows(place)[0])


def check_ekfac(place: Place, folder: Path):
    return network.numbers(network.fitted(place, "ekfac"), network.data()[0])


def check_low_rank(place: Place, folder: Path):
    return network.numbers(network.fitted(place, "low_rank", rank=6), network.rows(place)[0])


def check_last_layer(place: Place, folder: Path):
    return network.numbers(
        network.fitted(place, "full", subset="last_layer"), network.rows(place)[0]
    )


def check_auto(place: Place, folder: Path):
    return network.numbers(
        network.fitted(place, "auto", memory_limit=20_000), network.rows(place)[0]
    )


def check_dual(place: Place, folder: Path):
    return network.numbers(network.fitted(place, lk.Full("dual")), network.rows(place)[0])


def check_curvatures(place: Place, folder: Path):
    found = {}
    for name in ("hessian", "empirical_fisher", "mc_fisher"):
        key = jax.random.key(3) if name == "mc_fisher" else None
        la = network.fitted(place, "diagonal", curvature=name, key=key, prior_precision=30.0)
        found[name] = fetch(la.posterior.variance())
    return found


def check_operators(place: Place, folder: Path):
    params, data = place.whole_tree(network.params()), network.rows(place)
    v = np.random.default_rng(2).normal(size=network.num(params)).astype(np.float32)
    ggn = lk.curv.GGNOperator(network.model_fn, params, data, "categorical", batch_size=5)
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
        "hessian": lk.curv.HessianOperator(network.model_fn, params, data, "categorical").mv(v),
    }
    return fetch(found)


def check_further_operators(place: Place, folder: Path):
    params, data, key = place.whole_tree(network.params()), network.rows(place), jax.random.key(0)
    ggn = lk.curv.GGNOperator(network.model_fn, params, data, "categorical")
    v = np.random.default_rng(2).normal(size=network.num(params)).astype(np.float32)
    jacobian = lk.curv.JacobianOperator(network.model_fn, params, data[0])
    factors = lk.curv.kronecker_factors(ggn)
    gradients = lk.curv.per_example_gradients(network.model_fn, params, data, "categorical")
    return fetch(
        {
            "kernel": lk.curv.neural_tangent_kernel(network.model_fn, params, data[0]),
            "jacobian": jacobian @ v,
            "gradients": gradients["a"]["w"],
            "norms": lk.curv.per_example_gradient_norms(
                network.model_fn, params, data, "categorical"
            ),
            "blocks": lk.curv.block_diagonal(ggn) @ v,
            "submatrix": lk.curv.submatrix(ggn, np.arange(5)).to_dense(),
            "linearized": lk.curv.linearized(ggn) @ v,
            "log_det": lk.curv.estimate_log_det(
                ggn, damping=1.0, key=key, num_samples=3, num_steps=6
            ).value,
            "factors": np.concatenate([leaf.ravel() for leaf in fetch(jax.tree.leaves(factors))]),
            "losses": lk.curv.loss_along(
                network.model_fn, params, data, "categorical", v[None], [np.linspace(-1, 1, 3)]
            ).losses,
            "traces": lk.curv.layer_statistics(ggn, key=key, num_steps=3).trace,
        }
    )


def check_gaussian_noise(place: Place, folder: Path):
    la = network.fitted(place, "kron", lk.Gaussian()).tune(per_leaf=True)
    return network.numbers(la, network.rows(place)[0]) | fetch({"noise": la.likelihood.noise_std})


def check_tune_evidence(place: Place, folder: Path):
    la = network.fitted(place, "full").tune()
    return fetch({"precision": la.prior_precision, "temperature": la.temperature})


def check_tune_validation(place: Place, folder: Path):
    la = network.fitted(place, "diagonal").tune(data=network.rows(place), temperature=True)
    brier = network.fitted(place, "diagonal").tune(data=network.rows(place), objective="brier")
    return fetch(
        {
            "loss": la.evaluate(network.data())["nll"],
            "brier": brier.evaluate(network.data())["brier"],
        }
    )


def check_tune_folds(place: Place, folder: Path):
    la = network.fitted(place, "full").tune(
        method="cross_validation", data=network.rows(place), num_folds=3, temperature=True
    )
    return fetch({"precision": la.prior_precision, "temperature": la.temperature})


def check_predictions(place: Place, folder: Path):
    la, x, key = network.fitted(place, "diagonal"), network.rows(place)[0], jax.random.key(1)
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
            "host": la.predict(network.data()[0]).probs,
            "over": la.predict_over(lk.eval.split(network.data()[0], 7)).probs,
        }
    )


def check_quality(place: Place, folder: Path):
    la, data = network.fitted(place, "diagonal"), network.rows(place)
    found = la.evaluate(data)
    report = la.report(data, folder / "report", ood=place.rows(network.data()[0] + 3.0))
    written = json.loads((folder / "report" / "metrics.json").read_text())
    assert report.index.exists()
    return found | _leaves(written)


def _leaves(written: dict) -> dict[str, float]:
    """Return the numbers of nested dictionaries and lists by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(written)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if isinstance(leaf, float)}


def check_quality_of_numbers(place: Place, folder: Path):
    la = network.fitted(place, "diagonal", lk.Gaussian(0.5))
    data = network.rows(place, "gaussian")
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
    la, (x, y) = network.fitted(place, "diagonal"), network.rows(place)
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
        la = network.fitted(place, structure).update(network.rows(place))
        la.save(folder / f"{structure}.npz")
        again = lk.load(folder / f"{structure}.npz", network.model_fn)
        found[structure] = fetch(la.log_marginal_likelihood())
        found[f"{structure} again"] = fetch(again.predict(network.data()[0]).probs)
        found[f"{structure} of all"] = fetch(again.predict(network.rows(place)[0]).probs)
        found[f"{structure} lines"] = len(str(la).splitlines())
        found[f"{structure} steps"] = fetch(la.diagnostics().mode_distance)
    return found


def check_file_that_cannot_be_written(place: Place, folder: Path):
    la = network.fitted(place)
    with pytest.raises(OSError, match=r"process 0|missing"):
        la.save(folder / "missing" / "la.npz")
    return {}


def check_refusals(place: Place, folder: Path):
    x, y = network.data()
    x[17, 1] = np.nan
    with pytest.raises(ValueError, match=r"inputs that are not finite.*example 17"):
        lk.fit(
            network.model_fn,
            place.whole_tree(network.params()),
            (place.rows(x), place.rows(y)),
            likelihood="categorical",
            structure="diagonal",
        )
    with pytest.raises(ValueError, match="first in row 17"):
        network.fitted(place).predict(place.rows(x))
    x, y = network.data()
    y[13] = 7
    with pytest.raises(ValueError, match="example 13 with the target 7"):
        lk.curv.GGNOperator(
            network.model_fn, network.params(), (place.rows(x), place.rows(y)), "categorical"
        )
    return {}


def check_arrays_that_differ_between_processes(place: Place, folder: Path):
    if place.mesh is None:
        return {}
    own = tuple(place.own(part) for part in network.data())
    with pytest.raises(ValueError, match=r"parameters or data.*that differ between.*make_array"):
        _fitted_to(place.whole_tree(network.params()), own)
    params = jax.tree.map(lambda leaf: leaf + jax.process_index(), network.params())
    with pytest.raises(ValueError, match=r"parameters or data.*2 processes that differ"):
        _fitted_to(params, network.rows(place))
    with pytest.raises(ValueError, match=r"labelled data.*2 processes that differ"):
        network.fitted(place).evaluate(own)
    with pytest.raises(ValueError, match=r"inputs.*2 processes that differ"):
        network.fitted(place).predict(own[0])
    return {}


def _fitted_to(params, data):
    return lk.fit(network.model_fn, params, data, likelihood="categorical", structure="diagonal")


def check_weights(place: Place, folder: Path):
    weights = place.rows((np.arange(network.N) % 3).astype(np.float32))
    la = lk.fit(
        network.model_fn,
        place.whole_tree(network.params()),
        network.rows(place),
        likelihood="categorical",
        structure="kron",
        weights=weights,
    )
    return network.numbers(la, network.data()[0]) | la.evaluate((*network.rows(place), weights))


def check_sharded_parameters(place: Place, folder: Path):
    """Every leaf is spread over all devices."""
    params = network.params(num_hidden=8)
    sharded = (
        params
        if place.mesh is None
        else {
            "a": {"w": place.columns(params["a"]["w"]), "b": place.rows(params["a"]["b"])},
            "b": {"w": place.rows(params["b"]["w"]), "b": place.whole(params["b"]["b"])},
        }
    )
    la = lk.fit(
        network.model_fn,
        sharded,
        network.rows(place),
        likelihood="categorical",
        structure="diagonal",
        prior_precision=np.linspace(1, 2, network.num(params)).astype(np.float32),
    )
    la = la.tune()
    la.save(folder / "sharded.npz")
    again = lk.load(folder / "sharded.npz", network.model_fn)
    return network.numbers(la, network.rows(place)[0]) | {
        "again": fetch(again.predict(network.data()[0]).probs),
        "card": len(str(la)),
    }


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
    x, y = (part[:22] for part in network.data())
    data = (x, y) if place.mesh is None else lk.data.shard(x, y, place.mesh)
    la = lk.fit(
        network.model_fn, network.params(), data, likelihood="categorical", structure="ekfac"
    )
    return network.numbers(la, x) | la.evaluate(data)


def check_memory(place: Place, folder: Path):
    """Processes on one machine share its memory."""
    if place.mesh is not None:
        own, agreed = Limits(), Limits().shared_by(network.rows(place))
        assert abs(agreed.budget - own.budget / 2) <= 2**20
        assert Limits().shared_by(network.data()) == own
        assert Limits(memory=7).shared_by(network.rows(place)).budget == 7
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
