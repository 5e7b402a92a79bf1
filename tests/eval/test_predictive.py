"""Predictives against dense moments, exact regression, and what each likelihood makes of them."""

import functools

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
import vocabulary
from scipy import integrate, stats

import laplace_kit as lk
from laplace_kit import tree
from laplace_kit.approx import DiagonalPosterior
from laplace_kit.curv.objective import restrict
from laplace_kit.eval import link as links
from laplace_kit.eval.predictive import predict, predict_at_mode
from laplace_kit.likelihood import Bernoulli, Categorical, FromLoss, Gaussian, Poisson

N, K = 5, 2
X = np.random.default_rng(1).normal(size=(N, 3))
STD = np.linspace(0.2, 0.6, 8)  # of the bias (2,) and the weight (3, 2)
COVARIANCE = np.diag(STD**2)


@functools.cache
def linear_problem(likelihood):
    """Return outputs linear in the parameters, a posterior, and the outputs' exact moments."""
    rng = np.random.default_rng(2)
    params = {
        "bias": jnp.asarray(rng.normal(size=2)),
        "weight": jnp.asarray(rng.normal(size=(3, 2))),
    }
    objective, _ = restrict(exact.linear, params, likelihood)
    design = exact.Regression(X, np.zeros((N, K)), 1.0).design(X).reshape(N, K, -1)
    theta = np.concatenate([params["bias"], params["weight"].ravel()])
    return objective, DiagonalPosterior(jnp.asarray(STD)), design @ theta, moments(design)


def moments(design):
    return np.einsum("ncp,pq,ndq->ncd", design, COVARIANCE, design)


# --- linearised -----------------------------------------------------------------------------------


def test_exact_on_bayesian_linear_regression(x64):
    regression = exact.regression()
    precision, mean = exact.priors(regression.num_params)
    la = regression.fit(precision, mean, structure="full")
    predictive = la.predict(X)
    theta, cov = regression.posterior(precision, mean)
    design = regression.design(X)
    f_cov = np.einsum("ncp,pq,ndq->ncd", *(design.reshape(N, K, -1), cov, design.reshape(N, K, -1)))
    twins.assert_close(predictive.mean, (design @ theta).reshape(N, K))
    twins.assert_close(predictive.f_cov, f_cov)
    twins.assert_close(predictive.epistemic_var, np.einsum("ncc->nc", f_cov))
    twins.assert_close(predictive.noise_var, np.full((N, K), regression.noise_std**2))
    twins.assert_close(predictive.var, np.einsum("ncc->nc", f_cov) + regression.noise_std**2)
    assert predictive.probs is None


@pytest.mark.parametrize("method", ["linearized", "sampled"])
def test_the_batch_size_does_not_show(method, x64):
    objective, posterior, *_ = linear_problem(Gaussian())
    options = {"method": method, "key": jax.random.key(0)}
    whole = predict(objective.within(100), posterior, X, **options)
    for batch_size in (1, 3):
        parts = predict(objective.within(batch_size), posterior, X, **options)
        jax.tree.map(twins.assert_close, parts, whole)


def test_covariance_options(x64):
    objective, posterior, f, f_cov = linear_problem(Gaussian())
    full = predict(objective, posterior, X, covariance="full")
    diagonal = predict(objective, posterior, X, covariance="diagonal")
    auto = predict(objective, posterior, X)
    small = predict(objective.within(memory=4 * N * K * K * 8 - 1), posterior, X)
    assert diagonal.f_cov is None
    assert small.f_cov is None
    for found in (full, auto):
        twins.assert_close(found.f_cov, f_cov)
    for found in (full, diagonal, auto, small):
        twins.assert_close(found.f_mean, f)
        twins.assert_close(found.f_var, np.einsum("ncc->nc", f_cov))


def test_inside_a_compiled_function(x64):
    objective, posterior, *_ = linear_problem(Categorical())
    options, objective = {"link": "mean_field_2"}, objective.within(2)
    found = jax.jit(functools.partial(predict, **options))(objective, posterior, X)
    jax.tree.map(twins.assert_close, found, predict(objective, posterior, X, **options))


# --- what the likelihoods make of the moments -----------------------------------------------------


