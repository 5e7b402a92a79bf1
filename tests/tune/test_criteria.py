"""Losses that tuning minimises have the values of their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from laplace_kit import likelihood as lk
from laplace_kit.eval.outputs import Predictive
from laplace_kit.tune.criteria import as_loss

PROBS = jnp.asarray([[0.7, 0.3], [0.4, 0.6], [0.1, 0.9]])
CLASSES = Predictive(jnp.log(PROBS), jnp.zeros((3, 2)), probs=PROBS)
LABELS = jnp.asarray([0, 0, 1])


def test_losses_of_classes():
    def loss(name):
        return as_loss(name, lk.Categorical())(CLASSES, LABELS)

    seen = np.array([0.7, 0.4, 0.9])
    assert loss("nll") == pytest.approx(-np.log(seen).mean(), rel=1e-5)
    assert loss("brier") == pytest.approx(np.mean(2 * (1 - seen) ** 2), rel=1e-5)
    # confidences 0.7, 0.6, 0.9 in bins of their own; right, wrong, right
    assert loss("ece") == pytest.approx((0.3 + 0.6 + 0.1) / 3, rel=1e-5)
    assert as_loss(lambda predictive, y: jnp.sum(y), lk.Poisson())(CLASSES, LABELS) == 1.0


def test_labels_that_are_missing_do_not_count():
    masked = as_loss("nll", lk.Masked(lk.Categorical()))
    found = masked(CLASSES, (LABELS, jnp.asarray([True, False, True])))
    assert found == pytest.approx(-np.log([0.7, 0.9]).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "likelihood", "expected"),
    [
        ("crps", lk.Categorical(), "'nll', 'ece' or 'brier'"),
        ("crps", lk.Masked(lk.Bernoulli()), "'nll', 'ece' or 'brier'"),
        ("ece", lk.Gaussian(), "'nll' or 'crps'"),
        ("brier", lk.Poisson(), "'nll' or 'crps'"),
        ("nlll", lk.Gaussian(), "nll"),
    ],
)
def test_a_loss_of_another_likelihood(objective, likelihood, expected):
    with pytest.raises(ValueError, match=expected):
        as_loss(objective, likelihood)
