"""A held-out loss finds its minimum, and folds are predicted as if they had been left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit import curv, tree
from laplace_kit import likelihood as lk
from laplace_kit.approx.dual import fit_dual
from laplace_kit.approx.full import fit_full
from laplace_kit.curv.mode import examine_mode
from laplace_kit.data import InMemory
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.predictive import predict
from laplace_kit.eval.validation import (
    Fold,
    cross_validated,
    held_out_loss,
    minimise,
    split_folds,
    tune_validation,
)
from laplace_kit.targets import ClassTargets, Outputs

# --- one number -----------------------------------------------------------------------------------


def bounded_quadratic(bounds):
    return tune_validation(lambda delta: (np.log10(delta) - 1.3) ** 2, bounds=bounds)


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
    tuning = tune_validation(
        lambda d: np.nan if d < 1 else abs(np.log10(d) - 0.5), bounds=(1e-3, 1e3)
    )
    assert np.log10(tuning.prior_precision) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ValueError, match=r"no finite held-out loss .*raise the bounds"):
        tune_validation(lambda d: np.nan, bounds=(1e-3, 1e3))


def test_a_minimum_beyond_a_bound_is_told():
    with pytest.warns(UserWarning, match="held-out loss is smallest at a bound"):
        tuning = tune_validation(lambda d: -np.log10(d), bounds=(1e-2, 1e2))
    assert float(tuning.prior_precision) == pytest.approx(100, rel=0.05)
    assert tuning.at_bound


def test_a_flat_loss_is_told():
    assert tune_validation(lambda d: 1e-6 * (np.log10(d) - 1) ** 2, bounds=(1e-2, 1e2)).flat


# --- losses ---------------------------------------------------------------------------------------

PROBS = jnp.asarray([[0.7, 0.3], [0.4, 0.6], [0.1, 0.9]])
CLASSES = Predictive(ClassTargets(Outputs(jnp.log(PROBS), jnp.zeros((3, 2))), PROBS))
LABELS = jnp.asarray([0, 0, 1])


def test_losses_of_classes():
    def loss(name):
        return held_out_loss(name, lk.Categorical())(CLASSES, LABELS)

    seen = np.array([0.7, 0.4, 0.9])
    assert loss("nll") == pytest.approx(-np.log(seen).mean(), rel=1e-5)
    assert loss("brier") == pytest.approx(np.mean(2 * (1 - seen) ** 2), rel=1e-5)
    # confidences 0.7, 0.6, 0.9 in bins of their own; right, wrong, right
    assert loss("ece") == pytest.approx((0.3 + 0.6 + 0.1) / 3, rel=1e-5)
    assert held_out_loss(lambda predictive, y: jnp.sum(y), lk.Poisson())(CLASSES, LABELS) == 1.0


def test_labels_that_are_missing_do_not_count():
    masked = held_out_loss("nll", lk.Masked(lk.Categorical()))
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
        held_out_loss(objective, likelihood)


# --- folds ----------------------------------------------------------------------------------------


def test_folds_partition_the_data():
    x = {"a": jnp.arange(11), "b": jnp.arange(22).reshape(11, 2)}
    y = (jnp.arange(11), jnp.ones((11, 1), bool))
    pairs = split_folds(x, y, 4)
    assert len(pairs) == 4
    for rest, fold in pairs:
        whole = jax.tree.map(lambda a, b: np.concatenate([a, b]), rest, fold)
        np.testing.assert_array_equal(np.sort(whole[0]["a"]), np.arange(11))
        for part_x, part_y in (rest, fold):
            np.testing.assert_array_equal(part_x["b"][:, 0], 2 * part_x["a"])
            np.testing.assert_array_equal(part_y[0], part_x["a"])
    inside = np.concatenate([fold[0]["a"] for _, fold in pairs])
    np.testing.assert_array_equal(np.sort(inside), np.arange(11))
    assert {len(fold[1][0]) for _, fold in pairs} == {2, 3}


@pytest.mark.parametrize("num_folds", [-1, 0, 1, 12])
def test_impossible_numbers_of_folds(num_folds):
    with pytest.raises(ValueError, match=f"num_folds={num_folds} for 11 examples, expected from 2"):
        split_folds(jnp.arange(11), jnp.arange(11), num_folds)


def folds_of(problem, make, num_folds):
    objective = curv.GGNOperator(*problem.args).objective
    folds = []
    for rest, (x, y) in split_folds(problem.x, problem.y, num_folds):
        mode = examine_mode(objective.planned(rest[0]), InMemory(*rest))
        operator = curv.GGNOperator(problem.model_fn, problem.params, rest, problem.likelihood)
        folds.append(Fold(x, y, make(operator), mode.gradient))
    return objective, folds


@pytest.mark.slow
@pytest.mark.parametrize("make", [fit_full, pytest.param(fit_dual, marks=pytest.mark.slow)])
def test_a_fold_is_one_newton_step_away_for_any_model(make, x64):
    """Against dense matrices: mean and covariance of the linearised model without the fold."""
    problem, num_folds, delta = twins.problem("mlp", "float64"), 3, 0.7
    objective, folds = folds_of(problem, make, num_folds)
    theta = np.asarray(twins.flat(problem)[0])
    dev = theta - 0.1
    met = []

    def of_fold(moved, posterior, x):
        predictive = predict(moved, posterior, x, covariance="full")
        met.append(predictive)
        return predictive

    mean_loss = cross_validated(
        folds,
        objective,
        jnp.asarray(dev),
        lambda value: jnp.full(len(theta), value),
        of_fold,
        lambda predictive, y: float(len(y)),
    )
    # three folds of 3, 2 and 2 examples: their losses are weighed by their sizes
    assert mean_loss(delta) == pytest.approx((9 + 4 + 4) / 7)

    outputs, jac = np.asarray(twins.flat(problem)[1](theta)), twins.dense(twins.jacobian, "mlp")
    probs = np.asarray(jax.nn.softmax(outputs))
    inner = np.einsum("nc,cd->ncd", probs, np.eye(3)) - np.einsum("nc,nd->ncd", probs, probs)
    curvatures = np.einsum("ncp,ncd,ndq->npq", jac, inner, jac)
    slopes = np.einsum("nc,ncp->np", probs - np.eye(3)[np.asarray(problem.y)], jac)
    number = np.arange(7) % num_folds
    for fold, predictive in enumerate(met):
        inside, rest = number == fold, number != fold
        cov = np.linalg.inv(curvatures[rest].sum(axis=0) + delta * np.eye(len(theta)))
        step = -cov @ (slopes[rest].sum(axis=0) + delta * dev)
        twins.assert_close(predictive.f_mean, outputs[inside] + jac[inside] @ step, rtol=1e-8)
        expected = np.einsum("ncp,pq,ndq->ncd", jac[inside], cov, jac[inside])
        twins.assert_close(predictive.f_cov, expected, rtol=1e-8)
    assert tree.size(objective.params) == len(theta)
