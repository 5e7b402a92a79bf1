"""Moments of the linearised outputs, in chunks of inputs and of outputs."""

from functools import partial

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
import vocabulary
from exact import KINDS

import laplace_kit as lk
from laplace_kit.approx import low_rank
from laplace_kit.approx.diagonal import DiagonalStructure
from laplace_kit.approx.full import FullStructure
from laplace_kit.approx.kronecker import Eigenblock, KroneckerStructure
from laplace_kit.approx.low_rank import LowRankStructure
from laplace_kit.approx.posterior import factorise
from laplace_kit.curv.capture.cost import choose_held, projections, rows_cost
from laplace_kit.curv.objective import restrict
from laplace_kit.eval.moments import estimated_moments, linearized_moments, takes_many_passes
from laplace_kit.likelihood import Gaussian
from laplace_kit.memory import Limits


def one_direction(la, x) -> int:
    """Return the bytes of one input with one of its outputs."""
    work = partial(projections, num_vectors=la.posterior.num_projections)
    cost = rows_cost(la.objective.planned(x), work, for_outputs=True)
    limits = Limits(2, 2 * (cost.once + cost.direction))
    assert choose_held(cost, 3, limits).num_directions == 1
    return cost.once + cost.direction


@pytest.mark.accelerator
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("full", [True, False])
def test_chunks_of_inputs_and_outputs_give_the_dense_moments(kind, full, x64):
    la, x = exact.fitted(kind, "float64"), twins.problem("mlp", "float64").x
    cov = exact.covariance(kind, np.ones(31))
    jac = twins.dense(twins.jacobian, "mlp")
    expected = np.einsum("ncp,pq,ndq->ncd", jac, cov, jac)
    limit = 10**9 if full else 2 * one_direction(la, x)
    f, f_var, f_cov = linearized_moments(la.objective.within(2, limit), la.posterior, x, full=full)
    np.testing.assert_allclose(f, twins.mlp(la.params, x))
    twins.assert_close(f_var, np.einsum("ncc->nc", expected), rtol=1e-9)
    if full:
        twins.assert_close(f_cov, expected, rtol=1e-9)
    else:
        assert f_cov is None


def test_covariances_that_do_not_fit_name_the_remedy(x64):
    la, x = exact.fitted("diagonal", "float64"), twins.problem("mlp", "float64").x
    with pytest.raises(ValueError, match=r"in 3 direction.*'hidden/0/kernel'") as error:
        linearized_moments(la.objective.within(memory=1_000), la.posterior, x, full=True)
    assert 'covariance="diagonal"' in str(error.value)


# --- outputs over a vocabulary ---