@pytest.mark.parametrize("link", links.LINKS)
def test_class_probabilities_by_every_link(link, x64):
    objective, posterior, f, f_cov = linear_problem(Categorical())
    key = jax.random.key(3)
    found = predict(objective, posterior, X, link=link, key=key, num_samples=64)
    expected = links.class_probabilities(link, f, f_cov, key=key, num_samples=64)
    twins.assert_close(found.probs, expected)
    twins.assert_close(found.probs.sum(axis=-1), np.ones(N))
    assert found.mean is found.var is None
    without = predict(objective, posterior, X, link=link, key=key, covariance="diagonal")
    assert without.probs.shape == (N, K)


def scaled_softmax(mean, covariance):
    """A link of one's own: the probit for a covariance that may be full or diagonal."""
    var = covariance if covariance.ndim == 2 else jnp.diagonal(covariance, axis1=1, axis2=2)
    return jax.nn.softmax(mean / jnp.sqrt(1 + jnp.pi / 8 * var))


def test_a_link_function_without_logits_of_classes_is_refused(x64):
    objective, posterior, *_ = linear_problem(Gaussian(0.5))
    with pytest.raises(ValueError, match="link function for a Gaussian likelihood, expected none"):
        predict(objective, posterior, X, link=scaled_softmax)


def test_a_link_of_ones_own_everywhere(tmp_path, x64):
    """The function computes the probit link, so that all results must equal those of "probit"."""
    problem = twins.problem("mlp", "float64")
    data = problem.x, problem.y
    la = exact.fitted("diagonal", "float64")
    twins.assert_close(
        la.predict(problem.x, link=scaled_softmax).probs, la.predict(problem.x, link="probit").probs
    )
    own, probit = (la.with_prediction(link=link) for link in (scaled_softmax, "probit"))
    for covariance in ("full", "diagonal"):
        found = own.predict(problem.x, covariance=covariance).probs
        twins.assert_close(found, probit.predict(problem.x).probs)
    twins.assert_close(own.predict(problem.x, joint=True).probs, found)
    found, expected = own.evaluate(data), probit.evaluate(data)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9)
    others = problem.x, (problem.y + (np.arange(7) < 3)) % 3
    options = {"data": others, "bounds": (1e-4, 1e6)}
    tuned, expected = own.tune(**options), probit.tune(**options)
    assert tuned.prediction.link is scaled_softmax
    assert la.tune(link=scaled_softmax, **options).prediction.link is scaled_softmax
    np.testing.assert_allclose(tuned.prior_precision, expected.prior_precision, rtol=1e-6)
    found, expected = own.report(data, tmp_path / "a"), probit.report(data, tmp_path / "b")
    assert found.metrics.keys() == expected.metrics.keys()
    others = problem.x + 1
    with twins.compilations() as names:
        la.predict(others, link=scaled_softmax)
    assert not names
    with pytest.raises(ValueError, match=r"link that returned float64 of shape \(7,\) for a mean"):
        la.predict(others, link=lambda mean, covariance: mean[:, 0])

    def below(mean, covariance):
        return jax.nn.softmax(mean).at[3, 0].set(-1e-3)

    with pytest.raises(ValueError, match=r"probabilities at 1 of 7 labels, the first at \(3,\)"):
        la.predict(others, link=below)


def test_categorical_outputs_with_a_position_axis(x64):
    """Outputs (N, T, C): one joint covariance, and probabilities from each position's block."""
    params = jnp.asarray(np.random.default_rng(4).normal(size=(3, 2, 3)))

    def sequence(params, x):
        return jnp.einsum("ni,itc->ntc", x, params)

    objective, _ = restrict(sequence, params, Categorical())
    std = np.linspace(0.1, 1.0, 18)
    found = predict(objective, DiagonalPosterior(jnp.asarray(std)), X, link="mean_field_2")
    jac = np.einsum("ni,tu,cd->ntciud", X, np.eye(2), np.eye(3)).reshape(N, 6, 18)
    f_cov = np.einsum("ncp,p,ndp->ncd", jac, std**2, jac)
    twins.assert_close(found.f_cov, f_cov)
    twins.assert_close(found.f_var, np.einsum("ncc->nc", f_cov).reshape(N, 2, 3))
    twins.assert_close(found.probs.sum(axis=-1), np.ones((N, 2)))
    for t in range(2):
        block = slice(3 * t, 3 * t + 3)
        f = np.einsum("ni,ic->nc", X, params[:, t])
        expected = links.mean_field_2(f, f_cov[:, block, block])
        twins.assert_close(found.probs[:, t], expected)


