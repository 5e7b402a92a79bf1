"""Quantiles by bisection against SciPy's, wherever the bracket starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from laplace_kit.targets.inversion import check_levels, inverted, inverted_counts

LEVELS = np.asarray([[1e-4, 0.3], [0.5, 0.999]])


@pytest.mark.parametrize(("centre", "width"), [(0.0, 1.0), (300.0, 1e-3), (-5.0, 1e6)])
def test_numbers(centre, width, x64):
    scale = jnp.asarray([0.5, 2.0])
    found = jax.jit(
        lambda q: inverted(
            lambda y: jax.scipy.stats.norm.cdf(y, 1.0, scale),
            q,
            centre=jnp.full(2, centre),
            width=jnp.full(2, width),
        )
    )(jnp.asarray(LEVELS))
    expected = stats.norm.ppf(LEVELS[..., None], 1.0, np.asarray(scale))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-8)


def test_counts(x64):
    rate = np.asarray([0.1, 3.0, 5e5])
    found = jax.jit(
        lambda q: inverted_counts(
            lambda y: jnp.where(y < 0, 0, jax.scipy.special.gammaincc(y + 1, rate)),
            q,
            jnp.zeros(3),
        )
    )(jnp.asarray(LEVELS))
    np.testing.assert_array_equal(found, stats.poisson.ppf(LEVELS[..., None], rate))


def test_a_bound_is_finite_where_rounding_keeps_the_level_out_of_reach():
    found = inverted_counts(lambda y: 0 * y + 0.5, jnp.asarray(0.9), jnp.zeros(1))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("level", [0.0, 1.0, np.nan, [0.5, 2.0]])
def test_levels_out_of_range_are_refused(level):
    with pytest.raises(ValueError, match="expected numbers between 0 and 1"):
        check_levels("q", level)