@pytest.mark.parametrize("num_samples", [3, 8, 21])
def test_estimated_variances_are_those_of_the_draws(num_samples, x64):
    la, key = vocabulary.fitted(), jax.random.key(3)
    num = min(num_samples, 8)
    keys = jax.random.split(key, -(-num_samples // num))
    draws = np.concatenate([la.posterior.sample(k, num) for k in keys])[:num_samples]
    expected = np.mean(np.einsum("ncp,kp->knc", vocabulary.jacobian(), draws) ** 2, axis=0)
    objective = la.objective.within(3)  # in two chunks
    f, f_var, f_cov = estimated_moments(objective, la.posterior, vocabulary.X, key, num_samples)
    np.testing.assert_allclose(f, vocabulary.model_fn(vocabulary.PARAMS, vocabulary.X))
    twins.assert_close(f_var, expected.reshape(f.shape), rtol=1e-9)
    assert f_cov is None


def test_estimated_variances_are_unbiased(x64):
    la, key = vocabulary.fitted(), jax.random.key(0)
    jac = vocabulary.jacobian()
    exact_var = np.einsum("ncp,pq,ncq->nc", jac, np.asarray(la.posterior.covariance()), jac)
    _, f_var, _ = estimated_moments(la.objective, la.posterior, vocabulary.X, key, 2000)
    ratio = np.asarray(f_var).reshape(exact_var.shape) / exact_var
    np.testing.assert_allclose(ratio, 1, atol=5 * np.sqrt(2 / 2000))
    np.testing.assert_allclose(ratio.mean(), 1, atol=0.03)


def test_many_passes_are_those_of_outputs_that_share_no_gradients(x64):
    la = vocabulary.fitted()
    assert takes_many_passes(la.objective.planned(vocabulary.X))
    head = lk.fit(  # as many outputs, of a head
        lambda params, x: jnp.tanh(x @ params["kernel"]) @ params["head"],
        {"kernel": vocabulary.PARAMS["kernel"], "head": vocabulary.HEAD},
        (vocabulary.X, vocabulary.Y), likelihood="categorical", structure="diagonal",
        subset="last_layer", curvature="mc_fisher", key=jax.random.key(0),
    )  # fmt: skip
    assert not takes_many_passes(head.objective.planned(vocabulary.X))


# --- heads --------------------------------------------------------------------------------------


def temperature(params, x):
    """A head of one position behind moves and factors."""
    z = (jnp.tanh(x[:, 0]) @ params["kernel"] + params["bias"]).reshape(-1, 2, 2)
    return z.transpose(0, 2, 1) / jnp.asarray([[2.0, -3.0], [0.5, 1.0]], z.dtype)


def sequence(params, x):
    return -(jnp.tanh(x) @ params["kernel"] + params["bias"])


def as_any_layer(model_fn):
    """Return the same function, so written that its layer is no head."""

    def same(params, x):
        f = model_fn(params, x)
        return f + 0 * jnp.sin(f)

    return same


def structure_of(kind, layout):
    """Return a random structure for one layer of 3 inputs, a bias and 4 outputs."""
    rng = np.random.default_rng(1)

    def orthogonal(n):
        return jnp.asarray(np.linalg.qr(rng.normal(size=(n, n)))[0])

    if kind == "full":
        root = jnp.asarray(rng.normal(size=(16, 16)))
        return FullStructure(root @ root.T)
    if kind == "diagonal":
        return DiagonalStructure(jnp.asarray(rng.uniform(size=16)))
    if kind == "low_rank":
        zero = jnp.zeros(3)
        return LowRankStructure(
            jnp.asarray([1.0, 2.0, 3.0]), orthogonal(16)[:3], zero, jnp.zeros(())
        )
    values = jnp.asarray(rng.uniform(size=(1, 4, 4)))
    block = Eigenblock(orthogonal(4)[None], orthogonal(4)[None], values, layout)
    return KroneckerStructure((block,), corrected=True)


@pytest.mark.parametrize("model_fn", [temperature, sequence])
@pytest.mark.parametrize("kind", ["full", "diagonal", "low_rank", "ekfac"])
def test_heads_have_the_moments_of_any_layer(kind, model_fn, x64, monkeypatch):
    monkeypatch.setattr(low_rank, "_DIRECTIONS_THAT_MATTER", 0)
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 4))), "bias": jnp.ones(4)}
    x = jnp.asarray(rng.normal(size=(3, 2, 3)))
    objectives = [restrict(fn, params, Gaussian())[0] for fn in (model_fn, as_any_layer(model_fn))]
    (layer,) = objectives[0].planned(x).plan.layers.layers
    precision = jnp.repeat(jnp.asarray([0.3, 2.0]), jnp.asarray([4, 12]), total_repeat_length=16)
    posterior, _ = factorise(structure_of(kind, layer.layout), precision)
    for full in (True, False):
        found, expected = (
            linearized_moments(objective, posterior, x, full=full) for objective in objectives
        )
        for moment, twin in zip(found[: 2 + full], expected[: 2 + full], strict=True):
            twins.assert_close(moment, twin)


def test_thousands_of_outputs_of_a_head_are_held_together(x64):
    params = {"kernel": jnp.zeros((128, 3100)), "bias": jnp.zeros(3100)}
    x = jnp.zeros((2, 1, 128))

    def model_fn(params, x):
        return x[:, 0] @ params["kernel"] + params["bias"]

    plans = []
    for fn in (model_fn, as_any_layer(model_fn)):
        objective, _ = restrict(fn, params, Gaussian())
        work = partial(projections, num_vectors=1)
        cost = rows_cost(objective.planned(x), work, for_outputs=True)
        plans.append(choose_held(cost, 3100, Limits(memory=2**30)))
    assert plans[0].num_directions == 3100
    assert plans[0].batch_size >= 16
    assert plans[1].num_directions < 100
