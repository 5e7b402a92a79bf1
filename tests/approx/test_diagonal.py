"""The diagonal posterior: the exact diagonal of the curvature, independent parameters."""

import exact
import numpy as np
import twins

from laplace_kit import curv
from laplace_kit.approx.diagonal import fit_diagonal


def test_is_the_exact_diagonal(x64):
    problem = twins.problem("several_axes", "float64")
    diagonal = fit_diagonal(curv.GGNOperator(*problem.args)).diagonal
    twins.assert_close(diagonal, np.diag(twins.dense(twins.ggn, "several_axes")))


def test_exact_where_the_curvature_is_diagonal(x64):
    """Features that are orthogonal over the data leave nothing outside of the diagonal."""
    signs = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    regression = exact.Regression(0.5 * signs, np.arange(8.0).reshape(4, 2), noise_std=0.3)
    precision, mean = exact.priors(regression.num_params)
    la = regression.fit(precision, mean, structure="diagonal")
    _, cov = regression.posterior(precision, mean)
    twins.assert_close(la.posterior.variance(), np.diag(cov))
    twins.assert_close(la.log_marginal_likelihood(), regression.log_evidence(precision, mean))


def test_underestimates_the_variance_of_what_the_data_couple(x64):
    variance = np.asarray(exact.fitted("diagonal", "float64").posterior.variance())
    full = np.diag(exact.covariance("full", np.ones(31)))
    assert np.all(variance <= full * (1 + 1e-12))  # 1 / S^-1_ii is at most S_ii
