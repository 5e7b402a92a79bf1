"""Suites measure all predictors at once as the metrics measure each, and count by weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from laplace_kit.eval.report.suites import RegressionSuite, regression_metrics


@pytest.mark.usefixtures("x64")
def test_columns_are_measured_apart_and_compared_in_pairs():
    rng = np.random.default_rng(0)
    mean, y = rng.normal(size=(20, 2, 1)), rng.normal(size=(20, 1))
    std = rng.uniform(0.5, 1.5, size=(20, 2, 1))
    weights = rng.integers(0, 3, 20)
    values, differences = RegressionSuite(((1, 0),))(
        *map(jnp.asarray, (mean, std, y)), weights=weights
    )
    repeated = np.repeat(np.arange(20), weights)
    for column in range(2):
        expected = regression_metrics(mean[repeated, column], std[repeated, column], y[repeated])
        found = {key: float(values[key][column]) for key in expected}
        assert found == pytest.approx(expected, rel=1e-10)
    assert set(differences) == {"rmse", "nll", "crps", "quantile_error"}
    np.testing.assert_allclose(differences["crps"], np.diff(values["crps"]), rtol=1e-12)
