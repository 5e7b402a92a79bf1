"""The least of a function of one number is found, and avoided is what is not finite."""

import numpy as np
import pytest

from laplace_kit.tune.line_search import minimise, minimise_over_precision


def bounded_quadratic(bounds):
    return minimise_over_precision(lambda delta: (np.log10(delta) - 1.3) ** 2, bounds=bounds)


def test_minimum_of_a_held_out_loss():
    tuning = bounded_quadratic((1e-4, 1e6))
    assert np.log10(tuning.prior_precision) == pytest.approx(1.3, abs=0.02)
    assert len(tuning.objective) <= 25
    assert float(tuning.objective.max()) == pytest.approx(0, abs=1e-3)
    expected = -((np.log10(tuning.visited[:, 0]) - 1.3) ** 2)
    np.testing.assert_allclose(tuning.objective, expected, atol=1e-5)
    assert not tuning.flat
    assert not tuning.at_bound
    assert float(tuning.noise_scale) == float(tuning.temperature) == 1


def test_of_several_valleys_the_deepest_decade_is_searched():
    best, visited, values = minimise(lambda d: -np.cos(3 * np.log10(d)) - d / 1e7, 1e-4, 1e6)
    grid = 10 ** np.linspace(-4, 6, 2001)
    assert -np.cos(3 * np.log10(best)) - best / 1e7 == pytest.approx(float(values.min()), abs=1e-6)
    decades = 10.0 ** np.arange(-4, 7)
    assert values.min() <= min(-np.cos(3 * np.log10(d)) - d / 1e7 for d in decades) + 1e-6
    assert grid[0] <= best <= grid[-1]
    assert len(visited) == len(values)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, np.inf), (-1.0, 1.0)])
def test_impossible_bounds(bounds):
    with pytest.raises(ValueError, match=r"Found bounds=.*expected 0 < low < high, both finite"):
        bounded_quadratic(bounds)


def test_a_loss_that_is_not_finite_is_avoided():
    tuning = minimise_over_precision(
        lambda d: np.nan if d < 1 else abs(np.log10(d) - 0.5), bounds=(1e-3, 1e3)
    )
    assert np.log10(tuning.prior_precision) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ValueError, match=r"no finite held-out loss .*raise the bounds"):
        minimise_over_precision(lambda d: np.nan, bounds=(1e-3, 1e3))


def test_a_minimum_beyond_a_bound_is_told():
    with pytest.warns(UserWarning, match="held-out loss is smallest at a bound"):
        tuning = minimise_over_precision(lambda d: -np.log10(d), bounds=(1e-2, 1e2))
    assert float(tuning.prior_precision) == pytest.approx(100, rel=0.05)
    assert tuning.at_bound


def test_a_flat_loss_is_told():
    assert minimise_over_precision(lambda d: 1e-6 * (np.log10(d) - 1) ** 2, bounds=(1e-2, 1e2)).flat
