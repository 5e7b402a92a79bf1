"""Leave-one-out numbers are those of as many refits: exactly if linear, else to second order."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from scipy import special, stats

import laplace_kit as lk

NUM, DELTA, NOISE = 20, 2.0, 0.5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(NUM, 3))
Y = X @ RNG.normal(size=(3, 2)) + NOISE * RNG.normal(size=(NUM, 2))
LABELS = (X @ np.asarray([1.5, -1.0, 0.5]) + RNG.logistic(size=NUM) > 0).astype(int)


def linear(params, x):
    return x @ params


# --- linear regression ----------------------------------------------------------------------------


def ridge(x, y, weights):
    """Return the mode `(3, 2)` and the covariance of one output's weights `(3, 3)`."""
    precision = (x * weights[:, None]).T @ x / NOISE**2 + DELTA * np.eye(3)
    covariance = np.linalg.inv(precision)
    return covariance @ (x * weights[:, None]).T @ y / NOISE**2, covariance


def regression(weights=None, **options) -> lk.Laplace:
    data = (X, Y) if weights is None else (X, Y, weights)
    mode, _ = ridge(X, Y, np.ones(NUM) if weights is None else weights)
    likelihood = lk.Gaussian(noise_std=NOISE)
    options = {"structure": "full", "prior_precision": DELTA} | options
    return lk.fit(linear, mode, data, likelihood=likelihood, **options)


@pytest.mark.parametrize("weights", [None, 1.0 + np.arange(NUM) % 3], ids=["ones", "weights"])
def test_linear_regression_is_refitted_without_each_example(weights, x64):
    data = (X, Y) if weights is None else (X, Y, weights)
    found = regression(weights).leave_one_out(data)
    weights = np.ones(NUM) if weights is None else weights
    mode, covariance = ridge(X, Y, weights)
    effective = 2 * weights @ np.einsum("ni,ij,nj->n", X, covariance, X) / NOISE**2
    for n in range(NUM):
        rest = np.where(np.arange(NUM) == n, 0, weights)
        other, inner = ridge(X, Y, rest)
        mean, var = X[n] @ other, X[n] @ inner @ X[n] + NOISE**2
        np.testing.assert_allclose(found.mean[n], mean, rtol=1e-9)
        np.testing.assert_allclose(found.var[n], [var, var], rtol=1e-9)
        density = stats.norm.logpdf(Y[n], mean, np.sqrt(var)).sum()
        np.testing.assert_allclose(found.log_prob[n], density, rtol=1e-9)
        step = other - mode
        squared = np.trace(step.T @ np.linalg.inv(covariance) @ step)
        np.testing.assert_allclose(found.shift[n] ** 2, squared, rtol=1e-8)
        np.testing.assert_allclose(found.cooks_distance[n], squared / effective, rtol=1e-8)
        leverage = 2 * weights[n] * X[n] @ covariance @ X[n] / NOISE**2
        np.testing.assert_allclose(found.leverage[n], leverage, rtol=1e-9)
        gradient = weights[n] * np.outer(X[n], X[n] @ mode - Y[n]) / NOISE**2
        own = np.trace(gradient.T @ covariance @ gradient)
        np.testing.assert_allclose(found.self_influence[n], own, rtol=1e-9)


def test_self_influence_is_the_diagonal_of_influence(x64):
    la = exact.fitted("full", "float64")
    defined = twins.problem("mlp", "float64")
    data = np.asarray(defined.x), np.asarray(defined.y)
    found = la.leave_one_out(data)
    every = np.asarray(la.influence(data, data).scores)
    np.testing.assert_allclose(found.self_influence, np.diag(every), rtol=1e-9)
    gamma = twins.dense(twins.ggn, "mlp") @ exact.covariance("full", np.ones(31))
    np.testing.assert_allclose(found.leverage.sum(), np.trace(gamma), rtol=1e-9)
    tempered = la.with_temperature(0.1).leave_one_out(data)
    np.testing.assert_allclose(tempered.log_prob, found.log_prob, rtol=1e-9)


def test_single_precision(x64):
    expected = regression().leave_one_out((X, Y))
    with jax.enable_x64(False):
        mode = np.float32(ridge(X, Y, np.ones(NUM))[0])
        data = np.float32(X), np.float32(Y)
        likelihood = lk.Gaussian(noise_std=NOISE)
        la = lk.fit(
            linear, mode, data, likelihood=likelihood, structure="full", prior_precision=DELTA
        )
        found = la.leave_one_out(data)
    assert found.log_prob.dtype == jnp.float32
    np.testing.assert_allclose(found.log_prob, expected.log_prob, rtol=1e-4)
    np.testing.assert_allclose(found.shift, expected.shift, rtol=1e-3)


def test_streams_and_dual_forms_say_the_same(x64):
    expected = regression().leave_one_out((X, Y))
    la = regression(structure=lk.Full(form="dual"))
    found = la.leave_one_out(twins.Loader(X, Y, 7), batch_size=3)
    np.testing.assert_allclose(found.log_prob, expected.log_prob, rtol=1e-8)


# --- logistic regression --------------------------------------------------------------------------


