"""Weights, weighted means and rankings on the host."""

import numpy as np
import pytest

from laplace_kit.eval.statistics import weighting


def test_an_infinite_value_counts_only_where_it_has_weight():
    values = np.array([[1.0, np.inf], [3.0, 5.0], [0.0, 1.0]])
    rows = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 3.0]])
    expected = [[2.0, np.inf], [1.5, 3.0], [0.25, np.inf]]
    np.testing.assert_allclose(weighting.weighted_means(rows, values), expected)
    with_nan = np.where(np.isinf(values), np.nan, values)
    found = weighting.weighted_means(rows, with_nan)[:, 1]
    np.testing.assert_array_equal(np.isnan(found), [True, False, True])


def test_ranks_group_equal_values():
    ranking = weighting.ranked(np.array([0.5, 0.1, 0.5, 0.9]))
    np.testing.assert_array_equal(ranking.order, [1, 0, 2, 3])
    np.testing.assert_array_equal(ranking.ends, [1, 3, 4])
    np.testing.assert_array_equal(ranking.group, [0, 1, 1, 2])
    sums = weighting.up_to_ends(np.array([[1.0, 2.0, 3.0, 4.0]]), ranking)
    np.testing.assert_array_equal(sums, [[1.0, 6.0, 10.0]])


def test_effective_sizes_of_counts_and_of_proportions():
    assert weighting.effective_size(np.array([1.0, 3.0, 0.0])) == 4
    assert weighting.effective_size(np.array([0.5, 0.5, 0.5])) == pytest.approx(3)
    assert weighting.effective_size(np.array([1.5, 0.5])) == pytest.approx(4 / 2.5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"the weights of shape \(1,\) for 2 examples, expected one number for each"),
        ([1.0, np.inf], r"inf at the weights\[1\], expected finite numbers"),
        ([0.0, 0.0], "the weights that are all zero, expected a positive weight"),
    ],
)
def test_weights_that_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        weighting.checked(np.array(weights), 2, "the weights")
