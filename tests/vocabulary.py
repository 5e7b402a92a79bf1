"""A small model of the tokens of a sequence, with more outputs than passes are worth."""

import jax
import jax.numpy as jnp
import numpy as np

import laplace_kit as lk

RNG = np.random.default_rng(0)
NUM_TOKENS, LENGTH = 200, 6
X = RNG.normal(size=(4, LENGTH, 3))
HEAD = 3 * RNG.normal(size=(4, NUM_TOKENS))
PARAMS = {"kernel": RNG.normal(size=(3, 4)), "bias": RNG.normal(size=4)}


def model_fn(params, x):
    return jnp.tanh(x @ params["kernel"] + params["bias"]) @ HEAD


Y = np.argmax(np.tanh(X @ PARAMS["kernel"] + PARAMS["bias"]) @ HEAD, axis=-1)  # fitted well


def fitted(**options) -> lk.Laplace:
    return lk.fit(model_fn, PARAMS, (X, Y), likelihood="categorical", structure="full", **options)


def jacobian() -> np.ndarray:
    """Return `(N, C, P)`, C over flattened outputs."""
    parts = jax.tree.leaves(jax.jit(jax.jacobian(model_fn))(PARAMS, X))
    rows = [np.asarray(part).reshape(4, LENGTH * NUM_TOKENS, -1) for part in parts]
    return np.concatenate(rows, axis=-1)
