"""Folds are predicted as if they had been left out."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from tuned import data, fit

from laplace_kit import curv, tree
from laplace_kit.approx.dual import fit_dual
from laplace_kit.approx.full import fit_full
from laplace_kit.curv.mode import examine_mode
from laplace_kit.data import InMemory
from laplace_kit.eval.predictive import predict
from laplace_kit.tune.folds import Fold, loss_of_folds, split_folds


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
        folds.append(Fold(x, y, None, make(operator), mode.gradient))
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

    mean_loss = loss_of_folds(
        folds,
        objective,
        jnp.asarray(dev),
        lambda value: jnp.full(len(theta), value),
        of_fold,
        lambda predictive, y, weights: float(len(y)),
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


# --- tuning by folds ------------------------------------------------------------------------------


def test_cross_validation_finds_the_minimum_of_refits(x64):
    """Linear regression of known noise: each fold is predicted as if all others were refitted."""
    regression, folds = exact.regression(num=12), 3
    num = regression.num_params
    la = regression.fit(np.ones(num), np.full(num, 0.3), structure="full")
    training = (jnp.asarray(regression.x), jnp.asarray(regression.y))
    tuned = la.tune(method="cross_validation", data=training, num_folds=folds, bounds=(1e-2, 1e2))

    def refit_loss(delta):
        total, index = 0.0, np.arange(12)
        for fold in range(folds):
            rest, out = index % folds != fold, index % folds == fold
            part = exact.Regression(regression.x[rest], regression.y[rest], regression.noise_std)
            mean, cov = part.posterior(np.full(num, delta), np.full(num, 0.3))
            design = regression.design(regression.x[out])
            var = np.einsum("np,pq,nq->n", design, cov, design) + regression.noise_std**2
            squares = (regression.y[out].ravel() - design @ mean) ** 2 / var
            total += 0.5 * np.sum(squares + np.log(2 * np.pi * var))
        return total / 12

    expected = [-refit_loss(float(delta)) for delta in tuned.tuning.visited[:, 0]]
    np.testing.assert_allclose(tuned.tuning.objective, expected, rtol=1e-8, atol=1e-8)
    grid = 10 ** np.linspace(-2, 2, 201)
    assert refit_loss(float(tuned.prior_precision)) <= min(map(refit_loss, grid)) + 1e-4
    assert tuned.tuning.method == "cross_validation"


@pytest.mark.filterwarnings("ignore:The held-out loss is smallest at a bound")
def test_the_temperature_of_cross_validation_is_that_of_refits(x64):
    """In-sample, the best temperature of this regression is none; of refits it is near one."""
    regression, folds, delta = exact.regression(num=9), 3, 1.0
    num, index = regression.num_params, np.arange(9)
    mean = np.full(num, 0.3)
    la = regression.fit(np.ones(num), mean, structure="full")
    training = (jnp.asarray(regression.x), jnp.asarray(regression.y))
    tuned = la.tune(
        method="cross_validation",
        data=training,
        num_folds=folds,
        bounds=(delta / 1.0001, delta * 1.0001),
        temperature=True,
    )

    def loss(temperature, rest, out):
        part = exact.Regression(regression.x[rest], regression.y[rest], regression.noise_std)
        mode, cov = part.posterior(np.full(num, delta), mean)
        design = regression.design(regression.x[out])
        epistemic = temperature * np.einsum("np,pq,nq->n", design, cov, design)
        var = epistemic + regression.noise_std**2
        squares = (regression.y[out].ravel() - design @ mode) ** 2 / var
        return 0.5 * np.sum(squares + np.log(2 * np.pi * var))

    def refitted(temperature):
        return sum(loss(temperature, index % folds != k, index % folds == k) for k in range(folds))

    grid = 10.0 ** np.linspace(-6, 2, 401)
    best = grid[np.argmin([refitted(t) for t in grid])]
    in_sample = grid[np.argmin([loss(t, index >= 0, index >= 0) for t in grid])]
    assert float(tuned.temperature) == pytest.approx(best, rel=0.05)
    assert refitted(float(tuned.temperature)) <= refitted(best) + 1e-4
    assert in_sample == grid[0]
    assert 0.1 < best < 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The held-out loss is smallest at a bound")
@pytest.mark.parametrize("kind", ["diagonal", "low_rank", "ekfac"])
def test_cross_validation_of_classes_with_every_structure(kind, x64):
    la = fit("categorical", structure=kind, rank=3 if kind == "low_rank" else None)
    request = {"method": "cross_validation", "data": data("categorical"), "num_folds": 2}
    one, other = (la.tune(**request, bounds=(1e-1, 1e2), objective="brier") for _ in range(2))
    assert np.isfinite(one.tuning.objective).all()
    np.testing.assert_array_equal(one.tuning.objective, other.tuning.objective)
    assert float(one.prior_precision) == float(other.prior_precision)
