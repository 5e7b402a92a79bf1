"""laplax: every function compiled, of parameters and data; curvature by products alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from laplax.curv import create_ggn_mv
from laplax.curv.cov import set_posterior_fn
from laplax.curv.diagonal import create_diagonal_curvature
from laplax.curv.full import create_full_curvature
from laplax.curv.hessian import create_hessian_mv
from laplax.curv.lanczos import lanczos_lowrank
from laplax.eval import marginal_log_likelihood, optimize_prior_prec, set_lin_pushforward
from laplax.eval.pushforward import lin_pred_cov, lin_pred_mean, lin_setup
from loguru import logger

from benchmarks.peers.adapters.jax_networks import NETWORKS, cross_entropy
from benchmarks.peers.protocol import (
    NUM_INPUTS,
    NUM_STEPS,
    NUM_TUNED,
    Job,
    Jobs,
    Workload,
    serve,
)

ENDINGS = ("", ", kron", ", diagonal")
SMALL = 5000  # parameters, of what takes as many products


def jobs(workload: Workload, variant: str) -> Jobs:
    logger.remove()
    network = NETWORKS[workload.kind]
    params = [jnp.asarray(p) for p in workload.params]
    x, y, v, vs = map(jnp.asarray, (workload.x, workload.y, workload.v, workload.vs))
    data = {"input": x, "target": y}

    def model_fn(input, params):  # of one example
        return network(params, input[None])[0]

    def ravel(found):
        return np.concatenate([np.ravel(leaf) for leaf in found])

    @jax.jit
    def gradient(params, data):
        return jax.grad(lambda p: cross_entropy(network(p, data["input"]), data["target"]))(params)

    @jax.jit
    def ggn_product(params, data, v):
        return create_ggn_mv(model_fn, params, data, "cross_entropy")(v)

    @jax.jit
    def ggn_products(params, data, vs):
        return jax.vmap(create_ggn_mv(model_fn, params, data, "cross_entropy"))(vs)

    @jax.jit
    def hessian_product(params, data, v):
        return create_hessian_mv(model_fn, params, data, cross_entropy)(v)

    @jax.jit
    def lanczos(params, data, v):
        mv = create_ggn_mv(model_fn, params, data, "cross_entropy")
        # In double precision by default, unlike the other libraries.
        return lanczos_lowrank(mv, b=v, layout=params, rank=NUM_STEPS, calc_dtype=jnp.float32)

    create = {"full": create_full_curvature, "diagonal": create_diagonal_curvature}

    @functools.partial(jax.jit, static_argnums=0)
    def curvature(structure, params, data):
        mv = create_ggn_mv(model_fn, params, data, "cross_entropy")
        return create[structure](mv, layout=params)

    fitted = functools.cache(lambda structure: curvature(structure, params, data))

    @functools.cache
    def predictive(structure):
        posterior = set_posterior_fn(structure, fitted(structure), layout=params)
        predict = set_lin_pushforward(
            model_fn,
            params,
            posterior,
            {"prior_prec": 1.0},
            pushforward_fns=[lin_setup, lin_pred_mean, lin_pred_cov],
        )
        return jax.jit(jax.vmap(predict))

    @functools.partial(jax.jit, static_argnums=0)
    def evidence(structure, curvature, prior_prec, params, data):
        return marginal_log_likelihood(
            curvature,
            # The sum of losses is divided by 2 sigma there.
            {"prior_prec": prior_prec, "sigma": 0.5},
            data,
            model_fn,
            params,
            cross_entropy,
            structure,
            vmap_over_data=True,
        )

    def tune(structure):
        def objective(prior):
            return -evidence(structure, fitted(structure), prior["prior_prec"], params, data)

        # The grid of `laplax.calibration`.
        best = optimize_prior_prec(
            objective, log_prior_prec_min=-3.0, log_prior_prec_max=3.0, grid_size=50
        )
        return jax.block_until_ready(best)

    def fit_job(structure):
        def values(found):
            return {"product": found @ v if structure == "full" else found * v}

        def run():
            found = curvature(structure, params, data)
            posterior = set_posterior_fn(structure, found, layout=params)({"prior_prec": 1.0})
            return jax.block_until_ready((found, posterior.state))[0]

        return Job(run, values)

    def predict_job(structure):
        return Job(
            lambda: jax.block_until_ready(predictive(structure)(x[:NUM_INPUTS])["pred_cov"]),
            lambda found: {"covariance": found},
            lambda: predictive(structure),
        )

    def tune_job(structure):
        def values(best):
            return {"evidence": evidence(structure, fitted(structure), best, params, data)}

        return Job(lambda: tune(structure), values, lambda: fitted(structure))

    def job(function, like, name):
        def values(found):
            return {name: ravel(found)}

        return Job(lambda: jax.block_until_ready(function(params, data, *like)), values)

    def ritz(found):
        values = np.sort(found.S)[::-1]
        return {"largest": values[0], "ritz": values[:NUM_TUNED]}

    vector = [jnp.asarray(part) for part in workload.unravel(workload.v)]
    rows = [workload.unravel(row) for row in workload.vs]
    vectors = [jnp.stack(parts) for parts in zip(*rows, strict=True)]
    found = {
        "gradient": job(gradient, (), "gradient"),
        "GGN product": job(ggn_product, (vector,), "product"),
        "Hessian product": job(hessian_product, (vector,), "product"),
        "16 GGN products": Job(
            lambda: jax.block_until_ready(ggn_products(params, data, vectors)),
            lambda found: {
                "products": np.concatenate([p.reshape(len(vs), -1) for p in found], axis=1)
            },
        ),
        "Lanczos": Job(lambda: jax.block_until_ready(lanczos(params, data, v)), ritz),
        "diagonal": Job(
            lambda: jax.block_until_ready(curvature("diagonal", params, data)),
            lambda found: {"diagonal": found},
        ),
        **{f"fit {structure}": fit_job(structure) for structure in create},
        **{f"predict {structure}": predict_job(structure) for structure in create},
        **{f"tune {structure}": tune_job(structure) for structure in create},
    }
    names = (
        "K-FAC",
        "EKFAC",
        "fit kron",
        "fit ekfac",
        "predict kron",
        "predict ekfac",
        "tune kron",
    )
    missing = dict.fromkeys(names, "no Kronecker factors")
    names = ("fit low_rank", "predict low_rank")
    missing |= dict.fromkeys(names, "keeps the pairs that have not converged, too: see Lanczos")
    names = [f"{verb} last layer{of}" for verb in ("fit", "predict") for of in ENDINGS]
    missing |= dict.fromkeys(names, "no subsets of the parameters")
    missing |= {"Fisher product": "no Fisher"}
    missing |= dict.fromkeys(("save kron", "load kron"), "no files")
    if len(v) > SMALL:
        each = [f"{verb} {of}" for verb in ("fit", "predict", "tune") for of in create]
        missing |= dict.fromkeys((*each, "diagonal"), "one product for each of the P parameters")
    return found | missing


if __name__ == "__main__":
    serve(jobs, "laplax", "jax")