@pytest.mark.parametrize("event", [(), (1,), (3,)])
def test_binary_outputs_of_every_shape(event, x64):
    params = jnp.asarray(np.random.default_rng(5).normal(size=(3, *event)))

    def binary(params, x):
        return jnp.tensordot(x, params, 1)

    objective, _ = restrict(binary, params, Bernoulli())
    posterior = DiagonalPosterior(jnp.full(params.size, 0.5))
    found = predict(objective, posterior, X)
    f = np.tensordot(X, params, 1)
    f_var = np.broadcast_to(0.25 * np.sum(X**2, axis=1).reshape(N, *(1,) * len(event)), f.shape)
    expected = 1 / (1 + np.exp(-f / np.sqrt(1 + np.pi / 8 * f_var)))
    twins.assert_close(found.f_mean, f)
    twins.assert_close(found.f_var, f_var)
    twins.assert_close(found.probs, expected)
    num = int(np.prod(event))
    assert found.f_cov.shape == (N, num, num)


def test_poisson_moments_are_those_of_a_log_normal_rate(x64):
    objective, posterior, f, f_cov = linear_problem(Poisson())
    found = predict(objective, posterior, X)
    for index in ((0, 0), (3, 1)):
        normal = stats.norm(f[index], np.sqrt(f_cov[(*index, index[1])]))

        def moment(power, normal=normal):
            low, high = normal.interval(1 - 1e-15)
            integrand = lambda z: np.exp(power * z) * normal.pdf(z)  # noqa: E731
            return integrate.quad(integrand, low, high + 3, epsabs=1e-12)[0]

        rate, second = moment(1), moment(2)
        assert float(found.mean[index]) == pytest.approx(rate, rel=1e-8)
        assert float(found.noise_var[index]) == pytest.approx(rate, rel=1e-8)
        assert float(found.epistemic_var[index]) == pytest.approx(second - rate**2, rel=1e-7)


def test_a_loss_of_ones_own_has_the_outputs_moments_alone(x64):
    objective, posterior, _, f_cov = linear_problem(FromLoss(twins.log_cosh_loss))
    for method in ("linearized", "sampled"):
        found = predict(objective, posterior, X, method=method, key=jax.random.key(0))
        assert found.probs is found.mean is found.var is None
    twins.assert_close(predict(objective, posterior, X).f_cov, f_cov)


# --- sampled --------------------------------------------------------------------------------------


def test_draws_of_a_linear_model_have_the_linearised_moments(x64):
    objective, posterior, f, f_cov = linear_problem(Gaussian())
    num = 4000
    found = predict(
        objective, posterior, X, method="sampled", key=jax.random.key(7), num_samples=num
    )
    variance = np.einsum("ncc->nc", f_cov)
    mean_error = (found.f_mean - f) / np.sqrt(variance / num)
    wishart = np.sqrt((f_cov**2 + variance[:, :, None] * variance[:, None, :]) / num)
    assert np.abs(mean_error).max() < 4
    assert np.abs((found.f_cov - f_cov) / wishart).max() < 4
    twins.assert_close(found.f_var, np.einsum("ncc->nc", found.f_cov))
    twins.assert_close(found.epistemic_var, found.f_var)
    twins.assert_close(found.noise_var, np.ones((N, K)))


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli(), Poisson()])
def test_draws_are_averaged_as_probabilities_and_rates(likelihood, x64):
    """The same weights, drawn by hand, pushed through the model and averaged."""
    objective, posterior, *_ = linear_problem(likelihood)
    key, num = jax.random.key(9), 50
    found = predict(objective, posterior, X, method="sampled", key=key, num_samples=num)
    eps = jax.vmap(lambda k: jax.random.normal(k, (8,), jnp.float64))(jax.random.split(key, num))
    params = tree.unravel(tree.ravel(objective.params) + STD * eps, objective.params)
    f = np.asarray(jax.vmap(exact.linear, (0, None))(params, X))
    twins.assert_close(found.f_mean, f.mean(axis=0))
    twins.assert_close(found.f_var, f.var(axis=0, ddof=1))
    if isinstance(likelihood, Poisson):
        twins.assert_close(found.mean, np.exp(f).mean(axis=0))
        twins.assert_close(found.epistemic_var, np.exp(f).var(axis=0, ddof=1))
        twins.assert_close(found.noise_var, np.exp(f).mean(axis=0))
    else:
        softmax = isinstance(likelihood, Categorical)
        probs = (
            np.exp(f) / np.exp(f).sum(axis=-1, keepdims=True) if softmax else 1 / (1 + np.exp(-f))
        )
        twins.assert_close(found.probs, probs.mean(axis=0))
        assert found.mean is None


