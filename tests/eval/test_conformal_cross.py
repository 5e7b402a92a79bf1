"""Jackknife+ and CV+ by their definition, and their coverage where models are refitted."""

import numpy as np
import pytest

from laplace_kit.eval.conformal_cross import cross_conformal_intervals


def least_squares(x, y, new):
    design, at = (np.stack([np.ones(len(of)), of], axis=1) for of in (x, new))
    return at @ np.linalg.lstsq(design, y, rcond=None)[0]


def folds_of(x, y, new, num_folds):
    """Return held-out predictions, folds, and predictions at new inputs without each fold."""
    fold, held_out, at_new = np.arange(len(x)) % num_folds, np.empty(len(x)), []
    for k in range(num_folds):
        others = fold != k
        held_out[~others] = least_squares(x[others], y[others], x[~others])
        at_new.append(least_squares(x[others], y[others], new))
    return held_out, fold, np.stack(at_new)


@pytest.mark.parametrize("num_folds", [5, 30])
def test_ends_are_order_statistics(num_folds):
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(size=30), rng.normal(size=30), rng.normal(size=4)
    held_out, fold, at_new = folds_of(x, y, new, num_folds)
    low, high = cross_conformal_intervals(held_out, y, fold, at_new, level=0.8)
    residuals = np.abs(y - held_out)
    for m in range(4):
        centre = at_new[fold, m]
        assert high[m] == pytest.approx(np.sort(centre + residuals)[24])  # ceil(0.8 * 31)
        assert low[m] == pytest.approx(np.sort(centre - residuals)[5])  # floor(0.2 * 31)


def test_coverage_is_about_the_level_and_never_below_its_bound():
    """Eight examples a parameter; to four standard errors of the mean over 400 data sets."""
    rng, covered = np.random.default_rng(1), []
    for _ in range(400):
        x, new = rng.normal(size=16), rng.normal(size=20)
        y, new_y = (x + rng.standard_t(3, 16), new + rng.standard_t(3, 20))
        held_out, fold, at_new = folds_of(x, y, new, 16)
        low, high = cross_conformal_intervals(held_out, y, fold, at_new, level=0.8)
        covered.append(((low <= new_y) & (new_y <= high)).mean())
    error = 4 * np.std(covered) / 20
    assert abs(np.mean(covered) - 0.8) < error + 1 / 17
    assert np.mean(covered) > 0.6 + error


def test_standard_deviations_scale_residuals_and_outputs_are_apart():
    rng = np.random.default_rng(2)
    mean, std, y = rng.normal(size=(20, 2)), rng.uniform(1, 2, (20, 2)), rng.normal(size=(20, 2))
    fold = np.arange(20) % 4
    new, new_std = rng.normal(size=(4, 3, 2)), rng.uniform(1, 2, (4, 3, 2))
    low, high = cross_conformal_intervals((mean, std), y, fold, (new, new_std), level=0.7)
    assert low.shape == high.shape == (3, 2)
    reach = (np.abs(y - mean) / std)[:, 1] * new_std[fold, 2, 1]
    assert high[2, 1] == pytest.approx(np.sort(new[fold, 2, 1] + reach)[14])  # ceil(0.7 * 21)


def test_refusals():
    mean, fold, new = np.zeros(9), np.arange(9) % 3, np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"Found targets of shape \(8,\)"):
        cross_conformal_intervals(mean, np.zeros(8), fold, new)
    with pytest.raises(ValueError, match=r"Found new predictions of shape \(2,\)"):
        cross_conformal_intervals(mean, mean, fold, np.zeros(2))
    with pytest.raises(ValueError, match="Found folds from 0 to 2 for 2 fits"):
        cross_conformal_intervals(mean, mean, fold, new[:2])
    with pytest.raises(ValueError, match=r"Found 9 examples for level=0.95, expected at least 19"):
        cross_conformal_intervals(mean, mean, fold, new, level=0.95)
