"""Joint moments of the linearised outputs are J S J'^T of the dense Jacobians."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from exact import KINDS
from jax.flatten_util import ravel_pytree

from laplace_kit import curv
from laplace_kit.approx import LowRankStructure, Structure
from laplace_kit.approx.dual import fit_dual
from laplace_kit.approx.kronecker import Eigenblock, KroneckerStructure
from laplace_kit.approx.low_rank import LowRankPosterior
from laplace_kit.approx.posterior import Posterior
from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.curv.capture.products import Lookup
from laplace_kit.curv.objective import restrict
from laplace_kit.eval.joint import joint_moments, marginal_moments, pairs_at_a_time
from laplace_kit.eval.moments import linearized_moments
from laplace_kit.likelihood import Categorical


def dense(kind) -> np.ndarray:
    """Return the covariance of all outputs of `twins.mlp` at its inputs, `(N, C, N, C)`."""
    jac = twins.dense(twins.jacobian, "mlp")
    return np.einsum("ncp,pq,mdq->ncmd", jac, exact.covariance(kind, np.ones(31)), jac)


@pytest.mark.accelerator
@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_those_of_the_dense_matrices(kind, x64):
    la, x = exact.fitted(kind, "float64"), twins.problem("mlp", "float64").x
    every = f_mean, cov = joint_moments(la.objective, la.posterior, x)
    np.testing.assert_allclose(f_mean, twins.mlp(la.params, x))
    twins.assert_close(cov, dense(kind), rtol=1e-9)
    flat = np.asarray(cov).reshape(21, 21)
    twins.assert_close(flat, flat.T)
    assert np.linalg.eigvalsh(flat).min() > -1e-10 * np.abs(flat).max()
    for part, expected in zip(
        joint_moments(la.objective.within(3), la.posterior, x), every, strict=True
    ):
        twins.assert_close(part, expected)
    _, *alone = linearized_moments(la.objective, la.posterior, x, full=True)
    for part, expected in zip(marginal_moments(*every), alone, strict=True):
        twins.assert_close(part, expected)


def test_single_precision_and_compiled():
    la, x = exact.fitted("ekfac", "float32"), twins.problem("mlp", "float32").x
    f_mean, cov = jax.jit(lambda la, x: joint_moments(la.objective, la.posterior, x))(la, x)
    assert f_mean.dtype == cov.dtype == jnp.float32
    twins.assert_close(cov, dense("ekfac"), dtype="float32")


# --- all kinds of layers --------------------------------------------------------------------------


def several_kinds(params, batch):
    """A table, a grouped convolution with bias, a scale, and a matrix used twice."""
    tokens, images = batch["tokens"], batch["images"]
    words = jnp.tanh(params["table"][tokens]).mean(axis=1)
    z = jax.lax.conv_general_dilated(
        images,
        params["kernel"],
        (2,),
        [(1, 0)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=2,
    )
    z = jnp.tanh(z + params["bias"]).mean(axis=1) * params["scale"]
    h = jnp.concatenate([words, z], axis=1) @ params["twice"]
    return jnp.tanh(h) @ params["twice"] @ params["out"]


def mixture():
    rng = np.random.default_rng(0)
    shapes = {"bias": 4, "kernel": (3, 2, 4), "out": (6, 3), "scale": 4}
    shapes |= {"table": (5, 2), "twice": (6, 6)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    tokens = jnp.asarray(rng.integers(0, 5, (5, 3)))
    return params, {"tokens": tokens, "images": jnp.asarray(rng.normal(size=(5, 5, 4)))}


def structures(layers, num) -> list[Structure]:
    """Return those whose rows stay in factors, with random eigenvalues in random bases."""
    rng = np.random.default_rng(1)

    def basis(groups, width):
        return jnp.asarray(np.linalg.qr(rng.normal(size=(groups, width, width)))[0])

    blocks = []
    for layer in layers:
        groups, width, out = layer.layout.shape
        left = None if isinstance(layer.product, Lookup) else basis(groups, width)
        values = jnp.asarray(rng.uniform(size=layer.layout.shape))
        blocks.append(Eigenblock(left, basis(groups, out), values, layer.layout))
    values = jnp.asarray([5.0, 2.0])
    return [
        LowRankStructure(values, basis(1, num)[0, :2], jnp.zeros(2), jnp.zeros(())),
        KroneckerStructure(tuple(blocks), corrected=True),
    ]


@pytest.mark.slow
def test_of_several_kinds_of_layers(x64):
    params, x = mixture()
    flat, unravel = ravel_pytree(params)
    jac = np.asarray(jax.jit(jax.jacobian(lambda t: several_kinds(unravel(t), x)))(flat))
    priors = zip(params, [3.0, 0.5, 1.5, 0.9, 2.0, 0.4], strict=True)
    precision = jnp.concatenate([jnp.full(params[name].size, value) for name, value in priors])
    objective, _ = restrict(several_kinds, params, Categorical())
    for structure in structures(objective.planned(x).plan.layers.layers, flat.size):
        posterior = jax.jit(lambda structure, d: structure.posterior(d))(structure, precision)
        sigma = jax.jit(type(posterior).covariance)(posterior)
        expected = np.einsum("ncp,pq,mdq->ncmd", jac, sigma, jac)
        _, cov = joint_moments(objective.within(2), posterior, x)
        twins.assert_close(cov, expected)
        if isinstance(posterior, LowRankPosterior):  # which subtracts from the prior's covariance
            assert not posterior._multiplies_out


def test_in_the_dual_form(x64):
    problem, la = twins.problem("mlp", "float64"), exact.fitted("full", "float64")
    posterior = fit_dual(curv.GGNOperator(*problem.args)).posterior(jnp.ones(31))
    _, cov = joint_moments(la.objective, posterior, problem.x)
    twins.assert_close(cov, dense("full"), rtol=1e-9)


def test_any_posterior_has_it_through_dense_rows(x64):
    @jax.jit
    def through_dense_rows(la, x):
        rows = jacobian(la.objective, x)[1]
        return Posterior.cross_covariance(la.posterior, rows, rows)

    la, x = exact.fitted("kron", "float64"), twins.problem("mlp", "float64").x
    twins.assert_close(through_dense_rows(la, x), dense("kron"), rtol=1e-9)


# --- memory ---------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_work(x64):
    la, x = exact.fitted("diagonal", "float64"), twins.problem("mlp", "float64").x
    many = jnp.tile(x, (30, 1))
    with pytest.raises(
        ValueError, match=r"of 210 inputs with 3 output.*3.028 MiB.*limit of 976.6 KiB.*fewer"
    ):
        joint_moments(la.objective.within(memory=1_000_000), la.posterior, many)
    with pytest.raises(ValueError, match=r"rows of one example in 3 direction.*memory limit of"):
        joint_moments(la.objective.within(memory=100), la.posterior, x[:1])


def test_a_small_limit_makes_chunks_of_pairs(x64):
    la, x = exact.fitted("full", "float64"), twins.problem("mlp", "float64").x
    small = la.objective.within(memory=20_000)
    assert 1 < pairs_at_a_time(small.planned(x), la.posterior) < len(x)
    _, cov = joint_moments(small, la.posterior, x)
    twins.assert_close(cov, dense("full"), rtol=1e-9)


def test_new_values_compile_nothing():
    la, x = exact.fitted("ekfac", "float32"), twins.problem("mlp", "float32").x
    joint_moments(la.objective.within(4), la.posterior, x)
    other = la.with_prior(3.0)
    with twins.compilations() as names:
        joint_moments(other.objective.within(4), other.posterior, x)
    assert not names
