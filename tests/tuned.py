"""A small network, data about it, and posteriors to tune."""

import jax
import jax.numpy as jnp
import numpy as np

import laplace_kit as lk

NUM, CLASSES, P = 20, 2, 12
KEY = jax.random.key(7)
WIDE = (1e-8, 1e8)


def net(params, x):
    return jnp.tanh(x @ params["kernel"]) @ params["head"]


def params():
    rng = np.random.default_rng(0)
    sizes = {"head": (3, 2), "kernel": (2, 3)}
    return {name: jnp.asarray(rng.normal(size=size)) for name, size in sizes.items()}


def data(likelihood: str, seed: int = 1, num: int = NUM):
    """Return inputs and targets drawn about the network's outputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, 2))
    f = np.tanh(x @ np.asarray(params()["kernel"])) @ np.asarray(params()["head"])
    y = {
        "categorical": lambda: (f[:, 1] - f[:, 0] + rng.logistic(size=num) > 0).astype(int),
        "gaussian": lambda: f + 0.4 * rng.normal(size=f.shape),
        "poisson": lambda: rng.poisson(np.exp(f)),
    }[likelihood]()
    return jnp.asarray(x), jnp.asarray(y)


def surprises(likelihood: str, num: int = 40):
    """Return data unlike those that were trained on, for which more uncertainty is better."""
    x, y = data(likelihood, seed=2, num=num)
    if likelihood == "categorical":
        return x, jnp.where(jnp.arange(num) % 4 == 0, 1 - y, y)
    return x, y + 0.2 * np.random.default_rng(3).normal(size=y.shape)


def fit(likelihood, targets=None, **options) -> lk.Laplace:
    targets = targets or likelihood
    options = {"structure": "full"} | options
    return lk.fit(net, params(), data(targets), likelihood=likelihood, **options)
