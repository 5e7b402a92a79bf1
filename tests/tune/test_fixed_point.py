"""The tuned prior precision, and the noise, are the maximum of the evidence."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from exact import ANY_CURVATURE, KINDS
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from laplace_kit.approx import DiagonalStructure, FullStructure, LowRankStructure
from laplace_kit.approx.noise import Residuals
from laplace_kit.tune import Tuning
from laplace_kit.tune.fixed_point import maximise_evidence

P = 31
SIZES = [4, 12, 3, 12]  # of the leaves of twins.mlp
BOUNDS = (1e-4, 1e6)


def deviation() -> np.ndarray:
    """Return the mode of twins.mlp, made unlike from leaf to leaf."""
    theta = np.asarray(twins.flat(twins.problem("mlp"))[0], np.float64)
    return theta * np.repeat([0.3, 2.0, 5.0, 0.05], SIZES)


def tune(kind, dtype="float64", dev=None, **options) -> Tuning:
    la = exact.fitted(kind, dtype)
    dev = deviation() if dev is None else dev
    return maximise_evidence(la.structure, jnp.asarray(dev, dtype), la.params, **options)


def evidence(kind, log_delta, dev=None):
    """Return the log evidence, minus the log-likelihood, and its gradient in log precisions."""
    log_delta = np.atleast_1d(log_delta)
    expand = np.repeat(np.eye(len(log_delta)), SIZES if len(log_delta) > 1 else [P], axis=0)
    precision, dev = np.exp(expand @ log_delta), deviation() if dev is None else dev
    matrix = exact.curvature(kind)
    variance = np.diag(np.linalg.inv(matrix + np.diag(precision)))
    gradient = 0.5 * (1 - precision * dev**2 - precision * variance)
    return exact.evidence(0.0, matrix, precision, dev), gradient @ expand


# --- one precision for all ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_is_stationary_and_beats_a_fine_grid(kind, x64):
    found = np.log(float(tune(kind).prior_precision))
    best, gradient = evidence(kind, found)
    assert abs(gradient[0]) < 1e-6 * P
    grid = np.linspace(*np.log(BOUNDS), 400)
    assert best >= max(evidence(kind, point)[0] for point in grid) - 1e-9


def test_fixed_point_of_mackay_on_linear_regression(x64):
    """At the maximum the precision is gamma / |theta - theta0|^2 (MacKay, 1992)."""
    regression = exact.regression(num=40)
    num = regression.num_params
    la = regression.fit(np.ones(num), np.full(num, 0.5), structure="full").tune()
    delta = float(la.prior_precision)
    theta, _ = regression.posterior(np.ones(num), np.full(num, 0.5))
    eigenvalues = np.linalg.eigvalsh(regression.curvature())
    gamma = np.sum(eigenvalues / (eigenvalues + delta))
    assert delta == pytest.approx(gamma / np.sum((theta - 0.5) ** 2), rel=1e-6)
    assert float(la.diagnostics().effective_parameters) == pytest.approx(gamma, rel=1e-6)


def test_the_highest_of_two_hills(x64):
    """Few strong and many weak directions: a local search from the wrong side would stay there."""
    curvature = np.concatenate([np.full(3, 1e8), np.full(28, 1e-2)])
    dev = np.concatenate([np.full(3, 1e-2), np.full(28, 0.2)])
    tuning = maximise_evidence(
        DiagonalStructure(jnp.asarray(curvature)),
        jnp.asarray(dev),
        jnp.zeros(P),
        bounds=(1e-8, 1e8),
    )
    grid = np.linspace(*np.log([1e-8, 1e8]), 20_001)[:, None]
    values = 0.5 * np.sum(grid - np.exp(grid) * dev**2 - np.log(curvature + np.exp(grid)), axis=1)
    assert np.log(tuning.prior_precision) == pytest.approx(grid[values.argmax(), 0], abs=2e-3)


def test_single_precision_finds_the_same(x64):
    double = float(tune("full").prior_precision)
    with jax.enable_x64(False):
        single = tune("full", "float32")
        assert single.prior_precision.dtype == "float32"
        assert float(single.prior_precision) == pytest.approx(double, rel=1e-2)


# --- one precision a leaf -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_per_leaf_is_the_optimum_that_scipy_finds(kind, x64):
    tuning = tune(kind, per_leaf=True)
    assert jax.tree.structure(tuning.prior_precision) == jax.tree.structure(
        exact.fitted(kind, "float64").params
    )
    found = np.log([float(leaf) for leaf in jax.tree.leaves(tuning.prior_precision)])
    best, gradient = evidence(kind, found)
    assert np.abs(gradient).max() < 1e-5 * P
    expected = minimize(
        lambda z: tuple(-part for part in evidence(kind, z)),
        np.zeros(4),
        jac=True,
        bounds=[tuple(np.log(BOUNDS))] * 4,
    )
    assert best >= -expected.fun - 1e-8
    one = np.log(float(tune(kind).prior_precision))
    assert best >= evidence(kind, one)[0]
    assert not np.any(tuning.at_bound)


def test_a_leaf_at_its_prior_mean_goes_to_the_bound_alone(x64):
    dev = deviation()
    dev[16:19] = 0  # the bias of the output: nothing speaks for a finite precision
    with pytest.warns(UserWarning, match="largest at a bound of the prior precision"):
        tuning = tune("full", dev=dev, per_leaf=True)
    np.testing.assert_array_equal(tuning.at_bound, [False, False, True, False])
    found = np.log([float(leaf) for leaf in jax.tree.leaves(tuning.prior_precision)])
    assert found[2] == pytest.approx(np.log(1e6))
    _, gradient = evidence("full", found, dev)
    assert np.abs(gradient[[0, 1, 3]]).max() < 1e-5 * P


# --- bounds ---------------------------------------------------------------------------------------


def test_a_maximum_beyond_a_bound_is_told(x64):
    inside = float(tune("full").prior_precision)
    for bounds in ((1e-4, inside / 3), (inside * 3, 1e6)):
        with pytest.warns(UserWarning, match="largest at a bound.*Widen `bounds`, train further"):
            tuning = tune("full", bounds=bounds)
        assert tuning.at_bound
        assert float(tuning.prior_precision) == pytest.approx(bounds[1 if bounds[0] == 1e-4 else 0])


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, np.inf), (-1.0, 1.0)])
def test_impossible_bounds(bounds):
    with pytest.raises(ValueError, match=r"Found bounds=.*expected 0 < low < high, both finite"):
        tune("full", "float32", bounds=bounds)


# --- indefinite curvature -------------------------------------------------------------------------


def indefinite(kind):
    values = jnp.asarray(np.concatenate([np.logspace(2, -2, 30), [-3.0]]))
    if kind == "full":
        return FullStructure(jnp.diag(values))
    if kind == "diagonal":
        return DiagonalStructure(values)
    return LowRankStructure(values[:6], jnp.eye(6, P), jnp.zeros(6), values[-1])


@pytest.mark.parametrize("per_leaf", [False, True])
@pytest.mark.parametrize("kind", ANY_CURVATURE)
def test_indefinite_curvature_has_no_largest_evidence(kind, per_leaf, x64):
    """Towards a singular posterior precision the evidence grows without bound."""
    params, dev = exact.fitted("full", "float64").params, jnp.asarray(deviation())
    with pytest.raises(ValueError, match="most negative eigenvalue is -3: its evidence grows") as e:
        maximise_evidence(indefinite(kind), dev, params, per_leaf=per_leaf)
    assert "pass bounds=(30, 1e+06)" in str(e.value)
    assert "curvature='ggn'" in str(e.value)


@pytest.mark.parametrize("kind", ANY_CURVATURE)
def test_indefinite_curvature_within_bounds_above_it(kind, x64):
    dev = jnp.asarray(np.full(P, 0.05))  # a maximum at a precision of a few hundred
    tuning = maximise_evidence(indefinite(kind), dev, jnp.zeros(P), bounds=(30.0, 1e6))
    assert np.all(np.isfinite(tuning.objective))
    assert 30 < tuning.prior_precision < 1e4


def test_negative_rounding_is_no_indefiniteness(x64):
    structure = DiagonalStructure(jnp.asarray(np.append(np.full(P - 1, 1e6), -1e-9)))
    tuning = maximise_evidence(structure, jnp.ones(P), jnp.zeros(P))
    assert np.isfinite(tuning.prior_precision)


# --- the way there --------------------------------------------------------------------------------


@pytest.mark.parametrize("per_leaf", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_trace_is_true_and_short(kind, per_leaf, x64):
    tuning = tune(kind, per_leaf=per_leaf)
    visited, objective = np.log(tuning.visited), np.asarray(tuning.objective)
    assert visited.shape == (len(objective), 4 if per_leaf else 1)
    expected = [evidence(kind, point)[0] for point in visited]
    np.testing.assert_allclose(objective, expected, rtol=0, atol=1e-8)
    best = np.log([float(leaf) for leaf in jax.tree.leaves(tuning.prior_precision)])
    np.testing.assert_allclose(visited[-1], best, rtol=1e-12)
    assert objective[-1] >= objective.max() - 1e-9
    # A grid of 25 where the curvature is indefinite by rounding; then one bit a step, to half of
    # the digits.
    grid = 25 if exact.fitted(kind, "float64").structure.spectrum().smallest < 0 else 0
    assert len(objective) <= grid + (60 if per_leaf else 32)
    assert not tuning.flat
    assert float(tuning.noise_scale) == float(tuning.temperature) == 1


@given(st.integers(0, 10_000))
def test_each_step_halves_the_distance_to_the_maximum(seed):
    """The theorem the method rests on, with precisions shared by groups of parameters."""
    rng = np.random.default_rng(seed)
    member = np.repeat(np.eye(3), [1, 2, 4], axis=0)
    root = rng.normal(size=(7, rng.integers(1, 9))) * np.exp(2 * rng.normal(size=(7, 1)))
    squares = np.exp(2 * rng.normal(size=3))

    def step(z):
        precision = np.exp(member @ z)
        cov = np.linalg.inv(root @ root.T + np.diag(precision))
        gamma = (1 - precision * np.diag(cov)) @ member
        return (z + np.log(gamma) - np.log(squares)) / 2

    one, other = 3 * rng.normal(size=(2, 3))
    distance = np.abs(one - other).max()
    assert np.abs(step(one) - step(other)).max() <= 0.5 * distance + 1e-9


@given(st.integers(0, 10_000), st.sampled_from([1, 2]))
def test_the_evidence_is_concave_in_log_precisions_and_log_noise(seed, power):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(5, rng.integers(1, 7))) * np.exp(rng.normal(size=(5, 1)))
    dev, squares, count = rng.normal(size=5), np.exp(rng.normal()), 3.0
    params = [jnp.zeros(2), jnp.zeros(3)]

    def at(point):
        z, w = np.repeat(point[:2], [2, 3]), point[2]
        fit = -0.5 * (np.exp(-w) * squares + count * w)
        return exact.evidence(fit, root @ root.T * np.exp(-power * w), np.exp(z), dev)

    one, other = 2 * rng.normal(size=(2, 3))
    assert at((one + other) / 2) >= (at(one) + at(other)) / 2 - 1e-9
    with jax.enable_x64(True):  # and so there is one maximum, which no random point exceeds
        best = maximise_evidence(
            FullStructure(jnp.asarray(root @ root.T)),
            jnp.asarray(dev),
            params,
            per_leaf=True,
            bounds=(1e-12, 1e12),
            residuals=Residuals(jnp.asarray(squares), jnp.asarray(count)),
            noise_power=power,
        )
        z = np.log([float(leaf) for leaf in best.prior_precision])
        maximum = np.append(z, 2 * np.log(best.noise_scale))
        assert at(maximum) >= max(at(one), at(other))
        for slope in np.eye(3) * 1e-3:
            assert at(maximum) >= max(at(maximum + slope), at(maximum - slope)) - 1e-9


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("per_leaf", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_and_precisions_together(kind, per_leaf, power, x64):
    """For every structure, also if more parameters are determined than there are targets."""
    squares, count = 40.0, 21.0
    residuals = Residuals(jnp.asarray(squares), jnp.asarray(count))
    tuning = tune(kind, per_leaf=per_leaf, residuals=residuals, noise_power=power)
    expand = np.repeat(np.eye(4), SIZES, axis=0) if per_leaf else np.ones((P, 1))
    matrix, dev = exact.curvature(kind), deviation()

    def loss(point):
        z, w = expand @ point[:-1], point[-1]
        precision, curvature = np.exp(z), matrix * np.exp(-power * w)
        cov = np.linalg.inv(curvature + np.diag(precision))
        fit = -0.5 * (np.exp(-w) * squares + count * w)
        slope_z = 0.5 * (1 - precision * dev**2 - precision * np.diag(cov)) @ expand
        slope_w = 0.5 * (np.exp(-w) * squares - count + power * np.sum(curvature * cov))
        return -exact.evidence(fit, curvature, precision, dev), -np.append(slope_z, slope_w)

    leaves = jax.tree.leaves(tuning.prior_precision)
    found = np.log([*(float(leaf) for leaf in leaves), float(tuning.noise_scale) ** 2])
    least, slope = loss(found)
    assert np.abs(slope).max() < 1e-5 * P
    box = [tuple(np.log(BOUNDS))] * (len(found) - 1) + [(None, None)]
    assert least <= minimize(loss, np.zeros(len(found)), jac=True, bounds=box).fun + 1e-8
    assert float(tuning.objective[-1]) == pytest.approx(-least - 0.0 + 0.5 * squares, abs=1e-8)


# --- data that say nothing ------------------------------------------------------------------------


def test_a_flat_evidence_is_told(x64):
    """One parameter, hardly determined, and a mode where the prior would have it anyway."""
    with pytest.warns(UserWarning, match="evidence is flat.*0.5 nats"):
        tuning = maximise_evidence(
            DiagonalStructure(jnp.asarray([1e-3])),
            jnp.asarray([0.5]),
            jnp.zeros(1),
            bounds=(1e-8, 1.0),
        )
    assert tuning.flat
    assert not tune("full").flat  # and no warning, which would be an error


def test_programs_serve_every_curvature_of_a_shape():
    def once(seed, per_leaf):
        rng = np.random.default_rng(seed)
        curvature = DiagonalStructure(jnp.asarray(rng.chisquare(2, P), jnp.float32))
        dev = jnp.asarray(rng.normal(size=P), jnp.float32)
        residuals = Residuals(jnp.asarray(20.0 + seed), jnp.asarray(30.0 + seed))
        params = {"a": jnp.zeros(11), "b": jnp.zeros(20)}
        bounds = (1e-6 / (1 + seed), 1e6)
        maximise_evidence(
            curvature, dev, params, per_leaf=per_leaf, bounds=bounds, residuals=residuals
        )

    for per_leaf in (False, True):
        once(0, per_leaf)
        with twins.compilations() as names:
            once(1, per_leaf)
        assert not names
