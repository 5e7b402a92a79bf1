"""Folds of a linear model are predicted as by refitting; their intervals cover."""

import jax.numpy as jnp
import numpy as np
import pytest

import laplace_kit as lk

RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(24, 2)), RNG.normal(size=(50, 2))
SLOPES = np.array([[1.0], [-2.0]])
Y, NEW_Y = (x @ SLOPES + RNG.standard_t(4, (len(x), 1)) for x in (X, NEW))
DELTA = 0.5


def ridge(x, y):
    precision = x.T @ x + DELTA * np.eye(2)
    return np.linalg.solve(precision, x.T @ y), np.linalg.inv(precision)


@pytest.fixture
def posterior(x64):
    params = {"w": jnp.asarray(ridge(X, Y)[0])}

    def model(params, x):
        return x @ params["w"]

    data = jnp.asarray(X), jnp.asarray(Y)
    likelihood = lk.Gaussian(1.0)
    return lk.fit(
        model, params, data, likelihood=likelihood, structure="full", prior_precision=DELTA
    ), data


def test_folds_are_those_of_refits_and_intervals_cover(posterior):
    la, data = posterior
    found = lk.eval.fold_predictions(la, data, jnp.asarray(NEW), num_folds=4)
    for k in range(4):
        others = np.arange(24) % 4 != k
        slopes, cov = ridge(X[others], Y[others])
        for (mean, std), x in (
            ([of[~others] for of in found.held_out], X[~others]),
            ([of[k] for of in found.new], NEW),
        ):
            np.testing.assert_allclose(mean, x @ slopes, rtol=1e-6, atol=1e-8)
            expected = np.sqrt(1 + np.einsum("nc,cd,nd->n", x, cov, x))[:, None]
            np.testing.assert_allclose(std, expected, rtol=1e-6)
    low, high = lk.eval.cross_conformal_intervals(*found, level=0.8)
    covered = ((low <= NEW_Y) & (high >= NEW_Y)).mean()
    assert covered > 0.6  # the bound of its guarantee; 0.8 on average


def test_refusals(posterior):
    la, data = posterior
    with pytest.raises(ValueError, match="Found num_folds=25 for 24 examples, expected from 2"):
        lk.eval.fold_predictions(la, data, data[0], num_folds=25)
    part = tuple(of[:20] for of in data)
    with pytest.raises(ValueError, match="Found 20 training examples, or sum of their weights"):
        lk.eval.fold_predictions(la, part, data[0], num_folds=4)
