"""Checks of what an adapter returns: a pure function, its frozen arrays and the parameters."""

import jax
import numpy as np
import twins
from jax.flatten_util import ravel_pytree

import laplace_kit as lk

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Y = np.arange(6) % 2


def is_pure_and_frozen(model_fn, params, expected):
    """Check outputs in evaluation mode, twice, and that no array is a constant of the program."""
    call = jax.jit(lambda model_fn, params, x: model_fn(params, x))
    for _ in range(2):
        np.testing.assert_allclose(call(model_fn, params, X), expected, rtol=1e-5, atol=1e-6)
    assert twins.constants(call.lower(model_fn, params, X).as_text()) == []


def is_fitted(model_fn, params):
    """Check a posterior of all parameters against the dense Gauss-Newton matrix."""
    la = lk.fit(model_fn, params, (X, Y), likelihood="categorical", structure="full")
    theta, unravel = ravel_pytree(params)
    outputs = jax.jit(lambda model_fn, theta: model_fn(unravel(theta), X))
    jac = np.asarray(jax.jit(jax.jacobian(outputs, 1))(model_fn, theta), np.float64)
    p = np.exp(np.asarray(outputs(model_fn, theta), np.float64))
    p /= p.sum(axis=1, keepdims=True)
    inner = np.eye(2) * p[:, :, None] - p[:, :, None] * p[:, None, :]
    ggn = np.einsum("ncp,ncd,ndq->pq", jac, inner, jac)
    twins.assert_close(la.structure.matrix, ggn, dtype="float32")
    assert la.predict(X).probs.shape == (6, 2)
    return la
