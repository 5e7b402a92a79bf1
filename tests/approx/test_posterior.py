"""Every structure is the Gaussian of the dense matrix it claims to be, for every prior."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from exact import ANY_CURVATURE, KINDS
from jax.flatten_util import ravel_pytree

from laplace_kit import curv, tree
from laplace_kit.approx import (
    DiagonalPosterior,
    DiagonalStructure,
    FullStructure,
    LowRankStructure,
    Spectrum,
)
from laplace_kit.approx.dual import fit_dual
from laplace_kit.approx.posterior import factorise, without_rounding

P = 31  # parameters of twins.mlp: 4 + 12 hidden, 3 + 12 out
PER_LEAF = {"hidden": 2.0, "out": {"bias": 5.0, "kernel": 0.3}}
FLAT = np.exp(np.random.default_rng(0).normal(size=P))
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


def prior(form: str, params) -> tuple:
    """Return a prior precision in one of its forms, and the vector that it means."""
    if form == "scalar":
        return 0.5, np.full(P, 0.5)
    if form == "prefix":
        return PER_LEAF, np.repeat([2.0, 5.0, 0.3], [16, 3, 12])
    if form == "flat":
        return FLAT, FLAT
    unravel = ravel_pytree(params)[1]
    return unravel(jnp.asarray(FLAT[::-1], jax.tree.leaves(params)[0].dtype)), FLAT[::-1]


@jax.jit
def facts(structure, posterior, precision):
    eye = jnp.eye(P, dtype=precision.dtype)
    return (
        posterior.covariance(),
        posterior.variance(),
        posterior.scale_mv(eye).T,
        posterior.scale_rmv(eye).T,
        structure.for_prior(precision).log_det(precision),
    )


@pytest.mark.accelerator
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_posterior_evidence_and_predictive_are_those_of_the_dense_matrix(kind, dtype):
    for form in ("scalar", "prefix", "flat", "pytree"):
        with twins.precision(dtype):
            check_against_dense(kind, form, dtype)


def check_against_dense(kind, form, dtype):
    problem, rtol = twins.problem("mlp", dtype), TOLERANCE[dtype]
    given, precision = prior(form, problem.params)
    la = exact.fitted(kind, dtype).with_prior(given)
    cov = exact.covariance(kind, precision)

    found = facts(la.structure, la.posterior, jnp.asarray(precision, dtype))
    assert all(array.dtype == dtype for array in found)
    twins.assert_close(found[0], cov, rtol=rtol)
    twins.assert_close(found[1], np.diag(cov), rtol=rtol)
    root = np.asarray(found[2], np.float64)
    twins.assert_close(root @ root.T, cov, rtol=rtol)
    twins.assert_close(found[3], root.T, rtol=rtol)
    log_det = exact.log_det(exact.curvature(kind) + np.diag(precision))
    twins.assert_close(found[4], log_det, rtol=rtol)

    theta = np.asarray(twins.flat(problem)[0], np.float64)
    log_likelihood = -float(twins.total_loss(problem)(twins.flat(problem)[0]))
    expected = exact.evidence(log_likelihood, exact.curvature(kind), precision, theta)
    twins.assert_close(la.log_marginal_likelihood(), expected, rtol=rtol)
    twins.assert_close(
        exact.fitted(kind, dtype).log_marginal_likelihood(given), expected, rtol=rtol
    )

    jac = twins.dense(twins.jacobian, "mlp")
    predictive = la.predict(problem.x)
    f_cov = np.einsum("ncp,pq,ndq->ncd", jac, cov, jac)
    twins.assert_close(predictive.f_cov, f_cov, rtol=rtol)
    twins.assert_close(predictive.f_var, np.einsum("ncc->nc", f_cov), rtol=rtol)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_mean_and_covariance_that_are_reported(kind, x64):
    la, num = exact.fitted(kind, "float64").with_prior(PER_LEAF), 20_000
    draws = la.sample(jax.random.key(1), num)
    mode = ravel_pytree(la.params)[0]
    flat = np.concatenate([leaf.reshape(num, -1) for leaf in jax.tree.leaves(draws)], axis=1) - mode
    cov = np.asarray(la.posterior.covariance())
    variance = np.diag(cov)

    mean_error = flat.mean(axis=0) / np.sqrt(variance / num)
    # Wishart: the covariance of K draws has entries of variance (S_ij^2 + S_ii S_jj) / K.
    standard_error = np.sqrt((cov**2 + np.outer(variance, variance)) / num)
    cov_error = (flat.T @ flat / num - cov) / standard_error
    assert np.abs(mean_error).max() < 4
    assert np.abs(cov_error).max() < 5
    assert np.mean(mean_error**2) == pytest.approx(1, abs=0.8)
    assert np.mean(cov_error**2) == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_in_the_prior(kind, x64):
    """By the inverse's derivative dS = -S dd S, and that of log|H + d|, the diagonal of S."""
    structure = exact.fitted(kind, "float64").structure

    @jax.jit
    def derivatives(structure, precision):
        structure = structure.for_prior(precision)
        variance = jax.jacobian(lambda d: structure.posterior(d).variance())(precision)
        return variance, jax.grad(structure.log_det)(precision)

    variance, log_det = derivatives(structure, jnp.asarray(FLAT))
    cov = exact.covariance(kind, FLAT)
    twins.assert_close(variance, -(cov**2), rtol=1e-9)
    twins.assert_close(log_det, np.diag(cov), rtol=1e-9)


