"""The low-rank posterior: full at full rank, honest below it, and stable in single precision."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit import curv
from laplace_kit.approx.low_rank import LowRankStructure, fit_low_rank
from laplace_kit.approx.posterior import factorise
from laplace_kit.approx.spec import Sizes
from laplace_kit.curv.linearization import linearized
from laplace_kit.curv.matrix_free import lanczos
from laplace_kit.eval.predictive import predict
from laplace_kit.likelihood import Gaussian

P = 31
PRECISION = np.exp(np.linspace(-3.0, 3.0, P))


def structure_of(values, vectors, smallest=0.0) -> LowRankStructure:
    values, vectors = jnp.asarray(values), jnp.asarray(vectors)
    zeros = jnp.zeros_like(values)
    return LowRankStructure(values, vectors, zeros, jnp.asarray(smallest, values.dtype))


@jax.jit
def facts(structure, precision, v):
    posterior = structure.posterior(precision)
    quadratic_form = jnp.sum(posterior.scale_rmv(v) ** 2)
    log_det = structure.log_det(precision)
    return log_det, posterior.covariance(), posterior.variance(), quadratic_form


log_det = jax.jit(LowRankStructure.log_det)


@pytest.mark.parametrize("rank", [P, 20])
def test_equals_full_where_the_rank_covers_the_curvature(rank, x64):
    """At rank P, and at rank 20, more than the 14 directions that 7 examples of 3 classes fix."""
    problem = twins.problem("mlp", "float64")
    structure = fit_low_rank(curv.GGNOperator(*problem.args), rank)
    found = facts(structure, PRECISION, jnp.ones(P))
    matrix = exact.curvature("full") + np.diag(PRECISION)
    cov = np.linalg.inv(matrix)
    for ours, full in zip(
        found, (exact.log_det(matrix), cov, np.diag(cov), cov.sum()), strict=True
    ):
        twins.assert_close(ours, full, rtol=1e-9)


def test_log_determinant_grows_with_the_rank(x64):
    values, vectors = np.linalg.eigh(exact.curvature("full"))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1].T
    kept = [np.where(np.arange(P) < rank, values, 0) for rank in (1, 6, 14, P)]
    found = [log_det(structure_of(v, vectors), PRECISION) for v in kept]
    assert np.all(np.diff(found) > -1e-10)
    assert np.all(np.diff(found[:3]) > 0.1)
    full = exact.log_det(exact.curvature("full") + np.diag(PRECISION))
    twins.assert_close(found[-1], full)


def test_derivative_in_the_prior_at_a_rank_beyond_the_curvature_s(x64):
    """Eigenvalues that are zero, many times over, must not turn derivatives to NaN."""
    values = np.array([4.0, 4.0, 1.0, 0.0, 0.0])
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    precision = np.linspace(0.5, 2.0, 5)

    @jax.jit
    def derivative(structure, precision):
        return jax.jacobian(lambda d: structure.posterior(d).variance())(precision)

    found = derivative(structure_of(values, vectors), precision)
    cov = np.linalg.inv(vectors.T @ (values[:, None] * vectors) + np.diag(precision))
    twins.assert_close(found, -(cov**2))


def test_no_curvature_leaves_the_prior(x64):
    structure = structure_of(np.zeros(P), np.eye(P))
    found = facts(structure, PRECISION, jnp.ones(P))
    twins.assert_close(found[1], np.diag(1 / PRECISION))
    assert float(found[0]) == pytest.approx(0.0, abs=1e-12)  # the precisions' logarithms cancel


def test_single_precision_over_many_orders_of_magnitude():
    """Eigenvalues from 1e8 to 1 under a prior of six orders: products stay accurate to 1e-3."""
    rng = np.random.default_rng(1)
    vectors = np.linalg.qr(rng.normal(size=(P, 8)))[0].T
    values, precision = np.logspace(8, 0, 8), np.logspace(-3, 3, P)
    matrix = vectors.T @ (values[:, None] * vectors) + np.diag(precision)
    cov = np.linalg.inv(matrix)
    v = (cov @ rng.normal(size=P)).astype(np.float32)  # a direction that counts
    single = structure_of(values.astype(np.float32), vectors.astype(np.float32))
    found = facts(single, precision.astype(np.float32), v)
    twins.assert_close(found[0], exact.log_det(matrix), rtol=1e-5)
    twins.assert_close(found[1], cov, rtol=1e-3)
    twins.assert_close(found[3], v @ cov @ v, rtol=1e-3)


def test_indefinite_is_nan_and_never_clipped(x64):
    values = np.where(np.arange(P) == 0, 3.0, 0.0)
    structure = structure_of(values, np.eye(P), smallest=-2.0)
    inside, outside = jnp.full(P, 2.5), jnp.full(P, 1.5)
    assert all(np.isfinite(array).all() for array in facts(structure, inside, inside))
    assert all(np.isnan(array).any() for array in facts(structure, outside, outside))
    spectrum = structure.spectrum()
    assert np.isnan(spectrum.log_det(outside[0]))
    twins.assert_close(spectrum.log_det(inside[0]), log_det(structure, inside))


def test_negative_rounding_of_the_smallest_eigenvalue_counts_as_zero(x64):
    """A positive semi-definite curvature must not fail, nor get jitter, under a tiny prior."""
    structure = exact.fitted("low_rank", "float64").structure
    assert structure.smallest == 0
    assert np.isfinite(log_det(structure, jnp.full(P, 1e-14)))


def test_smallest_eigenvalue_of_a_hessian_is_kept(x64):
    problem = twins.problem("mlp", "float64")
    structure = fit_low_rank(curv.HessianOperator(*problem.args), P)
    expected = np.linalg.eigvalsh(twins.dense(twins.hessian, "mlp"))
    assert expected[0] < -0.1
    twins.assert_close(structure.spectrum().smallest, expected[0])
    twins.assert_close(structure.values, np.maximum(expected[::-1], 0))


@pytest.mark.parametrize(("noise_std", "delta", "rtol"), [(0.1, 1.0, 1e-3), (0.01, 0.1, 5e-3)])
def test_single_precision_where_the_data_outweigh_the_prior(noise_std, delta, rtol):
    """Predictions whose variance falls by 1e4 and more: the difference must not drown."""
    regression = exact.regression(num=40)
    regression = exact.Regression(regression.x, regression.y, noise_std=noise_std)
    precision, mean = np.full(8, delta), np.zeros(8)
    single = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32), regression.unravel(np.zeros(8))
    )
    operator = curv.GGNOperator(
        exact.linear,
        single,
        (regression.x.astype(np.float32), regression.y.astype(np.float32)),
        Gaussian(noise_std),
    )
    posterior = fit_low_rank(operator, 8).posterior(jnp.full(8, delta, jnp.float32))
    _, cov = regression.posterior(precision, mean)
    found = predict(operator.objective, posterior, regression.x.astype(np.float32))
    design = regression.design(regression.x).reshape(40, 2, 8)
    expected = np.einsum("ncp,pq,ncq->nc", design, cov, design)
    np.testing.assert_allclose(found.f_var, expected, rtol=rtol)
    np.testing.assert_allclose(posterior.variance(), np.diag(cov), rtol=rtol)
    assert np.linalg.eigvalsh(np.asarray(found.f_cov, np.float64)).min() > 0


@pytest.mark.slow
def test_many_parameters_are_predicted_from_factors(x64):
    """The road for P far above the rank equals the dense posterior too."""
    params = {"w1": jnp.asarray(np.random.default_rng(0).normal(size=(9, 8)))}
    params["w2"] = jnp.asarray(np.random.default_rng(1).normal(size=(8, 2)))

    def model_fn(params, x):
        return jnp.tanh(x @ params["w1"]) @ params["w2"]

    x = jnp.asarray(np.random.default_rng(2).normal(size=(7, 9)))
    operator = curv.GGNOperator(model_fn, params, (x, jnp.zeros((7, 2))), Gaussian(0.3))
    posterior = fit_low_rank(operator, 2).posterior(jnp.full(88, 0.7))
    assert posterior.size > 32 * len(posterior.rows)
    found = predict(operator.objective, posterior, x)
    flat, unravel = ravel_pytree(params)
    rows = jax.jit(jax.jacobian(lambda vector: model_fn(unravel(vector), x)))(flat)
    dense = posterior.covariance()
    np.testing.assert_allclose(
        found.f_cov, np.einsum("ncp,pq,ndq->ncd", rows, dense, rows), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(found.f_var, np.einsum("ncc->nc", found.f_cov), rtol=1e-12)
    np.testing.assert_allclose(posterior.variance(), np.diag(dense), rtol=1e-9)


# --- models in lower precision --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("as_stream", [False, True])
def test_a_model_in_lower_precision_is_positive_semidefinite_up_to_its_rounding(dtype, as_stream):
    """Its products are rounded by epsilon times the norm: so far it agrees with float32."""
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 20), "v": (20, 3)}
    params = {name: jnp.asarray(rng.normal(size=s), dtype) for name, s in shapes.items()}
    x, y = rng.normal(size=(40, 3)).astype("float32"), rng.integers(0, 3, 40)

    def network(params, x):
        return jnp.tanh(x.astype(params["w"].dtype) @ params["w"]) @ params["v"]

    def matrix_of(params):
        return curv.GGNOperator(network, params, (x, y), "categorical").to_dense()

    exact_params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    expected = np.linalg.eigvalsh(matrix_of(exact_params))[::-1]
    data = [(x[:25], y[:25]), (x[25:], y[25:])] if as_stream else (x, y)
    structure = fit_low_rank(curv.GGNOperator(network, params, data, "categorical"), 10)
    assert structure.smallest == 0
    assert (structure.values > 0).all()
    eps = float(jnp.finfo(dtype).eps)
    found = np.asarray(structure.values)
    np.testing.assert_allclose(found, expected[: len(found)], atol=2 * eps * expected[0])
    assert len(found) >= np.sum(expected[:10] > 3 * eps * expected[0])
    assert structure.residuals.max() < 2 * eps * expected[0]
    posterior, _ = factorise(structure, jnp.ones(120))
    assert posterior.is_finite()


@pytest.mark.parametrize("rank", [5, 20])
def test_the_estimate_covers_a_run_of_lanczos_and_the_vectors_of_the_one_before(rank):
    def network(params, x):
        return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"])

    params = {"a": jnp.eye(100), "b": jnp.eye(100)}
    operator = curv.GGNOperator(network, params, (jnp.ones((2, 100)),) * 2, Gaussian())
    num, depth = operator.shape[0], 2 * rank + 10
    vectors = [jax.ShapeDtypeStruct((n, num), "float32") for n in (rank, depth)]
    start = jax.ShapeDtypeStruct((num,), "float32")
    run = lanczos._tridiagonalize.lower(linearized(operator), start, vectors[0], depth, 0.0, None)
    found = run.compile().memory_analysis()
    needed = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    planned = lk.LowRank(rank).bytes(Sizes(num, 4))
    assert 0.6 * planned < needed + 4 * depth * num < planned


# --- as `structure=` ------------------------------------------------------------------------------


def test_the_rank_is_fifty_or_what_there_is():
    for num_params, rank in ((31, 31), (1000, 50)):
        assert lk.LowRank().forms(Sizes(num_params, 4)) == (lk.LowRank(rank),)
        assert lk.LowRank().bytes(Sizes(num_params, 4)) == 4 * num_params * (5 * rank + 40)
    assert lk.LowRank(7).forms(Sizes(31, 4)) == (lk.LowRank(7),)
    with pytest.raises(ValueError, match="rank=32, expected a number from 1 to P=31"):
        lk.LowRank(32).forms(Sizes(31, 4))
    with pytest.raises(ValueError, match="rank=0, expected a whole number of eigenpairs"):
        lk.LowRank(0)


def test_the_object_fits_an_operator():
    operator, key = curv.GGNOperator(*twins.problem("mlp").args), jax.random.key(0)
    found, expected = lk.LowRank(4).fit(operator, key), fit_low_rank(operator, 4, key=key)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
