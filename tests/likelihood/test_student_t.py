"""Heavy-tailed noise against SciPy's distribution, and its Fisher information."""

import jax
import jax.numpy as jnp
import numpy as np
import output_space
import pytest
from scipy import integrate, stats

import laplace_kit as lk
from laplace_kit.likelihood import StudentT, as_likelihood
from laplace_kit.likelihood.base import check_targets

F = np.asarray([[0.3, -1.2, 0.8], [2.0, 0.1, -0.7]])
Y = np.asarray([[0.5, 9.0, 0.8], [-40.0, 0.0, -0.6]])
SCALE = np.asarray([0.5, 1.0, 2.0])


@pytest.mark.parametrize("nu", [0.7, 4.0, 1e4])
def test_loss_is_the_density_of_scipy(nu, x64):
    likelihood = StudentT(jnp.asarray(SCALE), nu)
    f, y = jnp.asarray(F), jnp.asarray(Y)
    np.testing.assert_allclose(
        likelihood.entry_losses(f, y), -stats.t.logpdf(Y, nu, F, SCALE), rtol=1e-9
    )
    gradient = jax.grad(likelihood.negative_log_prob)(f, y)
    residual = Y - F
    expected = -(nu + 1) * residual / (nu * SCALE**2 + residual**2)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)


def test_many_degrees_of_freedom_are_normal_noise_in_single_precision():
    found = StudentT(2.0, 1e6).entry_losses(jnp.asarray([0.0]), jnp.asarray([3.0]))
    np.testing.assert_allclose(found, -stats.norm.logpdf(3.0, 0.0, 2.0), rtol=1e-5)


@pytest.mark.parametrize("nu", [1.0, 4.0])
def test_curvature_is_the_fisher_information(nu, x64):
    """The integral of the squared score, and the root whose square it is."""
    likelihood, f, y = StudentT(0.5, nu), jnp.asarray(F), jnp.asarray(Y)
    law = stats.t(nu, 0.0, 0.5)

    def squared_score(r):
        return ((nu + 1) * r / (nu * 0.25 + r**2)) ** 2 * law.pdf(r)

    expected = 2 * integrate.quad(squared_score, 0, np.inf)[0]
    _, _, hessian, square = output_space.forms(likelihood, f, y)
    np.testing.assert_allclose(hessian, expected * np.eye(6), rtol=1e-8)
    np.testing.assert_allclose(square, hessian, rtol=1e-12)
    output_space.assert_scores(likelihood, f[0], y[0])


def test_samples_have_the_stated_distribution(x64):
    keys = jax.random.split(jax.random.key(0), 5000)
    f = jnp.asarray([1.0, -2.0])
    y = jax.vmap(lambda key: StudentT(jnp.asarray([0.5, 2.0]), 3.0).sample(key, f))(keys)
    for c, scale in enumerate((0.5, 2.0)):
        law = stats.t(3.0, float(f[c]), scale)
        assert stats.kstest(np.asarray(y)[:, c], law.cdf).pvalue > 0.01


def test_what_is_wrong_is_named():
    for scale in (0.0, -1.0, np.nan, np.asarray([1.0, 0.0])):
        with pytest.raises(ValueError, match=r"Found scale=.*expected positive, finite"):
            StudentT(scale)
    with pytest.raises(ValueError, match=r"Found degrees_of_freedom=0.*expected positive, finite"):
        StudentT(1.0, 0.0)
    with pytest.raises(ValueError, match=r"degrees_of_freedom of shape \(2,\), expected one"):
        StudentT(1.0, np.ones(2))
    with pytest.raises(ValueError, match=r"a scale of shape \(3,\) for outputs \(5, 2\)"):
        check_targets(StudentT(np.ones(3)), jnp.zeros((5, 2)), jnp.zeros((5, 2)))
    assert isinstance(as_likelihood("student_t"), StudentT)


def test_noise_without_a_variance_is_judged_by_what_it_has(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 1)).astype(np.float32)
    y = x + np.float32(0.3) * np.random.default_rng(1).standard_t(2, size=x.shape).astype("float32")
    la = lk.fit(
        lambda w, x: x @ w,
        jnp.ones((1, 1)),
        (x, y),
        likelihood=StudentT(0.3, 2.0),
        structure="full",
    )
    assert set(la.evaluate((x, y))) == {"nll", "rmse", "coverage_90"}
    with pytest.raises(ValueError, match=r"targets of infinite variance.*predictive\.interval"):
        lk.eval.conformal_intervals(la.predict(x), y)
    with pytest.raises(ValueError, match=r"infinite variances under a StudentT.*la\.evaluate"):
        la.report((x, y), tmp_path)
