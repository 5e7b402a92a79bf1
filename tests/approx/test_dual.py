"""The dual form is the full posterior: in evidence, predictions and samples, for any prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from architectures import ZOO

from laplace_kit import curv
from laplace_kit.approx.dual import fit_dual
from laplace_kit.approx.full import fit_full
from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.likelihood import Gaussian

KEY = jax.random.key(3)
OPERATORS = {
    "ggn": (curv.GGNOperator, {}),
    "empirical_fisher": (curv.EmpiricalFisherOperator, {}),
    "mc_fisher": (curv.MonteCarloFisherOperator, {"key": KEY, "num_samples": 2}),
}


def priors(size: int) -> list[jax.Array]:
    """Return an isotropic prior and one with a precision for each parameter."""
    return [jnp.full(size, 0.7), jnp.exp(jnp.linspace(-1.0, 1.0, size))]


@jax.jit
def facts(structure, precision, rows, vector):
    """Return everything that both forms can do."""
    log_det, gradient = jax.value_and_grad(type(structure).log_det, argnums=1)(structure, precision)
    posterior = structure.posterior(precision)
    identity = jnp.eye(posterior.size, dtype=posterior.dtype)
    root = posterior.scale_mv(identity).T
    return (
        log_det,
        gradient,
        structure.mv(vector),
        posterior.variance(),
        posterior.covariance(),
        root @ root.T,
        posterior.output_covariance(rows),
        posterior.output_variance(rows),
        posterior.cross_covariance(rows, rows),
    )


def assert_forms_agree(operator, dtype="float64", **tolerance):
    dual, full = fit_dual(operator), fit_full(operator)
    rows = jax.jit(jacobian)(operator.objective, operator.data.x)[1]
    for precision in priors(operator.shape[0]):
        precision = precision.astype(dtype)
        args = (precision, rows.astype(precision.dtype), jnp.sin(precision))
        for ours, theirs in zip(facts(dual, *args), facts(full, *args), strict=True):
            twins.assert_close(ours, theirs, dtype=dtype, **tolerance)


@pytest.mark.parametrize("kind", OPERATORS)
def test_primal_and_dual_agree_for_every_curvature(kind, x64):
    make, options = OPERATORS[kind]
    assert_forms_agree(make(*twins.problem("mlp", "float64").args, **options))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv_1d", "nnx_transformer"])
def test_primal_and_dual_agree_at_several_positions(name, x64):
    model = ZOO[name]()
    outputs = jax.eval_shape(model.model_fn, model.params, model.x)
    data = (model.x, jnp.zeros(outputs.shape))
    assert_forms_agree(curv.GGNOperator(model.model_fn, model.params, data, Gaussian(0.5)))


def test_primal_and_dual_agree_in_single_precision():
    assert_forms_agree(curv.GGNOperator(*twins.problem("mlp").args), "float32", rtol=1e-4)


def test_spectrum_is_that_of_the_curvature_and_kept(x64):
    operator = curv.GGNOperator(*twins.problem("mlp", "float64").args)
    structure = fit_dual(operator)
    spectrum = structure.spectrum()
    values = np.linalg.eigvalsh(twins.dense(twins.ggn, "mlp"))
    twins.assert_close(spectrum.values, values[-len(spectrum.values) :])
    assert spectrum.smallest == 0
    assert structure.spectrum() is spectrum
    delta = jnp.asarray(0.3)
    twins.assert_close(spectrum.log_det(delta), structure.log_det(jnp.full(31, delta)))


def test_samples_have_the_covariance(x64):
    structure = fit_dual(curv.GGNOperator(*twins.problem("mlp", "float64").args))
    precision, num = priors(31)[1], 20_000
    posterior = jax.jit(type(structure).posterior)(structure, precision)
    draws = np.asarray(jax.jit(lambda p: p.sample(KEY, num))(posterior))
    cov = np.linalg.inv(twins.dense(twins.ggn, "mlp") + np.diag(precision))
    error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / num)  # Isserlis
    assert np.abs((draws.T @ draws / num - cov) / error).max() < 5


def wide(hidden: int, num: int, dtype: str = "float32", noise_std: float = 0.3):
    """Return the GGN of a wide network on 10 features."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray((rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32), dtype)

    params = {"w1": normal(10, hidden), "w2": normal(hidden, hidden), "w3": normal(hidden, 2)}
    x = jnp.asarray(rng.normal(size=(num, 10)).astype(np.float32), dtype)
    data = (x, jnp.zeros((num, 2), dtype))
    return curv.GGNOperator(wide_model, params, data, Gaussian(noise_std))


def wide_model(params, x):
    return jnp.tanh(jnp.tanh(x @ params["w1"]) @ params["w2"]) @ params["w3"]


@jax.jit
def variances(structure, precision, rows):
    posterior = structure.posterior(precision)
    return posterior.output_variance(rows), posterior.output_covariance(rows)


@pytest.mark.slow
def test_a_quarter_of_a_million_parameters_by_the_kernel_formula():
    operator = wide(500, 20)
    size = operator.shape[0]
    assert size == 256_000
    test = jnp.asarray(np.random.default_rng(1).normal(size=(3, 10)), jnp.float32)
    rows = jax.jit(jacobian)(operator.objective, test)[1]
    precision = jnp.full(size, 2.0)
    _, found = variances(fit_dual(operator), precision, rows)
    kernel = curv.neural_tangent_kernel
    model = (operator.model_fn, operator.params)
    both, prior, data = (
        np.asarray(kernel(*model, *inputs, variance=0.5), np.float64)
        for inputs in ((test, operator.data.x), (test,), (operator.data.x,))
    )
    noisy = data.reshape(40, 40) + 0.3**2 * np.eye(40)
    both, prior = both.reshape(6, 40), prior.reshape(6, 6)
    expected = prior - both @ np.linalg.solve(noisy, both.T)
    expected = np.einsum("ncnd->ncd", expected.reshape(3, 2, 3, 2))
    twins.assert_close(found, expected, dtype="float32")


@pytest.mark.accelerator
@pytest.mark.slow
def test_single_precision_where_the_data_outweigh_the_prior():
    """Variances at the data fall by 1e7 there; a difference would be noise altogether."""
    found = {}
    for dtype in ("float32", "float64"):
        with twins.precision(dtype):
            operator = wide(40, 30, dtype, noise_std=0.01)
            rows = jax.jit(jacobian)(operator.objective, operator.data.x)[1]
            precision = jnp.full(operator.shape[0], 0.01, dtype)
            prior = rows.squares(1 / precision)
            found[dtype] = [np.asarray(a) for a in variances(fit_dual(operator), precision, rows)]
            found[dtype].append(np.asarray(prior))
    variance, covariance, prior = found["float64"]
    assert (variance / prior).max() < 1e-5
    np.testing.assert_allclose(found["float32"][0], variance, rtol=1e-2)
    twins.assert_close(found["float32"][1], covariance, rtol=1e-2)
