"""Ordered classes: differences of logistic functions, their derivatives, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import output_space
import pytest
from scipy import special

import laplace_kit as lk
from laplace_kit.likelihood import Ordinal, as_likelihood
from laplace_kit.likelihood.base import check_targets

CUTPOINTS = np.asarray([-1.0, 0.2, 2.5])
F = np.asarray([[0.3, -1.2, 0.8], [2.0, 0.1, -0.7]])
Y = np.asarray([[0, 1, 2], [3, 3, 0]])


def probabilities(f, cutpoints=CUTPOINTS):
    at_most = special.expit(np.concatenate([[-np.inf], cutpoints, [np.inf]]) - f[..., None])
    return np.diff(at_most, axis=-1)


def loss_by_definition(f, y):
    ends = jnp.concatenate([jnp.asarray([-1e3]), jnp.asarray(CUTPOINTS), jnp.asarray([1e3])])
    p = jax.nn.sigmoid(ends[y + 1] - f) - jax.nn.sigmoid(ends[y] - f)
    return -jnp.sum(jnp.log(p))


def test_derivatives_and_the_root(x64):
    likelihood = Ordinal(4, jnp.asarray(CUTPOINTS))
    output_space.assert_derivatives(likelihood, jnp.asarray(F), jnp.asarray(Y), loss_by_definition)
    expected = -np.log(np.take_along_axis(probabilities(F), Y[..., None], axis=-1))[..., 0]
    found = likelihood.entry_losses(jnp.asarray(F), jnp.asarray(Y))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_latent_output_of_zero_makes_all_classes_equally_probable_by_default(x64):
    losses = Ordinal(5).entry_losses(jnp.zeros(5), jnp.arange(5))
    np.testing.assert_allclose(losses, np.log(5), rtol=1e-12)


def test_two_classes_are_a_binary_label(x64):
    losses = Ordinal(2).entry_losses(jnp.asarray([0.4, 0.4]), jnp.asarray([0, 1]))
    np.testing.assert_allclose(losses, -special.log_expit([-0.4, 0.4]), rtol=1e-12)


def test_far_outputs_stay_finite():
    f, y = jnp.asarray([1e4, -1e4, 200.0]), jnp.asarray([0, 3, 1])
    found = output_space.forms(Ordinal(4), f, y)
    assert all(np.isfinite(array).all() for array in found)


def test_samples_have_the_stated_probabilities(x64):
    f, num = jnp.asarray([0.5, -1.0]), 20_000
    likelihood = Ordinal(4, jnp.asarray(CUTPOINTS))
    y = jax.vmap(lambda key: likelihood.sample(key, f))(jax.random.split(jax.random.key(0), num))
    assert jax.vmap(likelihood.is_valid, (None, 0))(f, y).all()
    shares = (np.asarray(y)[..., None] == np.arange(4)).mean(axis=0)
    p = probabilities(np.asarray(f))
    assert np.abs((shares - p) / np.sqrt(p * (1 - p) / num)).max() < 4


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match=r"num_classes=1, expected a whole number"):
        Ordinal(1)
    for cutpoints in ([0.0], [0.0, 0.0], [1.0, 0.0], [0.0, np.inf]):
        with pytest.raises(ValueError, match=r"expected 2 finite, increasing numbers"):
            Ordinal(3, np.asarray(cutpoints))
    with pytest.raises(ValueError, match=r"pass lk\.Ordinal\(num_classes\)"):
        as_likelihood("ordinal")
    f = jnp.zeros((5, 1))
    with pytest.raises(ValueError, match=r"Ordinal: found targets of shape \(5,\)"):
        check_targets(Ordinal(3), f, jnp.zeros(5, int))
    with pytest.raises(ValueError, match=r"labels of dtype float32, expected integers from 0 to 2"):
        check_targets(Ordinal(3), f, jnp.zeros((5, 1), jnp.float32))
    assert "use y - 1" in Ordinal(3).renumbering((1,), np.asarray([[1], [3]]))
    valid = jax.vmap(Ordinal(3).is_valid)(jnp.zeros(3), jnp.asarray([2, 3, -1]))
    np.testing.assert_array_equal(valid, [True, False, False])


def test_a_fit_is_tuned_evaluated_and_recalibrated_as_that_of_a_classifier(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2)).astype(np.float32)
    latent = 2 * x @ np.asarray([[1.0], [-0.5]], np.float32) + rng.logistic(size=(60, 1))
    y = (latent[..., None] > CUTPOINTS).sum(axis=-1)
    likelihood = Ordinal(4, jnp.asarray(CUTPOINTS, jnp.float32))
    la = lk.fit(lambda w, x: x @ w, jnp.asarray([[2.0], [-1.0]]), (x, y), likelihood=likelihood)
    pred, found = la.predict(x), la.evaluate((x, y))
    rows = np.asarray(pred.probs)[:, 0]
    assert found["accuracy"] == pytest.approx(np.mean(rows.argmax(axis=1) == y[:, 0]))
    assert found["nll"] == pytest.approx(-np.mean(np.log(rows[np.arange(60), y[:, 0]])), rel=1e-5)
    sets = lk.eval.conformal_sets(pred, y, level=0.9)(pred)
    assert np.mean(np.take_along_axis(np.asarray(sets), y[..., None], axis=-1)) >= 0.9
    recalibrated = lk.eval.recalibrate(pred, y)(pred)
    nll = -np.mean(np.asarray(recalibrated.log_prob(y)))
    assert nll <= found["nll"] + 1e-6
    la.save(tmp_path / "ordinal.npz")
    loaded = lk.load(tmp_path / "ordinal.npz", lambda w, x: x @ w)
    np.testing.assert_allclose(loaded.predict(x).probs, pred.probs, rtol=1e-6)