@pytest.mark.parametrize("kind", ["kron", "ekfac"])
def test_derivatives_in_the_precisions_of_weights_and_biases(kind, x64):
    """The same, summed over the parameters that share a precision."""
    la = exact.fitted(kind, "float64")
    leaves = jax.tree.structure(la.params)
    member = np.repeat(np.eye(4), [4, 12, 3, 12], axis=0)

    @jax.jit
    def derivatives(structure, values):
        def expand(values):
            precision = jax.tree.unflatten(leaves, list(values))
            return tree.broadcast(precision, la.params, name="prior_precision")

        variance = jax.jacobian(lambda d: structure.posterior(expand(d)).variance())(values)
        return variance, jax.grad(lambda d: structure.log_det(expand(d)))(values)

    values = np.array([0.3, 2.0, 5.0, 0.7])
    variance, log_det = derivatives(la.structure, jnp.asarray(values))
    cov = exact.covariance(kind, member @ values)
    twins.assert_close(variance, -(cov**2) @ member, rtol=1e-9)
    twins.assert_close(log_det, np.diag(cov) @ member, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_roots_act_on_the_last_axis(kind, x64):
    posterior = exact.fitted(kind, "float64").posterior
    vectors = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, P)))
    for root in (posterior.scale_mv, posterior.scale_rmv):
        twins.assert_close(root(vectors)[1, 2], root(vectors[1, 2]))


@pytest.mark.accelerator
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [*KINDS, "dual"])
def test_a_scaled_structure_is_that_of_the_scaled_matrix(kind, dtype):
    with twins.precision(dtype):
        structure = dual(dtype) if kind == "dual" else exact.fitted(kind, dtype).structure
        matrix = 0.3 * exact.curvature("full" if kind == "dual" else kind)
        vector, precision = jnp.cos(jnp.arange(P, dtype=dtype)), jnp.full(P, 0.5, dtype)
        scaled = jax.jit(type(structure).scaled)(structure, jnp.asarray(0.3, dtype))
        assert type(scaled) is type(structure)
        assert scaled.name == structure.name
        posterior, _ = factorise(scaled, precision)
        values = np.linalg.eigvalsh(matrix)
        rtol = TOLERANCE[dtype]
        twins.assert_close(scaled.mv(vector), matrix @ np.asarray(vector), rtol=rtol)
        dense = matrix + 0.5 * np.eye(P)
        twins.assert_close(scaled.log_det(precision), exact.log_det(dense), rtol=rtol)
        twins.assert_close(posterior.covariance(), np.linalg.inv(dense), rtol=rtol)
        spectrum = scaled.spectrum()
        twins.assert_close(spectrum.log_det(precision[0]), exact.log_det(dense), rtol=rtol)
        twins.assert_close(spectrum.values.max(), values.max(), rtol=rtol)


def dual(dtype):
    problem = twins.problem("mlp", dtype)
    return fit_dual(curv.GGNOperator(*problem.args))


# --- spectra --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_spectrum_gives_what_an_isotropic_prior_needs(kind, x64):
    structure, matrix = exact.fitted(kind, "float64").structure, exact.curvature(kind)
    spectrum = structure.spectrum()
    for delta in jnp.asarray([1e-3, 1.0, 50.0]):
        expected = exact.log_det(matrix + delta * np.eye(P))
        twins.assert_close(spectrum.log_det(delta), expected, rtol=1e-9)
        trace = np.trace(matrix @ np.linalg.inv(matrix + delta * np.eye(P)))
        twins.assert_close(spectrum.effective_parameters(delta), trace, rtol=1e-9)
        twins.assert_close(spectrum.undetermined_parameters(delta), P - trace, rtol=1e-9)


