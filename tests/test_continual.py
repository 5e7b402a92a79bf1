"""`la.update`: data in parts are data at once, where the model is linear and its noise Gaussian."""

import dataclasses

import exact
import jax
import jax.numpy as jnp
import loaders
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

import laplace_kit as lk


def halves():
    everything = exact.regression()
    parts = (
        dataclasses.replace(everything, x=everything.x[rows], y=everything.y[rows])
        for rows in (slice(6), slice(6, None))
    )
    return everything, *parts


def in_sequence(first, second, precision, mean, data=None, **options) -> lk.Laplace:
    la = first.fit(precision, mean, **options)
    return la.update((second.x, second.y) if data is None else data)


X = np.random.default_rng(1).normal(size=(4, 3))


# --- exact ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", pytest.param("ekfac", marks=pytest.mark.slow)])
def test_two_halves_are_one_pass(kind, x64):
    """For EKFAC too, which is exact here; the prior's mean is not zero."""
    everything, first, second = halves()
    precision, mean = exact.priors(8)
    if kind == "ekfac":
        precision = np.repeat([0.7, 2.0], [2, 6])
    found = in_sequence(first, second, precision, mean, structure=kind)
    at_once = everything.fit(precision, mean, structure=kind)
    theta, cov = everything.posterior(precision, mean)
    twins.assert_close(ravel_pytree(found.params)[0], theta, rtol=1e-8)
    twins.assert_close(found.posterior.covariance(), cov, rtol=1e-8)
    evidence = everything.log_evidence(precision, mean)
    twins.assert_close(found.log_marginal_likelihood(), evidence, rtol=1e-8)
    twins.assert_close(
        found.log_marginal_likelihood(2 * precision),
        at_once.log_marginal_likelihood(2 * precision),
        rtol=1e-8,
    )
    assert found.num_data == at_once.num_data == 11
    expected = at_once.predict(X)
    twins.assert_close(found.predict(X).mean, expected.mean, rtol=1e-8)
    twins.assert_close(found.predict(X).f_cov, expected.f_cov, rtol=1e-8)
    assert found.diagnostics().gradient_norm < 1e-8


def test_tuned_after_the_parts_as_after_all_of_them(x64):
    """The expansion holds what the evidence needs, the noise of the residuals too."""
    everything, first, second = halves()
    ones, zeros = np.ones(8), np.zeros(8)
    found = in_sequence(first, second, ones, zeros, structure="full")
    at_once = everything.fit(ones, zeros, structure="full")
    for options in ({}, {"noise": "residuals"}):
        tuned, expected = found.tune(**options), at_once.tune(**options)
        twins.assert_close(tuned.prior_precision, expected.prior_precision, rtol=1e-6)
        twins.assert_close(tuned.likelihood.noise_std, expected.likelihood.noise_std, rtol=1e-8)
        evidence = expected.log_marginal_likelihood()
        twins.assert_close(tuned.log_marginal_likelihood(), evidence, rtol=1e-8)


def test_a_stream_of_new_data(x64):
    _, first, second = halves()
    precision, mean = exact.priors(8)
    whole = in_sequence(first, second, precision, mean, structure="full")
    data = twins.batches(second.x, second.y, 3, 2)
    found = in_sequence(first, second, precision, mean, data, structure="full")
    twins.assert_close(found.posterior.covariance(), whole.posterior.covariance())
    twins.assert_close(found.params["weight"], whole.params["weight"])
    assert found.num_data == whole.num_data


# --- what stays -----------------------------------------------------------------------------------


def model(params, x):
    return jnp.tanh(x @ params["kernel"]) @ params["head"]


def classes(seed=0, num=9):
    rng = np.random.default_rng(seed)
    kernel, head = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3), (3, 2)))
    x, y = rng.normal(size=(num, 2)).astype(np.float32), rng.integers(0, 2, num)
    return {"kernel": kernel, "head": head}, x, y


def fitted(**options) -> lk.Laplace:
    params, x, y = classes()
    options = {"likelihood": "categorical", "structure": "full"} | options
    return lk.fit(model, params, (x, y), **options)


@pytest.mark.slow
def test_temperature_prior_and_prediction_are_kept_and_the_tuning_is_not():
    la = fitted().tune(bounds=(1e-6, 1e6)).with_temperature(0.3)
    la = la.with_prediction(link="mean_field_1")
    _, x, y = classes(1)
    found = la.update((x, y))
    assert found.temperature == la.temperature
    assert found.prior_precision == la.prior_precision
    assert found.prediction == la.prediction
    assert found.choice == la.choice
    assert found.tuning is None
    assert len(found.examples[0]) == len(la.examples[0]) + len(x)
    precision = np.asarray(found.structure.matrix) + float(la.prior_precision) * np.eye(12)
    cov = float(la.temperature) * np.linalg.inv(precision)
    twins.assert_close(found.posterior.covariance(), cov, dtype="float32")


