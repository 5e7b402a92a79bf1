"""The noise by the residuals and by the evidence, against refits and closed forms."""

import exact
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from tuned import KEY, WIDE, P, data, fit, net, params

import laplace_kit as lk


def test_noise_and_precision_by_the_evidence_of_linear_regression(x64):
    """At a fixed mode: the optimum that SciPy finds, and MacKay's fixed points (1992)."""
    regression = exact.regression(num=15)
    num, count = regression.num_params, regression.y.size
    la = regression.fit(np.ones(num), np.full(num, 0.2), structure="full")
    theta, _ = regression.posterior(np.ones(num), np.full(num, 0.2))
    design, dev = regression.design(regression.x), theta - 0.2
    squares = np.sum((regression.y.ravel() - design @ theta) ** 2)

    def log_evidence(point):
        delta, variance = np.exp(point)
        fit = -0.5 * (squares / variance + count * np.log(2 * np.pi * variance))
        return exact.evidence(fit, design.T @ design / variance, np.full(num, delta), dev)

    found = minimize(lambda z: -log_evidence(z), np.zeros(2), options={"gtol": 1e-8})
    tuned = la.tune(noise="evidence")
    delta, std = float(tuned.prior_precision), float(tuned.likelihood.noise_std)
    np.testing.assert_allclose(np.log([delta, std**2]), found.x, atol=1e-4)
    assert log_evidence(np.log([delta, std**2])) >= -found.fun - 1e-9
    assert float(tuned.log_marginal_likelihood()) == pytest.approx(-found.fun, abs=1e-7)
    gamma = float(tuned.diagnostics().effective_parameters)
    assert std**2 == pytest.approx(squares / (count - gamma), rel=1e-6)
    assert delta == pytest.approx(gamma / np.sum(dev**2), rel=1e-6)
    assert std == pytest.approx(0.3 * float(tuned.tuning.noise_scale))


def test_noise_of_the_residuals(x64):
    x, y = data("gaussian")
    squares = np.asarray((y - net(params(), x)) ** 2)
    tuned = fit(lk.Gaussian(3.0), "gaussian").tune(noise="residuals", bounds=WIDE)
    assert float(tuned.likelihood.noise_std) == pytest.approx(np.sqrt(squares.mean()), rel=1e-10)
    by_name = fit("gaussian").tune(bounds=WIDE)
    assert float(by_name.likelihood.noise_std) == pytest.approx(np.sqrt(squares.mean()), rel=1e-10)
    assert float(by_name.prior_precision) == pytest.approx(float(tuned.prior_precision), rel=1e-6)
    assert float(fit(lk.Gaussian(3.0), "gaussian").tune(bounds=WIDE).likelihood.noise_std) == 3
    assert float(fit("gaussian").tune(noise="keep", bounds=WIDE).likelihood.noise_std) == 1

    stds = np.array([0.2, 0.5])
    tuned = fit(lk.Gaussian(stds), "gaussian").tune(noise="residuals", bounds=WIDE)
    factor = np.sqrt(np.mean(squares / stds**2))
    np.testing.assert_allclose(tuned.likelihood.noise_std, stds * factor, rtol=1e-10)


def test_a_noise_covariance_is_scaled_as_a_whole(x64):
    x, y = data("gaussian")
    residuals = np.asarray(y - net(params(), x))
    cov = np.array([[0.5, 0.2], [0.2, 0.3]])
    la = fit(lk.MultivariateGaussian(cov), "gaussian")
    tuned = la.tune(noise="residuals", bounds=WIDE)
    scale = np.einsum("nc,cd,nd->", residuals, np.linalg.inv(cov), residuals) / residuals.size
    np.testing.assert_allclose(tuned.likelihood.noise_covariance, cov * scale, rtol=1e-8)
    refit = fit(tuned.likelihood, "gaussian", prior_precision=tuned.prior_precision)
    assert_same(tuned, refit)
    with pytest.raises(TypeError, match=r"MultivariateGaussian.*fit again with another covariance"):
        la.with_noise(0.3)


def test_the_noise_of_masked_targets_is_that_of_the_observed_entries(x64, tmp_path):
    """Fits to pairs (y, mask), against fits to the observed entries, each of them an example."""
    x, y = data("gaussian")
    mask = np.random.default_rng(4).uniform(size=y.shape) < [0.4, 0.8]
    weights = np.where(np.arange(len(x)) < 5, 2.0, 1.0)
    row, output = np.nonzero(mask)

    def entry(params, where):
        x, output = where
        return jnp.take_along_axis(net(params, x), output[:, None], axis=1)

    holes = (x, (jnp.where(mask, y, jnp.nan), mask), weights)
    entries = ((x[row], jnp.asarray(output)), y[row, output][:, None], weights[row])
    masked = lk.fit(net, params(), holes, likelihood=lk.Masked(lk.Gaussian()), structure="full")
    masked.save(tmp_path / "masked.npz")
    loaded = lk.load(tmp_path / "masked.npz", net)
    single = lk.fit(entry, params(), entries, likelihood=lk.Gaussian(), structure="full")
    squares = np.asarray((y - net(params(), x))[row, output] ** 2)
    by_hand = np.sqrt(np.average(squares, weights=weights[row]))
    for noise in (None, "residuals", "evidence"):
        expected = single.tune(noise=noise, bounds=WIDE)
        for la in (masked, loaded):
            found = la.tune(noise=noise, bounds=WIDE)
            assert_same(found, expected)
            twins.assert_close(found.prior_precision, expected.prior_precision, rtol=1e-8)
        if noise != "evidence":
            assert float(found.likelihood.likelihood.noise_std) == pytest.approx(by_hand, rel=1e-10)
    known = masked.with_noise(0.5)
    assert_same(known, single.with_noise(0.5))
    assert known.likelihood.likelihood.known
    assert_same(known.tune(bounds=WIDE), single.with_noise(0.5).tune(bounds=WIDE))

    each = lk.Gaussian(np.array([0.2, 0.5]), known=False)
    tuned = lk.fit(net, params(), holes, likelihood=lk.Masked(each), structure="full").tune()
    ratios = squares / np.array([0.2, 0.5])[output] ** 2
    factor = np.sqrt(np.average(ratios, weights=weights[row]))
    twins.assert_close(tuned.likelihood.likelihood.noise_std, each.noise_std * factor, rtol=1e-10)