def test_few_undetermined_parameters_keep_their_digits():
    values = np.full(1000, 3e5, np.float32)
    spectrum = Spectrum(jnp.asarray(values), jnp.asarray(values.min()), 1000)
    found = spectrum.undetermined_parameters(jnp.asarray(0.1, jnp.float32))
    np.testing.assert_allclose(found, 1000 * 0.1 / (3e5 + 0.1), rtol=1e-5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_seen(wrong, x64):
    std = np.ones(5000)
    assert DiagonalPosterior(jnp.asarray(std)).is_finite()
    std[4321] = wrong
    assert not DiagonalPosterior(jnp.asarray(std)).is_finite()


def test_only_rounding_is_taken_for_zero(x64):
    values = jnp.asarray([1.0, -5e-16, 0.5, -1e-9])
    np.testing.assert_array_equal(without_rounding(values, 4), [1.0, 0.0, 0.5, -1e-9])


def test_no_log_determinant_of_an_indefinite_matrix(x64):
    # Two negative eigenvalues: the determinant itself is positive.
    spectrum = Spectrum(jnp.asarray([-2.0, -1.0, 3.0]), jnp.asarray(-2.0), 3)
    assert np.isnan(spectrum.log_det(jnp.asarray(0.5)))
    assert np.isfinite(spectrum.log_det(jnp.asarray(2.5)))


# --- factorisation --------------------------------------------------------------------------------


def structures(eigenvalues) -> dict:
    """Return the structures of one matrix with the given eigenvalues, on the coordinate axes."""
    values = jnp.asarray(eigenvalues)
    positive = jnp.maximum(values, 0)
    zeros = jnp.zeros_like(values)
    return {
        "full": FullStructure(jnp.diag(values)),
        "diagonal": DiagonalStructure(values),
        "low_rank": LowRankStructure(positive, jnp.eye(len(values)), zeros, values.min()),
    }


@pytest.mark.parametrize("kind", ANY_CURVATURE)
def test_indefinite_curvature_is_refused_with_its_eigenvalue_and_a_choice(kind, x64):
    structure = structures([5.0, 1.0, -3.0])[kind]
    with pytest.raises(
        ValueError, match=r"most negative eigenvalue is -3,.*positive definite"
    ) as e:
        factorise(structure, jnp.full(3, 2.0))
    assert "smallest prior precision is 2" in str(e.value)
    assert "raise prior_precision above 3" in str(e.value)
    assert "curvature='ggn'" in str(e.value)
    posterior, jitter = factorise(structure, jnp.full(3, 4.0))  # outweighed by the prior
    assert jitter == 0
    if kind != "low_rank":  # which holds the positive part alone
        twins.assert_close(posterior.variance(), [1 / 9, 1 / 5, 1])


@pytest.mark.parametrize("kind", ANY_CURVATURE)
def test_jitter_is_added_only_where_rounding_demands_it_and_is_told(kind, x64):
    structure = structures([1e6, 1.0, -1e-11])[kind]
    precision = jnp.full(3, 1e-12)
    posterior, jitter = factorise(structure, precision)
    raised = 1e6 * float(jitter)  # the share of the largest curvature
    assert 1e-11 < raised < 1e-7
    variance = 1 / (np.array([1e6, 1.0, 0.0]) + raised)
    twins.assert_close(posterior.variance(), variance, rtol=1e-1)
    assert factorise(structure, jnp.full(3, 1e-3))[1] == 0


def test_scales_that_differ_by_orders_of_magnitude_survive_single_precision():
    """Jitter of the size of the largest eigenvalue's rounding would outweigh the prior here."""
    scales = 10.0 ** np.linspace(3, 0, 12)

    def features(x):
        return x[:, None] ** np.arange(12) * scales

    scaled = features(np.linspace(0, 1, 60)) / 0.01  # by the noise
    exact = np.linalg.inv(scaled.T @ scaled + np.eye(12))
    single = jnp.asarray(scaled, jnp.float32)
    structure = FullStructure(jnp.matmul(single.T, single, precision="highest"))
    posterior, jitter = factorise(structure, jnp.ones(12, jnp.float32))
    assert 0 < jitter < 1e-3
    rows, found = features(np.linspace(0, 1, 7)), np.asarray(posterior.covariance(), np.float64)
    ratio = np.einsum("np,pq,nq->n", rows, found, rows) / np.einsum(
        "np,pq,nq->n", rows, exact, rows
    )
    assert np.all((ratio > 0.4) & (ratio < 1.2))  # of a condition number of 1e12


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_curvature_that_is_not_finite_is_refused(kind, x64):
    with pytest.raises(ValueError, match=r"curvature that is not finite, expected finite.*hessian"):
        factorise(structures([1.0, np.nan, 2.0])[kind], jnp.ones(3))


def test_inside_a_transformation_no_value_is_looked_at(x64):
    structure = structures([1.0, 2.0, -3.0])["full"]
    posterior, jitter = jax.jit(factorise)(structure, jnp.ones(3))
    assert jitter == 0
    assert not posterior.is_finite()
