"""Groups from arrays, lists and tables, by name and in order."""

import numpy as np
import pytest

from laplace_kit.eval.grouping import as_groupings, as_groups, codes_of


def test_names_are_in_order_and_codes_count_them():
    names, codes = as_groups(["b", "a", "b"], 3)
    assert names == ("a", "b")
    assert codes.tolist() == [1, 0, 1]
    assert as_groups(np.array([True, False]), 2).names == (False, True)
    assert as_groups(np.array(["x", 2, "None"], object), 3).names == ("2", "None", "x")
    assert codes_of([3, 1], (1, 2, 3), 2).tolist() == [2, 0]


def test_several_groupings_have_their_own_names():
    found = as_groupings({"age": [1, 2], "site": ["x", "x"]}, 2)
    assert [*found] == ["age", "site"]
    assert found["site"].names == ("x",)
    assert [*as_groupings([0, 1], 2)] == ["group"]


def test_refusals():
    with pytest.raises(ValueError, match=r"Found groups of shape \(2, 1\) for 2 examples"):
        as_groups([[1], [2]], 2)
    with pytest.raises(ValueError, match="Found NaN among the groups, at example 1"):
        as_groups([1.0, np.nan], 2)
    for value in (None, np.nan, np.datetime64("NaT", "D")):
        with pytest.raises(ValueError, match=f"Found {value} among the groups, at example 1"):
            as_groups(np.array(["x", value, "y"], object), 3)
    with pytest.raises(ValueError, match="Found no groups"):
        as_groupings({}, 2)