@pytest.mark.slow
def test_one_newton_step_from_the_old_mode_on_a_network(x64):
    """The step and the curvature are those of the new data at the old mode."""
    params, x, y = jax.tree.map(np.float64, classes())
    y, (_, new_x, new_y) = y.astype(int), classes(1, num=4)
    la = lk.fit(model, params, (x, y), likelihood="categorical", structure="full")
    found = la.update((np.float64(new_x), new_y))

    def loss(theta):
        f = model(ravel_pytree(la.params)[1](theta), np.float64(new_x))
        return -jnp.sum(jax.nn.log_softmax(f)[np.arange(4), new_y])

    theta = ravel_pytree(la.params)[0]
    new = lk.fit(model, params, (np.float64(new_x), new_y), likelihood="categorical")
    matrix = la.structure.matrix + new.structure.matrix
    twins.assert_close(found.structure.matrix, matrix)
    step = -np.linalg.solve(matrix + np.eye(12), jax.jit(jax.grad(loss))(theta))
    moved = ravel_pytree(found.params)[0] - theta
    twins.assert_close(moved, step, rtol=1e-9)


def test_what_is_frozen_stays():
    la = fitted(subset="last_layer")
    found = la.update(classes(1)[1:])
    np.testing.assert_array_equal(found.params["kernel"], la.params["kernel"])
    assert not np.allclose(found.params["head"], la.params["head"])


@pytest.mark.slow
def test_the_dual_form_keeps_its_rows():
    """Eighteen and then thirty-six of them, for 179 parameters."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(18, 40)).astype(np.float32), rng.integers(0, 3, 18)
    params = {"hidden": [{"kernel": 0.1 * rng.normal(size=(40, 4)), "bias": np.zeros(4)}]}
    params["out"] = {"kernel": rng.normal(size=(4, 3)), "bias": np.zeros(3)}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    parts = [(x[:6], y[:6]), (x[6:12], y[6:12])]
    likelihood, limit = "categorical", 100_000
    la = lk.fit(twins.mlp, params, parts[0], likelihood=likelihood, memory_limit=limit)
    assert la.choice.form == "dual"
    found = la.update(parts[1])
    assert found.structure.design.shape == (36, 179)
    other = lk.fit(twins.mlp, params, parts[1], likelihood=likelihood, memory_limit=limit)
    vector = jnp.asarray(rng.normal(size=179), jnp.float32)
    expected = la.structure.mv(vector) + other.structure.mv(vector)
    twins.assert_close(found.structure.mv(vector), expected, dtype="float32")
    # With sixty examples more it is a matrix, and says so.
    more = rng.normal(size=(60, 40)).astype(np.float32), rng.integers(0, 3, 60)
    grown = la.update(more)
    assert (grown.choice.form, found.choice.form) == ("primal", "dual")
    assert grown.update(parts[1]).structure.matrix.shape == (179, 179)


def test_the_old_posterior_is_unchanged():
    la = fitted()
    before = jax.tree.map(np.array, jax.tree.leaves(la))
    la.update(classes(1)[1:])
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(la), before)


# --- what is refused ------------------------------------------------------------------------------


def test_data_that_do_not_suit_the_model():
    la, (_, x, y) = fitted(), classes(1)
    with pytest.raises(ValueError, match=r"targets of shape \(9, 1\) for outputs \(9, 2\)"):
        la.update((x, y[:, None]))
    with pytest.raises(ValueError, match="targets out of range; expected integer labels"):
        la.update((x, y + 1))


def test_labels_are_drawn_by_the_posterior_s_own_key_or_another():
    la = fitted(curvature="mc_fisher", key=jax.random.key(0))
    new, expected = classes(1)[1:], la.update(classes(1)[1:], key=jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, la.update(new).structure, expected.structure)
    again = la.update(new, key=jax.random.key(1))
    assert again.num_data == expected.num_data == 18
    pairs = zip(*(jax.tree.leaves(u.structure) for u in (again, expected)), strict=True)
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 9, 14])
def test_an_update_goes_on_where_it_was_interrupted(stop, tmp_path):
    """It is the same bit for bit, and reads no batch of a finished pass again."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 3)).astype(np.float32), rng.integers(0, 3, 32)
    la = lk.fit(
        lambda params, x: jnp.tanh(x @ params),
        rng.normal(size=(3, 3)).astype(np.float32),
        (x[:8], y[:8]),
        likelihood="categorical",
        structure="ekfac",
    )
    new, checkpoint = (x[8:], y[8:], 4), lk.Checkpoint(tmp_path, batches=1)
    loader = loaders.LikeGrain(*new)
    expected = la.update(loader)
    with pytest.raises(loaders.Interrupted):
        la.update(loaders.LikeGrain(*new, stop=stop + 3), checkpoint=checkpoint)
    assert [*tmp_path.glob("pass-*")] or stop == 1
    again = loaders.LikeGrain(*new)
    found = la.update(again, checkpoint=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found.posterior, expected.posterior)
    jax.tree.map(np.testing.assert_array_equal, found.expansion, expected.expansion)
    np.testing.assert_array_equal(found.mode, expected.mode)
    assert [*tmp_path.iterdir()] == []
    assert sum(again.reads) < sum(loader.reads) or stop == 1


def test_a_checkpoint_is_of_one_update_over_a_stream(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)).astype(np.float32), rng.integers(0, 3, 12)

    def fitted(scale):
        params = scale * jnp.eye(3)
        return lk.fit(lambda p, x: x @ p, params, (x, y), likelihood="categorical")

    with pytest.raises(TypeError, match="Found checkpoint= with data in memory, expected a stream"):
        fitted(1.0).update((x, y), checkpoint=tmp_path)
    with pytest.raises(loaders.Interrupted):
        fitted(1.0).update(loaders.LikeGrain(x, y, 4, stop=6), checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"differs in .*the parameters.*; expected the fit that"):
        fitted(2.0).update(loaders.LikeGrain(x, y, 4), checkpoint=tmp_path)