# --- at the mode ----------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical(), Bernoulli(), Poisson()])
def test_at_the_mode_there_is_no_weight_uncertainty(likelihood, x64):
    objective, _, f, _ = linear_problem(likelihood)
    found = predict_at_mode(objective.within(2), X)
    twins.assert_close(found.f_mean, f)
    np.testing.assert_array_equal(found.f_var, 0)
    match likelihood:
        case Gaussian():
            twins.assert_close(found.var, np.full((N, K), 0.25))
        case Poisson():
            twins.assert_close(found.mean, np.exp(f))
            twins.assert_close(found.var, np.exp(f))
        case Categorical():
            twins.assert_close(found.probs, np.exp(f) / np.exp(f).sum(axis=1, keepdims=True))
        case Bernoulli():
            twins.assert_close(found.probs, 1 / (1 + np.exp(-f)))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sampled"}, r'no key, expected one for method="sampled"; pass key='),
        ({"link": "monte_carlo"}, r'no key, expected one for link="monte_carlo"; pass key='),
        ({"method": "linearised"}, "method='linearised', expected.*Did you mean 'linearized'"),
        ({"link": "probits"}, "link='probits', expected.*Did you mean 'probit'"),
        ({"covariance": "diag"}, "covariance='diag', expected one of 'auto', 'full', 'diagonal'"),
        ({"num_samples": 1}, "num_samples=1, expected a whole number of draws, at least 2"),
    ],
)
def test_options_that_cannot_be_right(options, message):
    with exact.as_users_call(), pytest.raises(ValueError, match=message):
        predict(*small_problem(), X, **options)


def small_problem():
    objective, _ = restrict(
        exact.linear, {"bias": jnp.ones(2), "weight": jnp.ones((3, 2))}, Gaussian()
    )
    return objective, DiagonalPosterior(jnp.ones(8))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_inputs_that_are_not_finite(value):
    objective, posterior = small_problem()
    x = X.astype(np.float32)
    x[3, 1] = value
    message = r"inputs that are not finite, first in row 3, expected finite numbers; clean or drop"
    with pytest.raises(ValueError, match=message):
        predict(objective, posterior, x)
    with pytest.raises(ValueError, match=message):
        predict_at_mode(objective, x)
    with pytest.raises(ValueError, match=r"not finite at 'left', first in row 3"):
        predict(objective, posterior, {"left": x, "right": X})


def test_inputs_that_the_model_refuses():
    objective, posterior = small_problem()
    message = r"examples of shape \(5,\) float32, which the model refuses \(TypeError: .*leading"
    for x in (np.ones((4, 5), np.float32), jnp.ones((1, 5))):
        with pytest.raises(ValueError, match=message):
            predict(objective, posterior, x)
        with pytest.raises(ValueError, match=message):
            predict_at_mode(objective.within(2), x)


@pytest.mark.parametrize("num_outputs", [2, 3])
def test_a_single_example(num_outputs):
    """If there are as many outputs as features, one example looks like a batch of numbers."""
    weight = jnp.ones((3, num_outputs))
    la = lk.fit(
        lambda params, x: x @ params,
        weight,
        (X.astype(np.float32), np.zeros((N, num_outputs), np.float32)),
        likelihood="gaussian",
        structure="diagonal",
    )
    message = r"inputs of shape \(3,\), of a single example.*pass x\[None\], or x\[:1\]"
    functions = la.sample_functions(jax.random.key(0), 2)
    for call in (la.predict, la.predict_at_mode, functions, functions[0]):
        with pytest.raises(ValueError, match=message):
            call(X[0].astype(np.float32))
        assert call(X[:1].astype(np.float32)) is not None


