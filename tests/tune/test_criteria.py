"""Losses that tuning minimises have the values of their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from laplace_kit import likelihood as lk
from laplace_kit.eval.outputs import Predictive
from laplace_kit.targets import ClassTargets, NormalTargets, Outputs
from laplace_kit.tune.criteria import as_loss

PROBS = jnp.asarray([[0.7, 0.3], [0.4, 0.6], [0.1, 0.9]])
CLASSES = Predictive(ClassTargets(Outputs(jnp.log(PROBS), jnp.zeros((3, 2))), PROBS))
LABELS = jnp.asarray([0, 0, 1])


def test_losses_of_classes():
    def loss(name):
        return as_loss(name, lk.Categorical())(CLASSES, LABELS, None)

    seen = np.array([0.7, 0.4, 0.9])
    assert loss("nll") == pytest.approx(-np.log(seen).mean(), rel=1e-5)
    assert loss("brier") == pytest.approx(np.mean(2 * (1 - seen) ** 2), rel=1e-5)
    # confidences 0.7, 0.6, 0.9 in bins of their own; right, wrong, right
    assert loss("ece") == pytest.approx((0.3 + 0.6 + 0.1) / 3, rel=1e-5)
    assert as_loss(lambda predictive, y: jnp.sum(y), lk.Poisson())(CLASSES, LABELS, None) == 1.0


@pytest.mark.parametrize("name", ["nll", "brier", "ece", "crps"])
def test_weights_are_copies_in_every_loss(name):
    if name == "crps":
        likelihood, y = lk.Gaussian(0.5), jnp.asarray([[0.1], [0.5], [1.0]])
        mean, var = jnp.asarray([[0.0], [1.0], [1.5]]), jnp.full((3, 1), 0.3)
    else:
        likelihood, y = lk.Categorical(), LABELS
    copies = np.repeat(np.arange(3), [2, 0, 3])

    def predictive(rows):
        if name == "crps":
            return Predictive(NormalTargets(Outputs(mean[rows], var[rows]), var[rows]))
        probs = CLASSES.probs[rows]
        return Predictive(ClassTargets(Outputs(jnp.log(probs), jnp.zeros_like(probs)), probs))

    loss = as_loss(name, likelihood)
    weighted = loss(predictive(np.arange(3)), y, jnp.asarray([2.0, 0.0, 3.0]))
    assert weighted == pytest.approx(loss(predictive(copies), y[copies], None), rel=1e-5)


def test_weights_are_not_for_a_loss_of_ones_own():
    loss = as_loss(lambda predictive, y: 0.0, lk.Categorical())
    with pytest.raises(ValueError, match=r"with weights.*expected data \(x, y\)"):
        loss(CLASSES, LABELS, jnp.asarray([1.0, 2.0, 0.0]))


def test_a_loss_of_ones_own_leaves_out_examples_of_weight_zero():
    loss = as_loss(lambda predictive, y: jnp.sum(predictive.probs[:, 0] + y), lk.Categorical())
    found = loss(CLASSES, LABELS, jnp.asarray([1.0, 0.0, 1.0]))
    assert found == pytest.approx(0.7 + 0 + 0.1 + 1, rel=1e-6)


def test_labels_that_are_missing_do_not_count():
    masked = as_loss("nll", lk.Masked(lk.Categorical()))
    found = masked(CLASSES, (LABELS, jnp.asarray([True, False, True])), None)
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


NUMBERS = np.array([[0.3, 1.0], [2.0, -1.0]])  # means, and logarithms of precisions


def test_crps_of_counts_and_of_other_numbers(x64):
    """Against sums over counts of a certain rate, and the closed form of a certain normal."""
    crps = {}
    for name, likelihood, f, y in (
        ("counts", lk.Poisson(), np.log([[2.0], [5.0]]), np.array([[1], [7]])),
        ("numbers", lk.HeteroscedasticGaussian(), NUMBERS, np.array([[1.0], [0.0]])),
    ):
        outputs = Outputs(jnp.asarray(f), jnp.zeros(f.shape))
        predictive = Predictive(likelihood.targets(outputs), likelihood)
        y = jnp.asarray(y)
        loss = as_loss("crps", likelihood)
        crps[name] = [loss(predictive, y, weights) for weights in (None, jnp.asarray([3.0, 1.0]))]
        masked = as_loss("crps", lk.Masked(likelihood))
        seen = masked(predictive, (y, jnp.asarray([[1], [0]])), None)
        crps[name] += [seen, masked(predictive, (y, jnp.ones((2, 1))), None)]
    counts = np.arange(60)
    each = [
        np.sum((stats.poisson(rate).cdf(counts) - (counts >= k)) ** 2)
        for rate, k in ((2.0, 1), (5.0, 7))
    ]
    expected = {"counts": np.array(each)}
    std, z = np.exp([-0.5, 0.5]), np.array([0.7, -2.0]) / np.exp([-0.5, 0.5])
    normal = stats.norm
    expected["numbers"] = std * (z * (2 * normal.cdf(z) - 1) + 2 * normal.pdf(z) - np.pi**-0.5)
    for name, values in expected.items():
        wanted = [values.mean(), np.average(values, weights=[3, 1]), values[0], values.mean()]
        np.testing.assert_allclose(crps[name], wanted, rtol=1e-6)


def test_no_crps_without_a_distribution():
    likelihood = lk.FromLoss(lambda f, y: jnp.sum((f - y) ** 2))
    predictive = Predictive(likelihood.targets(Outputs(jnp.zeros((3, 2)), jnp.ones((3, 2)))))
    with pytest.raises(TypeError, match="FromLoss likelihood, from which no distribution"):
        as_loss("crps", likelihood)(predictive, jnp.zeros((3, 2)), None)