def test_the_noise_of_masked_targets_after_an_update(x64):
    x, y = data("gaussian")
    mask = np.random.default_rng(5).uniform(size=y.shape) < 0.6
    parts = [(x[part], (y[part], mask[part])) for part in (slice(0, 12), slice(12, None))]

    def linear(params, x):  # its expansion is exact
        return jnp.tanh(x) @ params["kernel"]

    kernel = np.zeros((2, 2))
    for c, rows in enumerate(mask[:12].T):
        design = np.tanh(x[:12])[rows]
        hessian = design.T @ design + np.eye(2)
        kernel[:, c] = np.linalg.solve(hessian, design.T @ y[:12][rows, c])
    la = lk.fit(
        linear,
        {"kernel": jnp.asarray(kernel)},
        parts[0],
        likelihood=lk.Masked(lk.Gaussian()),
        structure="full",
        prior_precision=1.0,
    ).update(parts[1])
    found = la.tune(noise="residuals", bounds=WIDE).likelihood.likelihood.noise_std
    residuals = np.asarray(y - linear(la.params, x))[mask]
    assert float(found) == pytest.approx(np.sqrt(np.mean(residuals**2)), rel=1e-9)


CURVATURES = {
    "ggn": exact.KINDS,
    "hessian": ("full", "low_rank"),
    "empirical_fisher": ("full", "ekfac"),
    "mc_fisher": ("diagonal", "kron"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("curvature", "kind"), [(c, k) for c in CURVATURES for k in CURVATURES[c]])
def test_another_noise_is_another_fit(curvature, kind, x64):
    options = {"structure": kind, "curvature": curvature, "prior_precision": 30.0}
    options |= {"key": KEY} if curvature == "mc_fisher" else {}
    options |= {"rank": 3} if kind == "low_rank" else {}
    stds = np.array([0.8, 1.1])
    changed = fit(lk.Gaussian(stds), "gaussian", **options).with_noise(1.5 * stds)
    assert_same(changed, fit(lk.Gaussian(1.5 * stds), "gaussian", **options))


def assert_same(la, other):
    vector = jnp.cos(jnp.arange(P, dtype=float))
    np.testing.assert_allclose(*map(ravel, (la.likelihood, other.likelihood)), rtol=1e-10)
    twins.assert_close(la.structure.mv(vector), other.structure.mv(vector), rtol=1e-8)
    assert float(la.log_likelihood) == pytest.approx(float(other.log_likelihood), rel=1e-10)
    twins.assert_close(la.gradient, other.gradient, rtol=1e-10)
    twins.assert_close(la.posterior.covariance(), other.posterior.covariance(), rtol=1e-8)
    evidences = (float(each.log_marginal_likelihood()) for each in (la, other))
    assert next(evidences) == pytest.approx(next(evidences), rel=1e-9)


def ravel(pytree):
    return np.asarray(ravel_pytree(pytree)[0])


def test_noise_by_the_evidence_of_an_empirical_fisher_matrix(x64):
    """That is proportional to the squared noise precision; refits confirm a stationary point."""
    la = fit(lk.Gaussian(0.5), "gaussian", curvature="empirical_fisher")
    tuned = la.tune(noise="evidence", bounds=WIDE)
    std = float(tuned.likelihood.noise_std)

    def of_refit(factor):
        options = {"curvature": "empirical_fisher", "prior_precision": tuned.prior_precision}
        return float(
            fit(lk.Gaussian(std * factor), "gaussian", **options).log_marginal_likelihood()
        )

    best = float(tuned.log_marginal_likelihood())
    assert best == pytest.approx(of_refit(1.0), rel=1e-9)
    assert best > max(of_refit(0.97), of_refit(1.03))
    assert of_refit(1.0 + 1e-4) == pytest.approx(of_refit(1.0 - 1e-4), abs=1e-6)


def test_noise_that_cannot_be_tuned(x64):
    x, y = data("gaussian")
    la = fit("categorical", structure="diagonal")
    for noise in ("residuals", "evidence"):
        with pytest.raises(TypeError, match=r"Found a Categorical likelihood.*noise='keep'"):
            la.tune(noise=noise)
    with pytest.raises(TypeError, match=r"Found a Categorical likelihood.*lk\.Gaussian"):
        la.with_noise(1.0)
    la = fit(lk.Gaussian(np.array([1.0, 2.0])), "gaussian", structure="diagonal")
    with pytest.raises(
        ValueError, match=r"Found noise_std=\[1. 1.\] .*noise_std=\[1. 2.\].*fit again"
    ):
        la.with_noise(np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="noise='evidence' with method='validation'"):
        la.tune(noise="evidence", data=(x, y))
    perfect = lk.fit(
        net, params(), (x, net(params(), x)), likelihood="gaussian", structure="diagonal"
    )
    for noise in (None, "residuals", "evidence"):
        with pytest.raises(ValueError, match=r"Found residuals of about.*lk.Gaussian.noise_std"):
            perfect.tune(noise=noise)
