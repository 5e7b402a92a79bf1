"""laplace_kit: this library; the other libraries' values are compared with its own."""

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import laplace_kit as lk
from benchmarks.flops import product_flops
from benchmarks.peers.adapters.jax_networks import NETWORKS, cross_entropy
from benchmarks.peers.protocol import (
    NUM_INPUTS,
    NUM_STEPS,
    NUM_TUNED,
    Device,
    Job,
    Jobs,
    Workload,
    serve,
)
from laplace_kit import tree
from laplace_kit.approx.kronecker import fit_kronecker
from laplace_kit.curv import linearized
from laplace_kit.curv.matrix_free.lanczos import tridiagonalize

STRUCTURES = ("full", "diagonal", "kron", "ekfac", "low_rank")


def jobs(workload: Workload, variant: str) -> Jobs:
    model_fn = NETWORKS[workload.kind]
    params = [jnp.asarray(p) for p in workload.params]
    data = jnp.asarray(workload.x), jnp.asarray(workload.y)
    v, vs, kernels = map(jnp.asarray, (workload.v, workload.vs, workload.kernels))
    likelihood = lk.Categorical()
    ggn, hessian, fisher = (
        kind(model_fn, params, data, likelihood)
        for kind in (
            lk.curv.GGNOperator,
            lk.curv.HessianOperator,
            lk.curv.EmpiricalFisherOperator,
        )
    )

    def fit(structure, subset=None):
        return lk.fit(
            model_fn,
            params,
            data,
            likelihood=likelihood,
            structure=structure,
            subset=list(subset) if isinstance(subset, tuple) else subset,
            rank=NUM_STEPS if structure == "low_rank" else None,
        )

    fitted = functools.cache(fit)

    # As parameters, which saves copies; a flat vector would do.
    vector, vectors = tree.unravel(v, params), tree.unravel(vs, params)

    def product(operator):
        return Job(
            lambda: _ready(_multiply(operator, vector)),
            lambda found: {"product": tree.ravel(found)},
            held=lambda: _held(_multiply.lower(operator, vector)),
            flops=lambda: product_flops(_multiply, operator, vector),
        )

    def lanczos():
        nothing = jnp.zeros((1, len(v)))
        return _ready(tridiagonalize(linearized(ggn), v, nothing, NUM_STEPS))

    def ritz(found):
        _, alphas, betas = map(np.asarray, found)
        off = np.diag(betas[: len(alphas) - 1], 1)
        values = np.linalg.eigvalsh(np.diag(alphas) + off + off.T)[::-1]
        return {"largest": values[0], "ritz": values[:NUM_TUNED]}

    def fit_job(structure, subset=None):
        def values(la):
            return (
                kernel_product(la.structure)
                if structure == "kron"
                else whole_product(la.structure, la.posterior.size)
            )

        return Job(lambda: _ready(fit(structure, subset)), values)

    def whole_product(structure, num_free):
        return {"product": structure.mv(v[-num_free:])}

    def kernel_product(structure):
        return {"kernels": structure.mv(v * kernels) * kernels}

    def predict_job(structure, subset=None, covariance="full"):
        def run():
            found = fitted(structure, subset).predict(data[0][:NUM_INPUTS], covariance=covariance)
            return _ready(found.f_cov if covariance == "full" else found.f_var)

        def values(found):
            apart = [fitted(structure, part) for part in _parts(params)] if separates else []
            each = [la.predict(data[0][:NUM_INPUTS], covariance="full").f_cov for la in apart]
            return {"covariance": found} | ({"apart": sum(each)} if separates else {})

        separates = (
            structure == "kron" and subset is None and workload.kind not in ("transformer", "gpt")
        )
        return Job(run, values, lambda: fitted(structure, subset))

    def tune_job(structure):
        def run():
            return _ready(refreshed(structure).tune(temperature=False))

        def values(la):
            evidence = {"evidence": la.log_marginal_likelihood()}
            return evidence | ({"apart": best_apart()} if structure == "kron" else {})

        return Job(run, values, lambda: fitted(structure))

    def refreshed(structure):
        # A posterior caches its spectrum: each run takes a new one.
        return jax.tree.map(lambda leaf: leaf, fitted(structure))

    def best_apart():
        weights, biases = (fitted("kron", part) for part in _parts(params))
        grid = np.logspace(-3, 3, 241)
        both = [
            float(weights.log_marginal_likelihood(d) + biases.log_marginal_likelihood(d))
            for d in grid
        ]
        return np.asarray(max(both) - float(weights.log_likelihood))

    @functools.cache
    def folder():
        return tempfile.TemporaryDirectory()

    def save():
        fitted("kron").save(Path(folder().name, "posterior"))
        return params

    def load():
        return _ready(lk.load(Path(folder().name, "posterior"), model_fn)).params

    def mean(params):
        return {"mean": tree.ravel(params)}

    return {
        "gradient": Job(
            lambda: _ready(_gradient(model_fn, params, data)),
            lambda found: {"gradient": tree.ravel(found)},
            flops=lambda: product_flops(functools.partial(_gradient, model_fn), params, data),
        ),
        "GGN product": product(ggn),
        "Hessian product": product(hessian),
        "Fisher product": product(fisher),
        "16 GGN products": Job(
            lambda: _ready(_together(ggn, vectors)),
            lambda found: {"products": tree.ravel(found, num_leading=1)},
            flops=lambda: product_flops(_together, ggn, vectors),
        ),
        "Lanczos": Job(lanczos, ritz),
        "diagonal": Job(lambda: _ready(ggn.diagonal()), _values("diagonal", np.asarray)),
        "K-FAC": Job(
            lambda: _ready(lk.curv.kronecker_factors(ggn)),
            lambda _: kernel_product(fit_kronecker(ggn)),
        ),
        "EKFAC": Job(
            lambda: _ready(fit_kronecker(ggn, corrected=True)),
            lambda found: {"product": found.mv(v)},
        ),
        **{f"fit {structure}": fit_job(structure) for structure in STRUCTURES},
        **{f"predict {structure}": predict_job(structure) for structure in STRUCTURES},
        **{f"tune {structure}": tune_job(structure) for structure in STRUCTURES},
        "fit last layer": fit_job("full", "last_layer"),
        "predict last layer": predict_job("full", "last_layer"),
        "fit last layer, kron": Job(lambda: _ready(fit("kron", "last_layer")), lambda la: {}),
        "predict last layer, kron": predict_job("kron", "last_layer", "diagonal"),
        "fit last layer, diagonal": fit_job("diagonal", "last_layer"),
        "predict last layer, diagonal": predict_job("diagonal", "last_layer", "diagonal"),
        "save kron": Job(save, mean, lambda: fitted("kron")),
        "load kron": Job(load, mean, save),
    }


def _held(lowered) -> float:
    """Return the MB that a program holds besides its arguments and its result."""
    return lowered.compile().memory_analysis().temp_size_in_bytes / 1e6


def _ready(found):
    return jax.block_until_ready(found)


def _values(name, convert) -> Mapping[str, np.ndarray]:
    return lambda found: {name: convert(found)}


def _parts(params):
    """Return masks of kernels and of biases, which other libraries put in separate blocks."""
    return tuple(tuple([(p.ndim > 1) == kernels for p in params]) for kernels in (True, False))


@functools.partial(jax.jit, static_argnums=0)
def _gradient(model_fn, params, data):
    x, y = data
    return jax.grad(lambda params: cross_entropy(model_fn(params, x), y))(params)


@jax.jit
def _multiply(operator, v):
    return operator.mv(v)


@jax.jit
def _together(operator, vs):
    return operator.matmat(vs)


def _peak() -> float | None:
    """Return the MB at the peak so far of a device that keeps count of them."""
    found = jax.devices()[0].memory_stats() or {}
    return found["peak_bytes_in_use"] / 1e6 if "peak_bytes_in_use" in found else None


if __name__ == "__main__":
    serve(jobs, "laplace-kit", "jax", device=Device(peak=_peak))
