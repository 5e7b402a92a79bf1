"""Isotonic regressions with every new example, each against scikit-learn's fit to all of them."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from laplace_kit.eval.statistics.isotonic import isotonic_pairs, isotonic_steps

RNG = np.random.default_rng(0)
P = np.round(RNG.uniform(size=60), 2)
Y = (RNG.uniform(size=60) < P).astype(float)


@pytest.mark.parametrize("weights", [np.ones(60), RNG.integers(0, 3, 60) * 1.0])
def test_pairs_are_fits_with_the_new_example(weights):
    found, used = isotonic_pairs(P, Y, weights), weights > 0
    new = np.concatenate([[0.0, 1.0], P[:10], RNG.uniform(size=20)])
    for label, values in zip((0, 1), found(new), strict=True):
        for place, value in zip(new, values, strict=True):
            scores, labels = np.append(P[used], place), np.append(Y[used], label)
            model = IsotonicRegression().fit(scores, labels, np.append(weights[used], 1.0))
            assert value == pytest.approx(model.predict([place])[0], abs=1e-9)


def test_steps_are_those_of_scikit_learn():
    weights = RNG.uniform(size=60)
    knots, values = isotonic_steps(P, Y, weights)
    model = IsotonicRegression(out_of_bounds="clip").fit(P, Y, weights)
    new = RNG.uniform(size=50)
    np.testing.assert_allclose(np.interp(new, knots, values), model.predict(new), atol=1e-9)
