"""Digits need fewer labels to 90 % accuracy where they are acquired than at random."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import laplace_kit as lk
from laplace_kit.eval import acquire

MOST = 200  # labels


def network(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


@jax.jit
def trained(params, x, y, weights):
    def objective(params):
        losses = optax.softmax_cross_entropy_with_integer_labels(network(params, x), y)
        return losses @ weights + 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    optimizer = optax.adam(0.01)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(objective)(params), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=400)[0][0]


def labels_needed(method: str | None, seed: int) -> int:
    """Return the number of labels of digits to 90 % accuracy, five more at a time from 20."""
    x, y = load_digits(return_X_y=True)
    x = np.float32(x / 16)
    order, rng = np.random.default_rng(seed).permutation(len(x)), np.random.default_rng(seed)
    start = {
        "w1": np.float32(rng.normal(size=(64, 32)) / 4),
        "b1": np.zeros(32, np.float32),
        "w2": np.float32(rng.normal(size=(32, 10)) / np.sqrt(32)),
        "b2": np.zeros(10, np.float32),
    }
    test, rest, key = order[:500], order[520:], jax.random.key(seed)
    labelled = order[500:520]
    while len(labelled) < MOST:
        filled = np.resize(labelled, MOST)  # one shape, with copies of weight zero
        weights = np.float32(np.arange(MOST) < len(labelled))
        data = x[filled], y[filled], weights
        params = trained(start, *data)
        if np.mean(np.argmax(network(params, x[test]), axis=1) == y[test]) >= 0.9:
            break
        chosen = np.arange(5)
        if method is not None:
            options = {"likelihood": "categorical", "structure": "kron", "prior_precision": 1.0}
            la = lk.fit(network, params, data, **options)
            key, own = jax.random.split(key)
            chosen = acquire(la, x[rest], 5, method=method, key=own)
        labelled, rest = np.append(labelled, rest[chosen]), np.delete(rest, chosen)
    return len(labelled)


@pytest.mark.slow
def test_digits_need_fewer_labels():
    methods = (None, "bald", "batch_bald", "logdet")
    needed = {m: np.mean([labels_needed(m, seed) for seed in range(6)]) for m in methods}
    assert needed["bald"] < 0.95 * needed[None], needed
    assert needed["batch_bald"] < 0.85 * needed[None], needed
    assert needed["logdet"] < 0.85 * needed[None], needed