def test_a_model_that_cannot_be_traced_is_told_by_jax():
    def doubled_if_positive(params, x):
        return 2 * x if x.sum() > 0 else x

    objective, posterior = small_problem()
    model_fn = jax.tree_util.Partial(doubled_if_positive)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        predict(tree.replace(objective, model_fn=model_fn), posterior, X)


def test_inputs_without_rows():
    with pytest.raises(ValueError, match=r"empty data \(shapes \(0, 3\)\), expected at least one"):
        predict(*small_problem(), X[:0])
    with pytest.raises(ValueError, match=r"expected arrays with a leading axis.*x\[None\]"):
        predict(*small_problem(), 1.0)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_batch_size_is_a_positive_whole_number(batch_size):
    la = exact.fitted("diagonal", "float32")
    with exact.as_users_call(), pytest.raises(ValueError, match=f"batch_size={batch_size}, expec"):
        la.predict(twins.problem("mlp").x, batch_size=batch_size)


# --- a noise for each output ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_noise_of_its_own_adds_to_the_variance_of_the_mean(x64):
    """By the law of total variance; targets are drawn from outputs drawn from their Gaussian."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2)), rng.normal(size=(30, 1))
    params = {"bias": jnp.zeros(2), "weight": jnp.asarray(rng.normal(size=(2, 2)))}
    la = lk.fit(
        lambda p, x: x @ p["weight"] + p["bias"],
        params,
        (jnp.asarray(x), jnp.asarray(y)),
        likelihood=lk.HeteroscedasticGaussian(),
        prior_precision=5.0,
    )
    new = jnp.asarray(rng.normal(size=(3, 2)))
    found = la.predict(new)
    num = 200_000
    f = rng.multivariate_normal(np.zeros(2), np.eye(2), (3, num))
    f = np.einsum("ncd,nkd->nkc", np.linalg.cholesky(found.f_cov), f) + found.f_mean[:, None]
    targets = f[..., 0] + np.exp(-f[..., 1] / 2) * rng.normal(size=(3, num))
    np.testing.assert_allclose(found.mean[:, 0], targets.mean(axis=1), atol=0.02)
    np.testing.assert_allclose(found.var[:, 0], targets.var(axis=1), rtol=0.03)
    np.testing.assert_allclose(found.epistemic_var[:, 0], found.f_var[:, 0])
    sampled = la.predict(new, method="sampled", key=jax.random.key(0), num_samples=20_000)
    np.testing.assert_allclose(sampled.noise_var, found.noise_var, rtol=0.05)
    np.testing.assert_allclose(sampled.mean, found.mean, atol=0.02)
    metrics = la.evaluate((new, found.mean))
    assert metrics["rmse"] == pytest.approx(0, abs=1e-12)


def test_variances_of_many_outputs_are_estimated_with_a_warning(x64):
    la, x = vocabulary.fitted(), vocabulary.X
    with pytest.warns(UserWarning, match=r"Found 1200 outputs for each input, more than 1024"):
        found = la.predict(x)
    confirmed = la.predict(x, covariance="estimated")
    np.testing.assert_array_equal(found.f_var, confirmed.f_var)
    np.testing.assert_allclose(found.probs.sum(axis=-1), 1)
    twins.assert_close(la.predict(x[:1], covariance="estimated").f_var, found.f_var[:1], rtol=1e-9)
    jac = vocabulary.jacobian()
    dense = np.einsum("ncp,pq,ncq->nc", jac, np.asarray(la.posterior.covariance()), jac)
    every = la.predict(x, covariance="diagonal")
    twins.assert_close(every.f_var, dense.reshape(found.f_var.shape), rtol=1e-9)
    np.testing.assert_allclose(np.mean(np.abs(found.probs - every.probs)), 0, atol=0.003)
    scaled = found.f_mean / np.sqrt(1 + np.pi / 8 * np.asarray(found.f_var))
    twins.assert_close(found.probs, jax.nn.softmax(scaled), rtol=1e-9)
    other = la.predict(x, covariance="estimated", key=jax.random.key(5), num_samples=7)
    assert not np.allclose(other.f_var, found.f_var)
