"""Influence is g_q S g_n of the dense gradients and covariance, and what leaving out does."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from exact import KINDS
from jax.flatten_util import ravel_pytree

import laplace_kit as lk

QUERY = np.random.default_rng(5).normal(size=(4, 3)), np.asarray([0, 2, 1, 1])


def gradients(x, y) -> np.ndarray:
    """Return the gradients of the losses of `twins.mlp` at its parameters, `(N, P)`."""
    defined = twins.problem("mlp", "float64")
    theta, _ = twins.flat(defined)
    unravel = ravel_pytree(defined.params)[1]

    def losses(theta):
        return jax.vmap(twins.categorical_loss)(twins.mlp(unravel(theta), x), y)

    return np.asarray(jax.jit(jax.jacobian(losses))(theta))


def data(dtype: str = "float64"):
    defined = twins.problem("mlp", dtype)
    return np.asarray(defined.x), np.asarray(defined.y)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_dense_covariance(kind, x64):
    la = exact.fitted(kind, "float64")
    found = la.influence(QUERY, data())
    covariance = exact.covariance(kind, np.ones(31))
    expected = gradients(*QUERY) @ covariance @ gradients(*data()).T
    twins.assert_close(found.scores, expected, rtol=1e-8)
    assert found.examples is None
    assert found.layers == ()
    tempered = la.with_temperature(0.3).influence(QUERY, data())
    twins.assert_close(tempered.scores, expected, rtol=1e-8)


def test_single_precision():
    la = exact.fitted("full", "float32")
    query = np.float32(QUERY[0]), QUERY[1]
    found = la.influence(query, data("float32"))
    assert found.scores.dtype == jnp.float32
    with jax.enable_x64(True):
        expected = exact.fitted("full", "float64").influence(QUERY, data()).scores
    twins.assert_close(found.scores, expected, dtype="float32")


@pytest.mark.parametrize("kind", ["diagonal", "ekfac"])
def test_solves_are_exact_with_any_structure(kind, x64):
    la = exact.fitted(kind, "float64")
    found = la.influence(QUERY, data(), method="solve")
    inverse = np.linalg.inv(twins.dense(twins.ggn, "mlp") + np.eye(31))
    expected = gradients(*QUERY) @ inverse @ gradients(*data()).T
    twins.assert_close(found.scores, expected, rtol=1e-6)


def test_layers_add_up(x64):
    la = exact.fitted("full", "float64")
    found = la.influence(QUERY, data(), by="layer")
    assert found.layers == ("hidden/0/kernel", "out/kernel")
    twins.assert_close(found.by_layer.sum(axis=1), found.scores)
    moved = gradients(*QUERY) @ exact.covariance("full", np.ones(31))
    sizes = {"hidden": 16, "out": 15}  # each with its bias, in flat order
    expected = moved[:, : sizes["hidden"]] @ gradients(*data())[:, : sizes["hidden"]].T
    twins.assert_close(found.by_layer[:, 0], expected, rtol=1e-8)


def test_the_largest_and_the_smallest(x64):
    la = exact.fitted("ekfac", "float64")
    x, y = data()
    every = np.asarray(la.influence(QUERY, (x, y)).scores)
    for train in ((x, y), twins.Loader(x, y, 2)):
        found = la.influence(QUERY, train, top=2, by="layer")
        order = np.argsort(-every, axis=1)[:, [0, 1, -2, -1]]
        np.testing.assert_array_equal(found.examples, order)
        twins.assert_close(found.scores, np.take_along_axis(every, order, axis=1))
        twins.assert_close(found.by_layer.sum(axis=1), found.scores)


def test_streams_and_parts_change_nothing(x64):
    la = exact.fitted("full", "float64")
    x, y = data()
    expected = la.influence(QUERY, (x, y)).scores
    for train in (twins.Loader(x, y, 3), iter([(x[:5], y[:5]), (x[5:], y[5:])])):
        twins.assert_close(la.influence(QUERY, train, batch_size=2).scores, expected)
    twins.assert_close(la.influence(twins.Loader(*QUERY, 3), (x, y)).scores, expected)


def test_queries_are_cut_where_memory_requires_it(x64, monkeypatch):
    la = exact.fitted("full", "float64")
    expected = la.influence(QUERY, data()).scores
    monkeypatch.setattr("laplace_kit.eval.attribution._queries_at_a_time", lambda *_: 3)
    twins.assert_close(la.influence(QUERY, data()).scores, expected)
    with pytest.raises(TypeError, match="iterate"):
        la.influence(QUERY, iter([data()]))


def test_weights_of_the_training_data(x64):
    defined = twins.problem("mlp", "float64")
    weights = np.asarray([2.0, 1, 1, 1, 0, 1, 1])
    la = lk.fit(
        *(twins.mlp, defined.params, (*data(), weights)),
        likelihood="categorical",
        structure="full",
    )
    covariance = np.asarray(la.posterior.covariance())
    expected = gradients(*QUERY) @ covariance @ gradients(*data()).T * weights
    twins.assert_close(la.influence(QUERY, (*data(), weights)).scores, expected, rtol=1e-8)


def test_measures(x64):
    la = exact.fitted("full", "float64")

    def logit(f, y):
        return f[1]

    found = la.influence(QUERY, data(), measure=logit)
    jac = jax.jit(jax.jacobian(lambda p: twins.mlp(p, QUERY[0])[:, 1]))(la.params)
    rows = np.concatenate([np.reshape(leaf, (4, -1)) for leaf in jax.tree.leaves(jac)], axis=1)
    expected = rows @ exact.covariance("full", np.ones(31)) @ gradients(*data()).T
    twins.assert_close(found.scores, expected, rtol=1e-8)
    with pytest.raises(ValueError, match="measure='output' for a model with 3 outputs"):
        la.influence(QUERY, data(), measure="output")


# --- against leaving out --------------------------------------------------------------------------


def regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3))
    return x, x @ np.asarray([[1.0], [-1.0], [0.5]]) + 0.5 * rng.normal(size=(20, 1))


def linear(params, x):
    return x @ params


def ridge(x, y, delta):
    return np.linalg.solve(x.T @ x / 0.25 + delta * np.eye(3), x.T @ y / 0.25)


@pytest.mark.parametrize("measure", ["loss", "output"])
def test_leaving_out_moves_a_linear_model_as_predicted(measure, x64):
    x, y = regression()
    mode = ridge(x, y, 2.0)
    likelihood = lk.Gaussian(noise_std=0.5)
    la = lk.fit(linear, mode, (x, y), likelihood=likelihood, structure="full", prior_precision=2.0)
    query = np.asarray([[1.0, 0.3, -2.0], [0.2, 0.1, 0.4]]), np.asarray([[5.0], [-3.0]])
    scores = np.asarray(la.influence(query, (x, y), measure=measure).scores)

    def measured(mode):
        f = query[0] @ mode
        return (f if measure == "output" else (f - query[1]) ** 2 / 0.5)[:, 0]

    for n in range(20):
        rest = np.arange(20) != n
        change = measured(ridge(x[rest], y[rest], 2.0)) - measured(mode)
        leverage = x[n] @ np.linalg.inv(x.T @ x / 0.25 + 2 * np.eye(3)) @ x[n] / 0.25
        if measure == "output":  # exact but for the leverage
            np.testing.assert_allclose(scores[:, n] / (1 - leverage), change, rtol=1e-8)
        else:
            assert (np.sign(scores[:, n]) == np.sign(change)).all()
            np.testing.assert_allclose(scores[:, n], change, rtol=0.5, atol=0.02)


def test_other_values_compile_nothing(x64):
    la = exact.fitted("ekfac", "float64")
    la.influence(QUERY, data())
    with twins.compilations() as names:
        la.with_prior(2.0).influence((QUERY[0] + 1, QUERY[1]), data())
    assert [name for name in names if "rows" in name or "covariance" in name] == []


# --- what is refused ------------------------------------------------------------------------------


def test_refusals(x64):
    la = exact.fitted("full", "float64")
    x, y = data()
    with pytest.raises(ValueError, match=r"Found 5 training examples.* was fitted to 7"):
        la.influence(QUERY, (x[:5], y[:5]))
    with pytest.raises(ValueError, match=r"Found top=4 for 7 training examples"):
        la.influence(QUERY, (x, y), top=4)
    with pytest.raises(ValueError, match=r"Found top=0"):
        la.influence(QUERY, (x, y), top=0)
    with exact.as_users_call():
        with pytest.raises(ValueError, match=r"method='newton', expected one of 'posterior'"):
            la.influence(QUERY, (x, y), method="newton")
        with pytest.raises(ValueError, match=r"measure='losses'.*Did you mean 'loss'"):
            la.influence(QUERY, (x, y), measure="losses")
        with pytest.raises(ValueError, match=r"by='token'"):
            la.influence(QUERY, (x, y), by="token")
    with pytest.raises((TypeError, ValueError), match="Found"):
        la.influence((np.ones((2, 5)), [0, 1]), (x, y))
