"""What `la.tune` does to a posterior: precision, noise and temperature, against dense twins."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

import laplace_kit as lk
from laplace_kit.eval import metrics

NUM, CLASSES, P = 20, 2, 12
KEY = jax.random.key(7)
WIDE = (1e-8, 1e8)


def net(params, x):
    return jnp.tanh(x @ params["kernel"]) @ params["head"]


def params():
    rng = np.random.default_rng(0)
    sizes = {"head": (3, 2), "kernel": (2, 3)}
    return {name: jnp.asarray(rng.normal(size=size)) for name, size in sizes.items()}


def data(likelihood: str, seed: int = 1, num: int = NUM):
    """Return inputs and targets drawn about the network's outputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, 2))
    f = np.tanh(x @ np.asarray(params()["kernel"])) @ np.asarray(params()["head"])
    y = {
        "categorical": lambda: (f[:, 1] - f[:, 0] + rng.logistic(size=num) > 0).astype(int),
        "gaussian": lambda: f + 0.4 * rng.normal(size=f.shape),
        "poisson": lambda: rng.poisson(np.exp(f)),
    }[likelihood]()
    return jnp.asarray(x), jnp.asarray(y)


def surprises(likelihood: str, num: int = 40):
    """Return data unlike those that were trained on, for which more uncertainty is better."""
    x, y = data(likelihood, seed=2, num=num)
    if likelihood == "categorical":
        return x, jnp.where(jnp.arange(num) % 4 == 0, 1 - y, y)
    return x, y + 0.2 * np.random.default_rng(3).normal(size=y.shape)


def fit(likelihood, targets=None, **options) -> lk.Laplace:
    targets = targets or likelihood
    options = {"structure": "full"} | options
    return lk.fit(net, params(), data(targets), likelihood=likelihood, **options)


# --- the evidence, from its definition ------------------------------------------------------------


