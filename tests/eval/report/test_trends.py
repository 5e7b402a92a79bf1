"""Words about pictures say on which side of the line they are."""

import numpy as np

from laplace_kit.eval.report import trends


def test_bins_below_and_above():
    claimed, counts = np.array([0.1, 0.5, 0.9, 0.0]), np.array([10.0, 10, 10, 0])
    found = trends.of_bins(claimed, np.array([0.1, 0.6, 0.6, 0.0]), counts)
    assert found == (
        "The accuracy lies below the dashed line in 1 and above it in 1 of 3 bins; most, by 30 "
        "points below, at 0.90."
    )


def test_levels():
    levels = np.array([0.25, 0.5, 0.75])
    assert trends.of_levels(levels, levels + 0.01) == "along the dashed line"
    found = trends.of_levels(levels, np.array([0.1, 0.4, 0.8]))
    assert found == "below the dashed line at 2 and above it at 1 of 3 levels"


def test_risk_of_all_and_of_half():
    found = trends.of_risk(np.array([0.25, 0.5, 1.0]), np.array([0.0, 0.1, 0.3]), True)
    assert found == "30.0% of all, 10.0% of the most confident half"
    assert (
        trends.of_risk(np.ones(1), np.full(1, 0.25), False)
        == "0.25 of all, 0.25 of the most confident half"
    )


def test_transforms_at_the_ends_and_in_the_middle():
    pit = np.concatenate([np.full(40, 0.05), np.full(20, 0.5), np.full(40, 0.95)])
    assert trends.of_transforms(pit, np.ones(100)) == (
        "Density 4 at the left end, 1 in the middle, 4 at the right."
    )


def test_confidence_where_right_and_wrong():
    found = trends.of_confidence(
        np.array([0.9, 0.7, 0.5]), np.array([True, True, False]), np.array([1.0, 3.0, 1.0])
    )
    assert found == "Mean confidence 0.75 where correct, 0.50 where wrong."