def newton(x, y, weights, steps=50):
    """Return the mode of logistic regression by Newton's method."""
    w = np.zeros(3)
    for _ in range(steps):
        p = special.expit(x @ w)
        hessian = (x * (weights * p * (1 - p))[:, None]).T @ x + DELTA * np.eye(3)
        w = w - np.linalg.solve(hessian, x.T @ (weights * (p - y)) + DELTA * w)
    return w


@pytest.mark.parametrize("classes", [False, True], ids=["binary", "classes"])
def test_logistic_regression_is_right_to_second_order(classes, x64):
    mode = newton(X, LABELS, np.ones(NUM))
    if classes:  # two logits, half the difference each: the same predictions and prior
        params, labels, likelihood = np.stack([-mode / 2, mode / 2], axis=1), LABELS, "categorical"
        prior = 2 * DELTA
    else:
        params, labels, likelihood = mode[:, None], LABELS[:, None].astype(float), "bernoulli"
        prior = DELTA
    la = lk.fit(
        *(linear, params, (X, labels)),
        likelihood=likelihood,
        structure="full",
        prior_precision=prior,
    )
    found = la.leave_one_out((X, labels))
    kappa, refitted, at_mode = [], [], special.expit(X @ mode)
    for n in range(NUM):
        rest = (np.arange(NUM) != n).astype(float)
        other = newton(X, LABELS, rest)
        p = special.expit(X @ other)
        inner = np.linalg.inv((X * (rest * p * (1 - p))[:, None]).T @ X + DELTA * np.eye(3))
        kappa.append(1 / np.sqrt(1 + np.pi / 8 * X[n] @ inner @ X[n]))
        refitted.append(special.expit(kappa[-1] * (X[n] @ other)))
    probs = np.asarray(found.mean)[:, 1] if classes else np.asarray(found.mean)[:, 0]
    # One Newton step is far closer to the refit than the fit with the example is.
    error = np.abs(probs - refitted)
    assert error.max() < 0.02
    assert error.mean() < 0.15 * np.abs(at_mode - refitted).mean()


def test_missing_entries_are_left_out(x64):
    mask = np.ones((NUM, 2), bool)
    mask[::4, 1] = False
    likelihood = lk.Masked(lk.Gaussian(noise_std=NOISE))
    targets = np.where(mask, Y, np.nan), mask
    la = lk.fit(
        *(linear, ridge(X, Y, np.ones(NUM))[0], (X, targets)),
        likelihood=likelihood,
        structure="full",
        prior_precision=DELTA,
    )
    found = la.leave_one_out((X, targets))
    assert np.isfinite(found.log_prob).all()
    covariance = np.asarray(la.posterior.covariance()).reshape(3, 2, 3, 2)
    shares = np.einsum("ni,icjc,nj->nc", X, covariance, X) / NOISE**2
    np.testing.assert_allclose(found.leverage, (shares * mask).sum(axis=1), rtol=1e-9)


# --- labels ---------------------------------------------------------------------------------------


def test_wrong_labels_come_first(x64):
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(-2, 1, (40, 2)), rng.normal(2, 1, (40, 2))])
    y = np.repeat([0, 1], 40)
    y[[3, 50]] = 1 - y[[3, 50]]
    w = np.zeros((2, 2))
    for _ in range(500):
        w = w - 0.02 * (x.T @ (special.softmax(x @ w, axis=1) - np.eye(2)[y]) + w)
    la = lk.fit(linear, w, (x, y), likelihood="categorical", structure="full", prior_precision=1.0)
    found = la.suspicious_labels((x, y))
    assert set(found.ranking[:2]) == {3, 50}
    np.testing.assert_array_equal(found.scores, la.leave_one_out((x, y)).self_influence)
    assert (np.diff(np.asarray(found.scores)[found.ranking]) <= 0).all()


# --- warnings -------------------------------------------------------------------------------------


def test_a_network_that_fits_every_label_warns(x64):
    x, y = np.asarray([[2.0, 0, 0], [-2.0, 0, 0]] * 4), np.asarray([1, 0] * 4)
    w = np.zeros((3, 2))
    w[0] = -4, 4
    la = lk.fit(linear, w, (x, y), likelihood="categorical", structure="full")
    with pytest.warns(UserWarning, match="fits every training label"):
        la.leave_one_out((x, y))


def test_a_leverage_above_one_is_cut_and_reported(x64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 1)) * np.ones((1, 3)) + 1e-3 * rng.normal(size=(6, 3))
    mode = np.zeros((3, 1))
    la = lk.fit(
        *(linear, mode, (x, np.ones((6, 1)))),
        likelihood=lk.Gaussian(noise_std=0.1),
        structure="diagonal",
        prior_precision=1e-3,
    )
    with pytest.warns(UserWarning, match=r"Found \d of 6 training examples with a leverage of ne"):
        found = la.leave_one_out((x, np.ones((6, 1))))
    assert np.isfinite(found.log_prob).all()
    assert found.leverage.max() < 1


def test_other_values_compile_nothing(x64):
    la = regression()
    la.leave_one_out((X, Y))
    with twins.compilations() as names:
        la.leave_one_out((X, Y + 1))
    assert names == []


def test_other_data_are_refused(x64):
    with pytest.raises(ValueError, match=r"Found 19 training examples.* was fitted to 20"):
        regression().leave_one_out((X[1:], Y[1:]))
