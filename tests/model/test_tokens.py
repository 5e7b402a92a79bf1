"""Logits of given tokens: as if chosen from all logits, without the other columns of the head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

import laplace_kit as lk
from laplace_kit.model import with_tokens

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5, 3))
Y = np.arange(6) % 3
HEAD, BIAS = RNG.normal(size=(4, 9)), RNG.normal(size=9)
PARAMS = {"kernel": RNG.normal(size=(3, 4)), "bias": RNG.normal(size=4)}
TOKENS = [7, 2, 5]
LENGTHS = np.asarray([5, 1, 3, 4, 2, 5])


def hidden(params, x):
    h = jnp.tanh(x @ params["kernel"] + params["bias"])
    return jnp.cumsum(h, axis=1) / jnp.arange(1, h.shape[1] + 1)[:, None]


def logits(params, x):
    return hidden(params, x) @ HEAD + BIAS


def with_head(params, x):
    return hidden(params, x), HEAD, BIAS


@pytest.mark.parametrize("model_fn", [logits, with_head])
def test_logits_of_tokens_at_the_last_position_or_at_each_ones_own(model_fn, x64):
    every = np.asarray(logits(PARAMS, X))
    found = with_tokens(model_fn, TOKENS)(PARAMS, X)
    np.testing.assert_allclose(found, every[:, -1, TOKENS], rtol=1e-12)
    found = with_tokens(model_fn, np.asarray(TOKENS), position=1)(PARAMS, X)
    np.testing.assert_allclose(found, every[:, 1, TOKENS], rtol=1e-12)
    found = with_tokens(model_fn, TOKENS, position=None)(PARAMS, (X, LENGTHS - 1))
    expected = every[np.arange(6), LENGTHS - 1][:, TOKENS]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_head_without_bias():
    found = with_tokens(lambda params, x: with_head(params, x)[:2], TOKENS)(PARAMS, X)
    expected = np.asarray(logits(PARAMS, X) - BIAS)[:, -1, TOKENS]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_posterior_and_predictions_are_those_of_the_chosen_logits(x64):
    options = {"likelihood": "categorical", "structure": "full"}
    la = lk.fit(with_tokens(with_head, TOKENS), PARAMS, (X, Y), **options)
    chosen = lk.fit(
        lambda params, x: logits(params, x)[:, -1][:, jnp.asarray(TOKENS)],
        PARAMS,
        (X, Y),
        **options,
    )
    twins.assert_close(la.structure.matrix, chosen.structure.matrix, rtol=1e-9)
    jac = jax.jacobian(lambda params: logits(params, X)[:, -1][:, jnp.asarray(TOKENS)])(PARAMS)
    jac = np.concatenate([np.asarray(a).reshape(6, 3, -1) for a in jax.tree.leaves(jac)], axis=-1)
    f_cov = np.einsum("ncp,pq,ndq->ncd", jac, la.posterior.covariance(), jac)
    twins.assert_close(la.predict(X).f_cov, f_cov, rtol=1e-8)
    own = with_tokens(with_head, TOKENS, position=None)
    la = lk.fit(own, PARAMS, ((X, LENGTHS - 1), Y), **options).tune()
    assert la.predict((X, LENGTHS - 1)).probs.shape == (6, 3)


def test_the_other_columns_of_the_head_are_never_formed():
    wide = np.zeros((4, 777))
    model_fn = with_tokens(lambda params, x: (hidden(params, x), wide), TOKENS)

    def loss(params):
        return jnp.sum(model_fn(params, X))

    text = str(jax.make_jaxpr(jax.grad(loss))(PARAMS))
    assert "[4,777]" in text  # the head itself
    assert ",777]" not in text.replace("[4,777]", "")


def test_equal_arguments_reuse_programs():
    first, second = (with_tokens(with_head, tokens) for tokens in (TOKENS, tuple(TOKENS)))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert jax.tree.structure(first) != jax.tree.structure(with_tokens(with_head, [1, 2, 3]))


@pytest.mark.parametrize(
    "tokens", [[1], [1, 1], np.asarray([0.5, 2]), np.ones((2, 2), int), [-1, 2], []], ids=str
)
def test_tokens_that_are_no_different_numbers(tokens):
    with pytest.raises(ValueError, match="expected the numbers of at least two different tokens"):
        with_tokens(logits, tokens)


@pytest.mark.parametrize(
    ("model_fn", "options", "x", "error", "words"),
    [
        (logits, {"tokens": [1, 9]}, X, ValueError, r"token 9 for a vocabulary of 9 tokens"),
        (with_head, {"tokens": [1, 9]}, X, ValueError, r"token 9 for a vocabulary of 9 tokens"),
        (logits, {"position": 5}, X, ValueError, r"position=5 for sequences of 5 tokens, .* -5 to"),
        (logits, {"position": None}, X, TypeError, r"expected a pair \(x, position\), which makes"),
        (logits, {"position": None}, (X, LENGTHS[:3]), ValueError, r"positions of shape \(3,\)"),
        (logits, {"position": None}, (X, LENGTHS * 1.0), ValueError, r"positions .* dtype float"),
        (lambda params, x: hidden(params, x)[:, 0], {}, X, TypeError, r"shape \[\(6, 4\)\], exp"),
        (lambda params, x: {"logits": 1}, {}, X, TypeError, r"outputs of type dict"),
        (lambda params, x: (hidden(params, x), HEAD.T), {}, X, ValueError, r"pass its transpose"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(model_fn, options, x, error, words):
    with pytest.raises(error, match=words):
        with_tokens(model_fn, **{"tokens": TOKENS} | options)(PARAMS, x)


def test_models_that_are_no_functions_of_parameters_and_inputs():
    with pytest.raises(TypeError, match=r"Found a model with the arguments \(x\)"):
        with_tokens(lambda x: x, TOKENS)
