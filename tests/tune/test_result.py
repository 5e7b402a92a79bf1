"""Bounds of a search, and what is said where it stopped at one."""

import numpy as np
import pytest

from laplace_kit.tune.result import checked_bounds, warn_at_bound


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, np.inf)])
def test_bounds_are_positive_finite_and_in_order(bounds):
    with pytest.raises(ValueError, match="0 < low < high"):
        checked_bounds(bounds)


def test_valid_bounds_are_returned():
    assert checked_bounds((1e-4, 1e6)) == (1e-4, 1e6)


def test_only_a_precision_at_a_bound_is_warned_of():
    warn_at_bound(np.array([False, False]), (1.0, 2.0), "loss is smallest")  # warnings are errors
    with pytest.warns(UserWarning, match=r"\(1\.0, 2\.0\)"):
        warn_at_bound(np.array([False, True]), (1.0, 2.0), "loss is smallest")