def dense(likelihood: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Return Gauss-Newton matrix, mode and log-likelihood, the noise being one."""
    x, y = data(likelihood)
    theta, unravel = ravel_pytree(params())
    jac = np.asarray(jax.jit(jax.jacobian(lambda t: net(unravel(t), x)))(theta))
    f, y = np.asarray(net(params(), x)), np.asarray(y)
    if likelihood == "categorical":
        log_p = f - np.logaddexp.reduce(f, axis=1, keepdims=True)
        p = np.exp(log_p)
        inner = np.einsum("nc,cd->ncd", p, np.eye(CLASSES)) - np.einsum("nc,nd->ncd", p, p)
        log_likelihood = log_p[np.arange(NUM), y].sum()
    elif likelihood == "gaussian":
        inner = np.broadcast_to(np.eye(CLASSES), (NUM, CLASSES, CLASSES))
        log_likelihood = -0.5 * np.sum((y - f) ** 2 + np.log(2 * np.pi))
    else:
        from scipy.stats import poisson

        inner = np.einsum("nc,cd->ncd", np.exp(f), np.eye(CLASSES))
        log_likelihood = poisson.logpmf(y, np.exp(f)).sum()
    return np.einsum("ncp,ncd,ndq->pq", jac, inner, jac), np.asarray(theta), log_likelihood


def scipy_optimum(matrix, dev, expand):
    """Return log precisions of greatest evidence, and that evidence less the log-likelihood."""

    def loss(z):
        precision = np.exp(expand @ z)
        cov = np.linalg.inv(matrix + np.diag(precision))
        slope = 0.5 * (1 - precision * dev**2 - precision * np.diag(cov)) @ expand
        return -exact.evidence(0.0, matrix, precision, dev), -slope

    found = minimize(loss, np.zeros(expand.shape[1]), jac=True, options={"gtol": 1e-9})
    return found.x, -found.fun


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "poisson"])
def test_the_optimum_is_that_of_a_dense_twin(likelihood, x64):
    matrix, theta, log_likelihood = dense(likelihood)
    given = lk.Gaussian(1.0) if likelihood == "gaussian" else likelihood
    la = fit(given, likelihood)
    for per_leaf, expand in ((False, np.ones((P, 1))), (True, np.repeat(np.eye(2), 6, axis=0))):
        tuned = la.tune(per_leaf=per_leaf, bounds=WIDE)
        z, best = scipy_optimum(matrix, theta, expand)
        found = [float(leaf) for leaf in jax.tree.leaves(tuned.prior_precision)]
        np.testing.assert_allclose(np.log(found), z, atol=1e-5)
        assert float(tuned.log_marginal_likelihood()) == pytest.approx(best + log_likelihood)
        # the temperature shrinks the covariance and leaves the evidence alone
        heat = float(tuned.temperature)
        assert heat == 1 if likelihood == "gaussian" else 1e-6 <= heat <= 1
        assert float(tuned.tuning.temperature) == heat
        cov = heat * np.linalg.inv(matrix + np.diag(np.exp(expand @ np.log(found))))
        twins.assert_close(tuned.posterior.covariance(), cov, rtol=1e-8)
        cold = la.tune(per_leaf=per_leaf, bounds=WIDE, temperature=False)
        assert cold.temperature == 1
        assert cold.log_marginal_likelihood() == tuned.log_marginal_likelihood()


def test_a_second_tuning_starts_from_temperature_one(x64):
    la = fit("categorical").tune(bounds=WIDE)
    again = la.with_temperature(0.01).tune(bounds=WIDE)
    assert float(again.temperature) == float(la.temperature)
    assert float(again.prior_precision) == float(la.prior_precision)


# --- noise ----------------------------------------------------------------------------------------


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
    """Which goes with the noise precision squared: what it finds, refits confirm as stationary."""
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
    masked = lk.fit(
        *(net, params(), (x, (y, jnp.ones(y.shape, bool)))),
        likelihood=lk.Masked(lk.Gaussian()),
        structure="diagonal",
    )
    for la in (masked, fit("categorical", structure="diagonal")):
        for noise in ("residuals", "evidence"):
            with pytest.raises(TypeError, match=r"expected an unmasked Gaussian one.*noise='keep'"):
                la.tune(noise=noise)
        with pytest.raises(TypeError, match="expected an unmasked Gaussian one"):
            la.with_noise(1.0)
    la = fit(lk.Gaussian(np.array([1.0, 2.0])), "gaussian", structure="diagonal")
    with pytest.raises(ValueError, match=r"positive numbers in one proportion to these.*fit again"):
        la.with_noise(np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="noise='evidence' with method='validation'"):
        la.tune(noise="evidence", data=(x, y))
    perfect = lk.fit(
        net, params(), (x, net(params(), x)), likelihood="gaussian", structure="diagonal"
    )
    for noise in (None, "residuals", "evidence"):
        with pytest.raises(ValueError, match=r"Found residuals of about.*lk.Gaussian.noise_std"):
            perfect.tune(noise=noise)


# --- held-out data --------------------------------------------------------------------------------


def nll(predictive, y):
    return float(metrics.negative_log_likelihood(predictive.probs, y))


def crps(predictive, y):
    return float(metrics.crps_gaussian(predictive.mean, jnp.sqrt(predictive.var), y))


OBJECTIVES = {
    "nll": nll,
    "brier": lambda predictive, y: float(metrics.brier_score(predictive.probs, y)),
    "ece": lambda predictive, y: float(metrics.expected_calibration_error(predictive.probs, y)),
    "crps": crps,
    "own": lambda predictive, y: float(jnp.mean((predictive.probs[:, 1] - y) ** 2)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_minimum_on_held_out_data(name, x64):
    loss, bounds = OBJECTIVES[name], (1e-2, 1e3)
    targets = "gaussian" if name == "crps" else "categorical"
    la = fit(lk.Gaussian(0.4) if name == "crps" else targets, targets, structure="diagonal")
    x, y = surprises(targets)
    objective = loss if name == "own" else name
    tuned = la.tune(data=(x, y), objective=objective, bounds=bounds, link="probit")
    found = loss(tuned.predict(x), y)
    assert tuned.tuning.method == "validation"
    assert float(tuned.tuning.objective.max()) == pytest.approx(-found, abs=1e-12)
    fine = 10 ** np.linspace(-2, 3, 6 if name == "ece" else 41)  # which jumps, unlike the others
    assert found <= min(loss(la.with_prior(delta).predict(x), y) for delta in fine) + 1e-5
    assert tuned.temperature == 1


@pytest.mark.parametrize("configured", ["link", "sampled"])
def test_the_predictive_that_is_judged_is_the_one_that_predicts(configured, x64):
    la = fit("categorical", structure="diagonal")
    x, y = surprises("categorical")
    if configured == "link":
        la = la.with_prediction(link="mean_field_2", covariance="diagonal")
    else:
        la = la.with_prediction(method="sampled", num_samples=20)
    tuned = la.tune(data=(x, y), bounds=(1e-1, 1e2), key=KEY, temperature=True)
    assert tuned.prediction == la.prediction
    assert nll(tuned.predict(x, key=KEY), y) == pytest.approx(
        nll(predict_as(tuned, configured, x), y), abs=1e-12
    )
    warm = tuned.with_temperature(1.0)
    assert nll(warm.predict(x, key=KEY), y) == pytest.approx(-float(tuned.tuning.objective.max()))
    best = nll(tuned.predict(x, key=KEY), y)
    for temperature in (1.0, 1e-4, *(float(tuned.temperature) * np.array([0.8, 1.25]))):
        other = tuned.with_temperature(temperature).predict(x, key=KEY)
        assert best <= nll(other, y) + 1e-4


def predict_as(la, configured, x):
    if configured == "link":
        return la.predict(x, link="mean_field_2", covariance="diagonal")
    return la.predict(x, method="sampled", num_samples=20, key=KEY)


def test_link_is_kept_for_predictions(x64):
    la, x = fit("categorical", structure="diagonal"), data("categorical")[0]
    tuned = la.tune(link="mean_field_1", bounds=WIDE)
    assert tuned.prediction.link == "mean_field_1"
    twins.assert_close(tuned.predict(x).probs, tuned.predict(x, link="mean_field_1").probs)


def test_held_out_data_choose_a_link_that_is_not_named(x64):
    la, (x, y) = fit("categorical", structure="diagonal"), surprises("categorical")
    tuned = la.tune(data=(x, y), bounds=WIDE)
    chosen = nll(tuned.predict(x), y)
    assert -float(tuned.tuning.objective.max()) == pytest.approx(chosen)
    each = {}
    for link in ("probit", "mean_field_1", "mean_field_2"):
        named = la.tune(data=(x, y), bounds=WIDE, link=link)
        assert named.prediction.link == link
        each[link] = nll(named.predict(x), y)
    assert each[tuned.prediction.link] == pytest.approx(chosen, rel=1e-3)
    assert chosen <= min(each.values()) * (1 + 1e-3)
    assert len(set(each.values())) == 3
    # One that was chosen is named from then on.
    assert tuned.tune(data=(x, y), bounds=WIDE).prediction == tuned.prediction


def test_no_link_is_chosen_without_classes_or_without_held_out_data(x64):
    regression = fit(lk.Gaussian(0.4), "gaussian", structure="diagonal")
    tuned = regression.tune(data=surprises("gaussian"), bounds=WIDE)
    assert tuned.prediction == regression.prediction
    la = fit("categorical", structure="diagonal")
    assert la.tune(bounds=WIDE).prediction.link is None
    x, _ = data("categorical")
    twins.assert_close(la.predict(x).probs, la.predict(x, link="probit").probs)


# --- cross-validation -----------------------------------------------------------------------------


def test_cross_validation_finds_the_minimum_of_refits(x64):
    """Linear regression of known noise: each fold is predicted as if all others were refitted."""
    regression, folds = exact.regression(num=12), 3
    num = regression.num_params
    la = regression.fit(np.ones(num), np.full(num, 0.3), structure="full")
    training = (jnp.asarray(regression.x), jnp.asarray(regression.y))
    tuned = la.tune(method="cross_validation", data=training, num_folds=folds, bounds=(1e-2, 1e2))

    def refit_loss(delta):
        total, index = 0.0, np.arange(12)
        for fold in range(folds):
            rest, out = index % folds != fold, index % folds == fold
            part = exact.Regression(regression.x[rest], regression.y[rest], regression.noise_std)
            mean, cov = part.posterior(np.full(num, delta), np.full(num, 0.3))
            design = regression.design(regression.x[out])
            var = np.einsum("np,pq,nq->n", design, cov, design) + regression.noise_std**2
            squares = (regression.y[out].ravel() - design @ mean) ** 2 / var
            total += 0.5 * np.sum(squares + np.log(2 * np.pi * var))
        return total / 12

    expected = [-refit_loss(float(delta)) for delta in tuned.tuning.visited[:, 0]]
    np.testing.assert_allclose(tuned.tuning.objective, expected, rtol=1e-8, atol=1e-8)
    grid = 10 ** np.linspace(-2, 2, 201)
    assert refit_loss(float(tuned.prior_precision)) <= min(map(refit_loss, grid)) + 1e-4
    assert tuned.tuning.method == "cross_validation"


@pytest.mark.filterwarnings("ignore:The held-out loss is smallest at a bound")
def test_the_temperature_of_cross_validation_is_that_of_refits(x64):
    """In-sample, the best temperature of this regression is none; of refits it is near one."""
    regression, folds, delta = exact.regression(num=9), 3, 1.0
    num, index = regression.num_params, np.arange(9)
    mean = np.full(num, 0.3)
    la = regression.fit(np.ones(num), mean, structure="full")
    training = (jnp.asarray(regression.x), jnp.asarray(regression.y))
    tuned = la.tune(
        method="cross_validation",
        data=training,
        num_folds=folds,
        bounds=(delta / 1.0001, delta * 1.0001),
        temperature=True,
    )

    def loss(temperature, rest, out):
        part = exact.Regression(regression.x[rest], regression.y[rest], regression.noise_std)
        mode, cov = part.posterior(np.full(num, delta), mean)
        design = regression.design(regression.x[out])
        epistemic = temperature * np.einsum("np,pq,nq->n", design, cov, design)
        var = epistemic + regression.noise_std**2
        squares = (regression.y[out].ravel() - design @ mode) ** 2 / var
        return 0.5 * np.sum(squares + np.log(2 * np.pi * var))

    def refitted(temperature):
        return sum(loss(temperature, index % folds != k, index % folds == k) for k in range(folds))

    grid = 10.0 ** np.linspace(-6, 2, 401)
    best = grid[np.argmin([refitted(t) for t in grid])]
    in_sample = grid[np.argmin([loss(t, index >= 0, index >= 0) for t in grid])]
    assert float(tuned.temperature) == pytest.approx(best, rel=0.05)
    assert refitted(float(tuned.temperature)) <= refitted(best) + 1e-4
    assert in_sample == grid[0]
    assert 0.1 < best < 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The held-out loss is smallest at a bound")
@pytest.mark.parametrize("kind", ["diagonal", "low_rank", "ekfac"])
def test_cross_validation_of_classes_with_every_structure(kind, x64):
    la = fit("categorical", structure=kind, rank=3 if kind == "low_rank" else None)
    request = {"method": "cross_validation", "data": data("categorical"), "num_folds": 2}
    one, other = (la.tune(**request, bounds=(1e-1, 1e2), objective="brier") for _ in range(2))
    assert np.isfinite(one.tuning.objective).all()
    np.testing.assert_array_equal(one.tuning.objective, other.tuning.objective)
    assert float(one.prior_precision) == float(other.prior_precision)


# --- what does not go together --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "validation"}, "method='validation' with data=None"),
        ({"method": "cross_validation"}, "method='cross_validation' with data=None"),
        ({"method": "evidence", "data": "given"}, "method='evidence' with data=given"),
        ({"data": "given", "per_leaf": True}, "per_leaf=True"),
        ({"data": "given", "objective": "crps"}, "expected 'nll', 'ece' or 'brier'"),
        ({"data": "given", "objective": "nlll"}, "nlll"),
        ({"method": "evidense"}, "evidense"),
        ({"noise": "evidense"}, "evidense"),
        (
            {"method": "cross_validation", "data": "given", "num_folds": 1},
            "num_folds=1 for 20 examples, expected from 2 to 20",
        ),
    ],
)
def test_options_that_do_not_go_together(options, message):
    la = fit("categorical", structure="diagonal")
    if "data" in options:
        options = options | {"data": data("categorical")}
    with exact.as_users_call(), pytest.raises(ValueError, match=message):
        la.tune(**options)
