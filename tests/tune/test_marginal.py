"""The prior precision of greatest evidence is that of a dense twin."""

import exact
import jax
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from tuned import CLASSES, NUM, WIDE, P, data, fit, net, params

import laplace_kit as lk


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
    """Return log precisions of greatest evidence, and that evidence minus the log-likelihood."""

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
